"""The control experiment: suppress the features proposed for a class, and measure the effect on that class and on all others.

For every class:
  * the number of features and the strength are chosen on training images: of the smallest sets that flip at least `target` of the class's
    correctly classified patches and cost the other classes at most `harm`, the cheapest one; if none does, the largest flips - cost;
  * suppressing scales an activation, f' = strength x f with a strength below 1 (0 ablates), wherever the feature fires, so that
    the class need not be located, and the SAE's error is kept;
  * results are reported per pixel on validation images: `flipped`, the share of the class's correctly classified pixels that become
    misclassified; `others_lost`, the same share averaged over all other classes, so that a large background
    does not dominate; the worst of them; IoU before and after.
Baselines: random features of the same frequency, and changes of the same norm along a random direction on the same
patches. Intervals are 95 %, by bootstrap over images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from saev_core.support.progress import Track, silent
from saev_tasks.semseg.bench import PatchBench
from saev_tasks.semseg.scores import Counts, by_image, ious, nanmean, predict, ratio
from saev_tasks.shared.control_experiment import Choice, Outcome, Row, with_baselines
from saev_tasks.shared.edit_bench import Change
from saev_tasks.shared.intervals import interval
from saev_tasks.shared.patch_vectors import Classes

_PIXELS_AT_ONCE = 2**22


@dataclass(frozen=True)
class PixelOutcome(Outcome):
    """The effect of suppressing on validation images, with the IoU after it: of the class, and the mean over all others."""

    iou: float
    others_iou: float


@dataclass(frozen=True)
class PixelRow(Row[PixelOutcome]):
    """One row of the table; counts are pixels or patches."""

    iou: float
    others_iou: float
    """IoU before: of this class, and the mean over all others."""


def choose_by_patches(
    bench: PatchBench,
    truth: Int[np.ndarray, " n_rows"],
    c: int,
    features: Sequence[int],
    *,
    classes: Classes,
    sizes: Sequence[int],
    strengths: Sequence[float],
    target: float,
    harm: float,
) -> Choice:
    """Choose the number of proposed features and the strength by their effect on training patches."""
    kept = torch.tensor(classes.kept)
    before = kept[bench.before[..., kept].argmax(-1)].view(-1).numpy()
    right = before == truth
    n_right = np.bincount(truth[right], minlength=len(classes))
    tried: list[Choice] = []
    for n in sorted({min(size, len(features)) for size in sizes}):
        for strength in strengths:
            row, logits = bench.patches_after(bench.scaled(features[:n], strength))
            after = kept[logits[:, kept].argmax(-1)].numpy()
            gone = right[row] & (after != before[row])
            lost = ratio(np.bincount(truth[row][gone], minlength=len(classes)), n_right)
            others = np.delete(lost, c)
            tried.append(Choice(list(features[:n]), float(strength), float(np.nan_to_num(lost[c])), float(nanmean(others))))
    good = [one for one in tried if one.flipped >= target and one.others_lost <= harm]
    if good:
        return min(good, key=lambda one: (len(one.features), one.others_lost))
    return max(tried, key=lambda one: (one.flipped - one.others_lost, -len(one.features)))


class Sight:
    """Validation images at the reporting level: ground truth and the unedited probe's predictions."""

    def __init__(self, bench: PatchBench, truth: np.ndarray, classes: Classes, level: str) -> None:
        """
        Args:
            truth: class of each pixel `[n, height, width]`, or of each patch `[n, n_patches]`.
            level: `pixels` or `patches`.
        """
        self.bench, self.truth, self.classes, self.level = bench, truth, classes, level
        self.said = self._predict(bench.before)
        self.counts = Counts.of(self.said, truth, len(classes))
        self.right = self.counts.hit

    def _predict(self, logits: torch.Tensor) -> np.ndarray:
        grid = self.bench.readout.store.grid
        per_image = len(self.classes) * (grid.height_px * grid.width_px if self.level == "pixels" else grid.n_patches)
        step = max(1, _PIXELS_AT_ONCE // per_image)
        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        parts = [predict(part, grid, self.classes, self.level).numpy().astype(dtype) for part in torch.split(logits, step)]
        return np.concatenate(parts) if parts else self.truth[:0]

    def effect(self, change: Change) -> tuple[Int[np.ndarray, "n c"], Counts]:
        """For each image and class, how many units became misclassified; and the counts after."""
        place, logits = self.bench.after(change)
        said, truth, before = self._predict(logits), self.truth[place], self.said[place]
        n = len(self.classes)
        lost = np.zeros_like(self.right)
        lost[place] = by_image(truth, (truth < n) & (before == truth) & (said != truth), n)
        now = Counts.of(said, truth, n)
        hit, predicted = self.counts.hit.copy(), self.counts.predicted.copy()
        hit[place], predicted[place] = now.hit, now.predicted
        return lost, Counts(hit, self.counts.truth, predicted)


def pixel_outcome(sight: Sight, c: int, lost: Float[np.ndarray, "n c"], totals: Float[np.ndarray, "3 c"], seed: int) -> PixelOutcome:
    """The outcome for one class, from the losses in each image and the counts after."""
    n_right = sight.right.sum(0)
    others = [i for i in sight.classes.kept if i != c and n_right[i]]
    share = ratio(lost.sum(0), n_right)
    low, high = interval(np.concatenate([lost, sight.right], 1), _shares(c, others), seed)
    worst = max(others, key=lambda i: share[i]) if others else -1
    iou = ious(totals)
    return PixelOutcome(
        flipped=float(share[c]),
        flipped_interval=(float(low[0]), float(high[0])),
        others_lost=float(share[others].mean()) if others else float("nan"),
        others_lost_interval=(float(low[1]), float(high[1])),
        worst_lost=float(share[worst]) if others else float("nan"),
        worst_class=sight.classes.names[worst] if others else "",
        iou=float(iou[c]),
        others_iou=_mean_of(iou, c),
    )


def _shares(c: int, others: Sequence[int]) -> Callable[[np.ndarray], np.ndarray]:
    def of(sums: np.ndarray) -> np.ndarray:
        lost, right = np.split(sums, 2, axis=-1)
        share = ratio(lost, right)
        return np.stack([share[..., c], nanmean(share[..., list(others)])], -1)

    return of


def _mean_of(iou: np.ndarray, c: int) -> float:
    rest = np.delete(iou, c)
    rest = rest[np.isfinite(rest)]
    return float(rest.mean()) if len(rest) else float("nan")


def control_pixels(
    tried: PatchBench,
    labels: Int[np.ndarray, " n_rows"],
    sight: Sight,
    proposed: Mapping[int, Sequence[int]],
    *,
    sizes: Sequence[int],
    strengths: Sequence[float],
    target: float = 0.9,
    harm: float = 0.05,
    draws: int = 5,
    seed: int = 0,
    track: Track = silent,
) -> list[PixelRow]:
    """The table, one row per class with proposed features and correctly classified pixels.

    Args:
        tried: training images, with `labels` the classes of their patches.
        sight: validation images.
        proposed: class -> its features, best first.
        draws: random feature sets, and random directions, to average over.
    """
    classes, frequency = sight.classes, tried.frequency
    before = sight.counts.totals
    rows = []
    with track("control", len(proposed), "classes") as meter:
        for c, features in proposed.items():
            meter.update(1)
            if not features or not sight.right[:, c].sum():
                continue
            choice = choose_by_patches(
                tried, labels, c, features, classes=classes, sizes=sizes, strengths=strengths, target=target, harm=harm
            )
            suppressed, features_drawn, directions_drawn = with_baselines(
                sight.bench, frequency, choice, features, sight.effect, draws=draws, seed=(seed * 1_000_003 + c) % 2**32
            )
            (lost, counts), by_features, by_direction = suppressed, _mean(features_drawn), _mean(directions_drawn)
            rows.append(
                PixelRow(
                    name=classes.names[c],
                    number=c,
                    n_right=int(sight.right[:, c].sum()),
                    choice=choice,
                    iou=float(ious(before)[c]),
                    others_iou=_mean_of(ious(before), c),
                    suppressed=pixel_outcome(sight, c, lost, counts.totals, seed),
                    random_features=pixel_outcome(sight, c, *by_features, seed),
                    random_direction=pixel_outcome(sight, c, *by_direction, seed),
                    over_features=_share_interval(lost, by_features[0], sight.right, c, seed),
                    over_direction=_share_interval(lost, by_direction[0], sight.right, c, seed),
                )
            )
    return rows


def _mean(effects: Sequence[tuple[np.ndarray, Counts]]) -> tuple[Float[np.ndarray, "n c"], Float[np.ndarray, "3 c"]]:
    return np.mean([lost for lost, _ in effects], 0), np.mean([counts.totals for _, counts in effects], 0)


def _share_interval(one: np.ndarray, other: np.ndarray, right: np.ndarray, c: int, seed: int) -> tuple[float, float]:
    low, high = interval(np.stack([one[:, c] - other[:, c], right[:, c]], 1), lambda sums: ratio(sums[..., 0], sums[..., 1]), seed)
    return float(low), float(high)
