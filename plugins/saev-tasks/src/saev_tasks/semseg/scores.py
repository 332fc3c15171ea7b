"""How well a segmentation agrees with the ground truth, pixel by pixel, with ignored classes excluded.

A pixel counts if its true class is not ignored. A prediction is never an ignored class: the argmax is taken
over the others. So an ignored class is neither a true class nor a false positive of another, and enters no mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saev_core import Grid
from saev_tasks.shared.intervals import interval
from saev_tasks.shared.patch_vectors import Classes


def upsample(logits: Float[Tensor, "b n_patches c"], grid: Grid) -> Float[Tensor, "b c height width"]:
    """Patch values at each pixel of the transformed image: bilinear between patch centres, constant beyond the outer ones."""
    # Keep classes contiguous in memory: five times as fast, and so is the argmax over them.
    b, _, c = logits.shape
    maps = logits.reshape(b, grid.rows, grid.cols, c).permute(0, 3, 1, 2)  # [b, c, rows, cols]
    return F.interpolate(maps, (grid.height_px, grid.width_px), mode="bilinear", align_corners=False)


def predict(logits: Float[Tensor, "b n_patches n_classes"], grid: Grid, classes: Classes, level: str = "pixels") -> Tensor:
    """The class of each pixel `[b, height, width]`, or of each patch `[b, n_patches]`; never an ignored one.

    Args:
        level: `pixels` or `patches`.
    """
    kept = torch.tensor(classes.kept, device=logits.device)
    some = logits[..., kept] if len(kept) < len(classes) else logits
    best = upsample(some, grid).argmax(1) if level == "pixels" else some.argmax(-1)
    return kept[best]


@dataclass(frozen=True)
class Counts:
    """Pixels (or patches) of every image by class: true, predicted, and where both agree."""

    hit: Int[np.ndarray, "n_images n_classes"]
    truth: Int[np.ndarray, "n_images n_classes"]
    predicted: Int[np.ndarray, "n_images n_classes"]

    @classmethod
    def of(cls, predicted: Int[np.ndarray, "n *shape"], truth: Int[np.ndarray, "n *shape"], n_classes: int) -> Counts:
        """Counts of predictions; true values outside 0 to `n_classes - 1` are ignored."""
        counts = (truth >= 0) & (truth < n_classes)
        right = counts & (truth == predicted)
        return cls(*(by_image(labels, which, n_classes) for labels, which in ((truth, right), (truth, counts), (predicted, counts))))

    @classmethod
    def join(cls, parts: Sequence[Counts]) -> Counts:
        """Concatenate the counts over images."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("hit", "truth", "predicted")))

    @cached_property
    def totals(self) -> Float[np.ndarray, "3 n_classes"]:
        """Hits, true and predicted counts over all images."""
        return np.stack([self.hit.sum(0), self.truth.sum(0), self.predicted.sum(0)]).astype(np.float64)

    @property
    def iou(self) -> Float[np.ndarray, " n_classes"]:
        """Intersection over union of each class; NaN for one neither present nor predicted."""
        return ious(self.totals)

    @property
    def class_accuracy(self) -> Float[np.ndarray, " n_classes"]:
        """Accuracy of each class (recall); NaN for one not present."""
        return ratio(self.totals[0], self.totals[1])

    @property
    def miou(self) -> float:
        """Mean IoU over the classes present or predicted."""
        return float(np.nanmean(self.iou)) if np.isfinite(self.iou).any() else float("nan")

    @property
    def accuracy(self) -> float:
        """Share of all pixels that are correct."""
        return float(ratio(self.totals[0].sum(), self.totals[1].sum()))

    @property
    def mean_accuracy(self) -> float:
        """Mean class accuracy over the classes present."""
        found = self.class_accuracy
        return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")

    def intervals(self, seed: int = 0) -> dict[str, tuple[float, float]]:
        """95 % confidence intervals of `miou`, `accuracy` and `mean_accuracy`, by bootstrap over images."""
        stacked = np.concatenate([self.hit, self.truth, self.predicted], 1)  # [n_images, 3 n_classes]

        def of(sums: np.ndarray) -> np.ndarray:
            hit, truth, predicted = np.split(sums, 3, axis=-1)
            iou, found = ratio(hit, truth + predicted - hit), ratio(hit, truth)
            return np.stack([nanmean(iou), hit.sum(-1) / np.maximum(truth.sum(-1), 1), nanmean(found)], -1)

        low, high = interval(stacked, of, seed)
        return {name: (float(low[i]), float(high[i])) for i, name in enumerate(("miou", "accuracy", "mean_accuracy"))}


def by_image(labels: Int[np.ndarray, "n *shape"], which: Bool[np.ndarray, "n *shape"], n_classes: int) -> Int[np.ndarray, "n n_classes"]:
    """Count of each class in each image, over the places in `which`."""
    n = len(labels)
    image = np.broadcast_to(np.arange(n).reshape(-1, *[1] * (labels.ndim - 1)), labels.shape)
    cell = image[which] * n_classes + labels[which].astype(np.int64)
    return np.asarray(np.bincount(cell, minlength=n * n_classes).reshape(n, n_classes))


def ious(totals: Float[np.ndarray, "3 *n"]) -> Float[np.ndarray, "*n"]:
    """IoU from hits, true and predicted counts; NaN where both are 0."""
    return ratio(totals[0], totals[1] + totals[2] - totals[0])


def ratio(above: np.ndarray | float, below: np.ndarray | float) -> np.ndarray:
    """Quotient; NaN where the denominator is 0."""
    above, below = np.asarray(above, np.float64), np.asarray(below, np.float64)
    empty = np.full(np.broadcast(above, below).shape, np.nan)
    return np.asarray(np.divide(above, below, out=empty, where=below > 0))


def nanmean(values: np.ndarray) -> np.ndarray:
    """Mean of the finite values over the last axis; 0 if there are none."""
    there = np.isfinite(values)
    return np.asarray(np.where(there, values, 0).sum(-1) / np.maximum(there.sum(-1), 1))


def majority(shares: Float[np.ndarray, "n n_patches n_classes"]) -> Bool[np.ndarray, "n n_patches n_classes"]:
    """One-hot logits of each patch's majority class: the output of a perfect patch classifier."""
    return np.asarray(shares.argmax(-1)[..., None] == np.arange(shares.shape[-1]))
