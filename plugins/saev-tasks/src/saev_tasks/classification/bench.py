"""`ImageBench`: labelled images, a whole-image probe's logits for them, and the effect of edits."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array
from torch import Tensor

from saev_core.support.progress import Track, silent
from saev_tasks.shared.edit_bench import Change, EditBench
from saev_tasks.shared.readout import Readout


class ImageBench(EditBench):
    """Labelled images, with one row of logits each."""

    def __init__(self, readout: Readout, images: Int[np.ndarray, " n"], labels: Int[np.ndarray, " n"], track: Track = silent) -> None:
        """
        Raises:
            StoreError: as `EditBench`.
        """
        super().__init__(readout, images, track)
        self.labels = np.asarray(labels)
        self._share = 1.0 if self.mean else 1 / len(self.read)
        """Weight of one edited token in the vector that the probe reads."""

    @cached_property
    def right(self) -> Bool[np.ndarray, " n"]:
        """Which images the probe classifies correctly without edits."""
        return np.asarray(self.before.argmax(1).numpy() == self.labels)

    @cached_property
    def pooled(self) -> csr_array:
        """Mean activation of every feature over each image's edited tokens, `[n_images, d_sae]`."""
        n = len(self.images)
        rows = np.arange(n * self.n_rows)
        sums = csr_array((np.full(len(rows), 1 / self.n_rows, np.float32), (rows // self.n_rows, rows)), shape=(n, len(rows)))
        return csr_array(sums @ self.codes)

    def effect(self) -> Float[np.ndarray, "d_sae n_classes"]:
        """Change in logits per unit of a feature's pooled activation, if the probe reads the SAE's site."""
        share = self._share * self.n_rows
        return np.asarray((share * (self.directions @ self.readout.probe.weight.cpu().T)).numpy())

    def wrong(self, change: Change, among: Bool[np.ndarray, " n"] | None = None) -> Bool[np.ndarray, " n"]:
        """Images that the change makes misclassified; restricted to `among`, if given, so that the model need not run on others."""
        asked = self.right if among is None else self.right & among
        keep = asked[change.row // self.n_rows]
        place, logits = self.after(Change(change.row[keep], change.delta[torch.from_numpy(keep)]))
        lost = np.zeros(len(self.images), bool)
        lost[place] = logits.argmax(1).numpy() != self.labels[place]
        return lost

    def _moved(self, place: Int[np.ndarray, " m"], owner: Int[np.ndarray, " n_changed"], change: Change) -> Float[Tensor, "m n_classes"]:
        total = torch.zeros(len(place), change.delta.shape[1]).index_add_(0, torch.from_numpy(owner), change.delta) * self._share
        return self.before[place] + total @ self.readout.probe.weight.cpu().T
