"""`Bench`: images as a probe of whole images sees them, with the SAE's features on every token, on which edits are tried."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array, vstack
from torch import Tensor

from saev_core.errors import StoreError
from saev_core.support.progress import Track, silent
from saev_tasks.shared.control_experiment import Change, Coded, codes_of, directions_of
from saev_tasks.shared.readout import Readout

_BATCH_IMAGES = 32
_KEPT = 2**30
"""Bytes of recorded tokens that are kept in memory for the rest of the model; more are read again."""


class Bench(Coded):
    """Some images of a store, their codes and the probe's logits, on which features are suppressed again and again.

    Where the probe reads the SAE's site, an edit is linear algebra on the tokens that it changes. Memory: 8 bytes for each
    activation, that is images x tokens x L0.
    """

    def __init__(self, readout: Readout, images: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], track: Track = silent) -> None:
        """
        Raises:
            StoreError: an activation is not finite, or there is no image.
        """
        self.readout, self.images, self.labels = readout, np.asarray(images), np.asarray(labels)
        if not len(self.images):
            raise StoreError(f"{readout.store.url}: there is no image to try edits on.")
        self.directions = directions_of(readout.checkpoint)
        self.mean = readout.checkpoint.read.tokens == "mean"
        """Whether codes are of the mean over patches: one row an image, and a change of it is one of every patch."""
        read = set(readout.pool.reads(readout.n_tokens, readout.n_prefix))
        # Of tokens that the probe does not read, where nothing comes between, no edit matters.
        self.edited = [t for t in readout.edited if t in read] if readout.linear and not self.mean else readout.edited
        self.n_rows = 1 if self.mean else len(self.edited)
        self._share = 1.0 if self.mean else 1 / len(read)
        """What one edited token is of the vector that the probe reads."""
        self._kept: list[Tensor] | None = [] if not readout.linear else None
        logits, codes, size = [], [], 0
        with track("codes", len(self.images), "images") as meter:
            for start in range(0, len(self.images), _BATCH_IMAGES):
                x = readout.tokens(self.images[start : start + _BATCH_IMAGES])
                codes.append(self._codes(x.float()))
                logits.append(readout.logits(x))
                size += x.nbytes
                self._kept = [*self._kept, x] if self._kept is not None and size <= _KEPT else None
                meter.update(len(x))
        self.codes = csr_array(vstack(codes, format="csr")).tocsc()
        self.before: Float[Tensor, "n n_classes"] = torch.cat(logits)
        """Logits of the unedited images."""
        self._all = torch.cat(self._kept) if self._kept else None

    def _codes(self, x: Float[Tensor, "b n_tokens d"]) -> csr_array:
        checkpoint = self.readout.checkpoint
        vectors = checkpoint.selection.of_site(x, self.readout.n_prefix) if self.mean else x[:, self.edited]
        return codes_of(checkpoint, vectors)

    @cached_property
    def right(self) -> Bool[np.ndarray, " n"]:
        """Which images the probe tells right, unedited."""
        return np.asarray(self.before.argmax(1).numpy() == self.labels)

    @cached_property
    def pooled(self) -> csr_array:
        """Mean activation of every feature over each image's edited tokens, `[n_images, d_sae]`."""
        n = len(self.images)
        rows = np.arange(n * self.n_rows)
        sums = csr_array((np.full(len(rows), 1 / self.n_rows, np.float32), (rows // self.n_rows, rows)), shape=(n, len(rows)))
        return csr_array(sums @ self.codes)

    def effect(self) -> Float[np.ndarray, "d_sae n_classes"]:
        """How one unit of a feature's pooled activation moves the logits, where the probe reads the SAE's site."""
        share = self._share * self.n_rows
        return np.asarray((share * (self.directions @ self.readout.probe.weight.cpu().T)).numpy())

    def wrong(self, change: Change, among: Bool[np.ndarray, " n"] | None = None) -> Bool[np.ndarray, " n"]:
        """Images that were told right and no longer are; of `among` alone, if given, so that the model need not run on others."""
        asked = self.right if among is None else self.right & among
        keep = asked[change.row // self.n_rows]
        place, logits = self.after(Change(change.row[keep], change.delta[torch.from_numpy(keep)]))
        lost = np.zeros(len(self.images), bool)
        lost[place] = logits.argmax(1).numpy() != self.labels[place]
        return lost

    @torch.no_grad()
    def after(self, change: Change) -> tuple[Int[np.ndarray, " m"], Float[Tensor, "m n_classes"]]:
        """Places of the images that change, and their logits."""
        place, owner = np.unique(change.row // self.n_rows, return_inverse=True)
        if self.readout.linear:
            moved = torch.zeros(len(place), change.delta.shape[1]).index_add_(0, torch.from_numpy(owner), change.delta) * self._share
            return place, self.before[place] + moved @ self.readout.probe.weight.cpu().T
        bounds, out = np.searchsorted(owner, np.arange(len(place) + 1)), [self.before[:0]]
        for start in range(0, len(place), _BATCH_IMAGES):
            mine = place[start : start + _BATCH_IMAGES]
            x = self._all[mine].float() if self._all is not None else self.readout.tokens(self.images[mine]).float()
            for i in range(len(mine)):
                a, b = bounds[start + i], bounds[start + i + 1]
                if self.mean:
                    x[i, self.readout.n_prefix :] += change.delta[a]
                else:
                    x[i, [self.edited[slot] for slot in change.row[a:b] % self.n_rows]] += change.delta[a:b]
            out.append(self.readout.logits(x))
        return place, torch.cat(out)
