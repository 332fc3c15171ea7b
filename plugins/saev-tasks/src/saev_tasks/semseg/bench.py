"""`PatchBench`: images, a patch probe's logits and SAE features for each patch, and the effect of edits."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saev_tasks.shared.edit_bench import Change, EditBench


class PatchBench(EditBench):
    """Images with logits for each patch; a row of codes is a patch."""

    def patches_after(self, change: Change) -> tuple[Int[np.ndarray, " m"], Float[Tensor, "m n_classes"]]:
        """Rows of patches whose logits may have changed, and those logits; all patches of an image if the rest of the model ran."""
        if self.readout.linear:
            flat = self.before.view(-1, self.before.shape[-1])
            return change.row, flat[torch.from_numpy(change.row)] + self._effect(change)
        place, logits = self.after(change)
        return (place[:, None] * self.n_rows + np.arange(self.n_rows)).reshape(-1), logits.flatten(0, 1)

    def _moved(
        self, place: Int[np.ndarray, " m"], owner: Int[np.ndarray, " n_changed"], change: Change
    ) -> Float[Tensor, "m n_patches n_classes"]:
        logits = self.before[place].clone()
        flat = logits.view(-1, logits.shape[-1])
        flat[torch.from_numpy(owner * self.n_rows + change.row % self.n_rows)] += self._effect(change)
        return logits

    def _effect(self, change: Change) -> Float[Tensor, "m n_classes"]:
        weight = self.readout.probe.weight
        return (change.delta.to(weight.device) @ weight.T).cpu()
