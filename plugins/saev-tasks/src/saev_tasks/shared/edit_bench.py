"""`EditBench`: recorded images with their codes and logits, for evaluating many feature edits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csc_array, csr_array, vstack
from torch import Tensor

from saev_core.errors import StoreError
from saev_core.support.progress import Track, silent
from saev_core.support.threads import read_ahead
from saev_tasks.shared.readout import Readout

_BATCH_IMAGES = 32
_BYTES_KEPT = 2**30
"""Recorded tokens kept in memory for the blocks after the SAE; more are read again each time."""


class Change(NamedTuple):
    """What an edit adds to raw activations at the SAE's site, for the tokens it changes."""

    row: Int[np.ndarray, " m"]
    """The image's index in the bench times `EditBench.n_rows`, plus the token's index in `EditBench.edited`."""
    delta: Float[Tensor, "m d_model"]


class EditBench(ABC):
    """Some images of a store, their codes, and the probe's logits before and after changes at the SAE's site.

    If the probe reads that site, a change is linear algebra on the tokens it changes. If the probe reads a later site, the
    blocks in between run again on the changed images, in batches. Memory: 8 bytes per activation, that is images x
    tokens x L0, and up to 1 GiB of recorded tokens for a later probe.
    """

    codes: csc_array
    """`[n_images * n_rows, d_sae]`, by feature."""
    before: Float[Tensor, "n *n_patches n_classes"]
    """Logits of the unedited images."""
    directions: Float[Tensor, "d_sae d_model"]
    """What one unit of each feature adds to raw activations."""

    def __init__(self, readout: Readout, images: Int[np.ndarray, " n"], track: Track = silent) -> None:
        """
        Raises:
            StoreError: an activation is not finite, or there is no image.
        """
        self.readout, self.images = readout, np.asarray(images)
        if not len(self.images):
            raise StoreError(f"{readout.store.url}: no images to edit.")
        self.directions = readout.directions
        self.mean = readout.checkpoint.read.tokens == "mean"
        """Whether codes are of the mean over patches: one row per image, and a change applies to every patch."""
        self.read = readout.pool.reads(readout.n_tokens, readout.n_prefix)
        # With no blocks in between, edits of tokens that the probe does not read have no effect.
        self.edited = [t for t in readout.edited if t in set(self.read)] if readout.linear and not self.mean else readout.edited
        self.n_rows = 1 if self.mean else len(self.edited)
        """Rows of codes per image."""
        self._kept: list[Tensor] | None = [] if not readout.linear else None
        logits, codes, size = [], [], 0
        with track("codes", len(self.images), "images") as meter:
            for x in read_ahead(self._batches(), 1):
                codes.append(_sparse(readout, x, self.edited))
                logits.append(readout.logits(x))
                size += x.nbytes
                self._kept = [*self._kept, x] if self._kept is not None and size <= _BYTES_KEPT else None
                meter.update(len(x))
        self.codes = csr_array(vstack(codes, format="csr")).tocsc()
        self.before = torch.cat(logits)
        self._tokens = torch.cat(self._kept) if self._kept else None

    def _batches(self) -> Iterator[Float[Tensor, "b n_tokens d_model"]]:
        for start in range(0, len(self.images), _BATCH_IMAGES):
            yield self.readout.tokens(self.images[start : start + _BATCH_IMAGES])

    @cached_property
    def frequency(self) -> Float[np.ndarray, " d_sae"]:
        """Share of tokens on which each feature fires."""
        return np.asarray(np.diff(self.codes.indptr) / self.codes.shape[0])

    def scaled(self, features: Sequence[int], factor: float) -> Change:
        """Scale every activation f of these features to `factor` f: 0 ablates, a negative factor writes the opposite.

        Only tokens on which one of them fires change, so no location is needed.
        """
        some = csr_array(self.codes[:, list(features)])
        row = np.flatnonzero(np.diff(some.indptr))
        f = torch.from_numpy(some[row].toarray().astype(np.float32))
        return Change(row, (factor - 1) * (f @ self.directions[list(features)]))

    @torch.no_grad()
    def after(self, change: Change) -> tuple[Int[np.ndarray, " m"], Float[Tensor, "m *n_patches n_classes"]]:
        """Indices of the images that change, and their logits."""
        place, owner = np.unique(change.row // self.n_rows, return_inverse=True)
        return place, self._moved(place, owner, change) if self.readout.linear else self._rerun(place, owner, change)

    @abstractmethod
    def _moved(
        self, place: Int[np.ndarray, " m"], owner: Int[np.ndarray, " n_changed"], change: Change
    ) -> Float[Tensor, "m *n_patches n_classes"]:
        """Logits if the probe reads the SAE's site; `owner`: for each changed row, its image in `place`."""

    def _rerun(
        self, place: Int[np.ndarray, " m"], owner: Int[np.ndarray, " n_changed"], change: Change
    ) -> Float[Tensor, "m *n_patches n_classes"]:
        """The same if the blocks in between must run."""
        bounds, out = np.searchsorted(owner, np.arange(len(place) + 1)), [self.before[:0]]
        for start in range(0, len(place), _BATCH_IMAGES):
            mine = place[start : start + _BATCH_IMAGES]
            x = (self._tokens[mine] if self._tokens is not None else self.readout.tokens(self.images[mine])).float()
            for i in range(len(mine)):
                a, b = bounds[start + i], bounds[start + i + 1]
                if self.mean:
                    x[i, self.readout.n_prefix :] += change.delta[a]
                else:
                    x[i, [self.edited[slot] for slot in change.row[a:b] % self.n_rows]] += change.delta[a:b]
            out.append(self.readout.logits(x))
        return torch.cat(out)


def _sparse(readout: Readout, tokens: Float[Tensor, "b n_tokens d_model"], at: Sequence[int]) -> csr_array:
    """Codes of tokens as a matrix, `[b * n_rows, d_sae]`."""
    codes = readout.codes(tokens, at)
    parts = tuple(part.cpu().numpy() for part in (codes.value.float(), codes.feature, codes.offsets))
    made = csr_array(parts, shape=(len(codes), codes.d_sae))
    made.eliminate_zeros()
    return made
