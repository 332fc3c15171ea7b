"""`Bench`: images as a probe sees them, with the SAE's features on every patch, on which edits are tried without reading them again."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csr_array, vstack
from torch import Tensor

from saev_core.activations.store.store import ActivationStore
from saev_core.errors import SteerError
from saev_core.interventions.downstream import Rest
from saev_core.interventions.edit import writes_where_it_reads
from saev_core.models.base import VisionModel
from saev_core.sae.checkpoint import Checkpoint
from saev_core.support.progress import Track, silent
from saev_core.tasks.probe import Probe
from saev_core.types import Site
from saev_tasks.shared.control_experiment import Change, Coded, codes_of, directions_of
from saev_tasks.shared.patch_vectors import stored

_BATCH_IMAGES = 32


class Bench(Coded):
    """Some images of a store: their codes, and the probe's logits before and after changes at the SAE's site.

    Where the probe reads that very site, an edit is linear algebra on the patches that it changes. Where the probe sits later,
    the rest of the model runs again on the images that it changes, from the recorded tokens, in batches.
    """

    def __init__(
        self,
        probe: Probe,
        checkpoint: Checkpoint,
        store: ActivationStore,
        images: Int[np.ndarray, " n"],
        model: VisionModel | None = None,
        track: Track = silent,
    ) -> None:
        """
        Args:
            model: the store's, for a probe that sits later than the SAE.

        Raises:
            SteerError: the SAE is not one of patches, at one site, or sits after the probe.
            StoreError: the store lacks the SAE's site, or an activation is not finite.
        """
        writes_where_it_reads(checkpoint)
        if checkpoint.read.tokens != "patches" or not isinstance(checkpoint.read.layer, int):
            raise SteerError(
                f"the SAE reads {checkpoint.read.tokens} at {checkpoint.site}; segmentation is controlled by an SAE of patches at one site."
            )
        self.probe, self.checkpoint, self.store, self.images = probe, checkpoint, store, np.asarray(images)
        self.site, self.grid, self.n_patches = Site.parse(checkpoint.site), store.grid, store.grid.n_patches
        self._later = Site.parse(probe.site) if probe.site != checkpoint.site else None
        if self._later is not None and self._later < self.site:
            raise SteerError(f"the probe reads {probe.site}, before the SAE's {checkpoint.site}; train a probe there or later.")
        self._rest = self._blank(model) if self._later is not None else None
        self.directions = directions_of(checkpoint)
        logits, codes = [], []
        with track("patches", len(self.images), "images") as meter:
            for numbers, x in stored(store, self.site, self.images):
                codes.append(codes_of(checkpoint, x))
                logits.append(probe(x).cpu() if self._later is None else self._read_later(numbers, {}))
                meter.update(len(numbers))
        if not codes:
            raise SteerError("there is no image to try edits on.")
        self.codes = csr_array(vstack(codes, format="csr")).tocsc()
        self.before: Float[Tensor, "n n_patches n_classes"] = torch.cat(logits)
        """Logits of the unedited images."""

    def _blank(self, model: VisionModel | None) -> Rest:
        if model is None:
            raise SteerError(f"the probe reads {self.probe.site}, after the SAE's {self.site}: the rest of the model must run; give it.")
        return Rest.blank(model, self.site)

    def _read_later(self, numbers: Int[np.ndarray, " b"], deltas: dict[int, tuple[np.ndarray, Tensor]]) -> Float[Tensor, "b n_patches c"]:
        """The probe's logits of images whose tokens at the SAE's site are changed; `deltas`: place in `numbers` -> patches, change."""
        rest, later = self._rest, self._later
        assert rest is not None
        assert later is not None
        n_prefix, out = self.grid.n_prefix, []
        for start in range(0, len(numbers), _BATCH_IMAGES):
            mine = numbers[start : start + _BATCH_IMAGES]
            parts = [torch.from_numpy(self.store.read(self.site, mine)).float()]
            if n_prefix:
                parts.insert(0, torch.from_numpy(self.store.read(self.site, mine, "prefix")).float())
            tokens = torch.cat(parts, 1)  # [b, n_tokens, d_model]
            for i in range(len(mine)):
                if start + i in deltas:
                    patch, delta = deltas[start + i]
                    tokens[i, n_prefix + torch.from_numpy(patch)] += delta
            seen = rest.on(tokens.to(rest.images.device)).record([later])[later]
            out.append(self.probe(seen[:, n_prefix:].float()).cpu())
        return torch.cat(out)

    def after(self, change: Change) -> tuple[Int[np.ndarray, " m"], Float[Tensor, "m n_patches n_classes"]]:
        """Places of the images that change, and the logits of all their patches."""
        place = np.unique(change.row // self.n_patches)
        if self._later is None:
            logits = self.before[place].clone()
            flat = logits.view(-1, logits.shape[-1])
            at = np.searchsorted(place, change.row // self.n_patches) * self.n_patches + change.row % self.n_patches
            flat[torch.from_numpy(at)] += self._effect(change)
            return place, logits
        owner = np.searchsorted(place, change.row // self.n_patches)
        bounds = np.searchsorted(owner, np.arange(len(place) + 1))
        deltas = {i: (change.row[a:b] % self.n_patches, change.delta[a:b]) for i, (a, b) in enumerate(pairwise(bounds))}
        if not len(place):
            return place, self.before[:0]
        return place, self._read_later(self.images[place], deltas)

    def patches_after(self, change: Change) -> tuple[Int[np.ndarray, " m"], Float[Tensor, "m n_classes"]]:
        """Rows of patches whose logits may have changed, and those logits; all patches of an image where the rest of the model ran."""
        if self._later is None:
            flat = self.before.view(-1, self.before.shape[-1])
            return change.row, flat[torch.from_numpy(change.row)] + self._effect(change)
        place, logits = self.after(change)
        return (place[:, None] * self.n_patches + np.arange(self.n_patches)).reshape(-1), logits.flatten(0, 1)

    def _effect(self, change: Change) -> Float[Tensor, "m n_classes"]:
        weight = self.probe.weight
        return (change.delta.to(weight.device) @ weight.T).cpu()
