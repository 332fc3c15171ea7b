"""The control experiment: suppress the features proposed for a class, and measure the effect on its images and on all others.

For every class:
  * the number of features and the strength are chosen on training images: at the first strength that allows it, the smallest set that
    flips at least `target` of the class's correctly classified images and costs the others at most `harm`; if none does, the set with
    the largest flips - cost;
  * suppressing scales an activation, f' = strength x f with strength 0 (ablation) or below, wherever the feature fires, so that
    the object need not be located, and the SAE's error is kept;
  * results are reported on validation images: `flipped`, the share of the class's correctly classified images that become misclassified,
    `others_lost`, the same share of all other classes' images, and the share of the class that loses most.
Baselines: random features of the same frequency, and changes of the same norm along a random direction on the same
tokens, averaged over several draws. Intervals are 95 %: Wilson for shares, bootstrap over images for differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from saev_core.support.progress import Track, silent
from saev_tasks.classification.bench import ImageBench
from saev_tasks.shared.control_experiment import Choice, Outcome, Row, with_baselines
from saev_tasks.shared.intervals import wilson

N_RESAMPLES = 1000


def image_outcome(bench: ImageBench, c: int, lost: Float[np.ndarray, " n"], names: Sequence[str]) -> Outcome:
    """The outcome for one class.

    Args:
        lost: for each image, whether it was lost, or the share of draws in which it was.
    """
    right, mine = bench.right, bench.labels == c
    n_mine, n_others = int((right & mine).sum()), int((right & ~mine).sum())
    gone, others = float(lost[mine].sum()), float(lost[~mine].sum())
    n_each = np.bincount(bench.labels[right], minlength=len(names))
    each = np.bincount(bench.labels, lost, minlength=len(names)) / np.maximum(n_each, 1)
    each[c] = -1
    worst = int(each.argmax())
    # Over several draws the share is a mean, but the number of images does not grow: the interval is conservative.
    return Outcome(
        gone / max(n_mine, 1),
        wilson(gone, n_mine),
        others / max(n_others, 1),
        wilson(others, n_others),
        float(each[worst]),
        names[worst],
    )


def choose_by_images(
    bench: ImageBench, c: int, features: Sequence[int], *, sizes: Sequence[int], strengths: Sequence[float], target: float, harm: float
) -> Choice:
    """Choose the number of proposed features and the strength by their effect on training images."""
    right, mine = bench.right, bench.labels == c
    n_mine, n_others = max(1, int((right & mine).sum())), max(1, int((right & ~mine).sum()))

    def lost(features: Sequence[int], strength: float) -> float:
        return float(bench.wrong(bench.scaled(features, strength), ~mine).sum() / n_others)

    tried: list[Choice] = []
    for strength in strengths:
        for n in sorted({min(size, len(features)) for size in sizes}):
            some = list(features[:n])
            flipped = float(bench.wrong(bench.scaled(some, strength), mine).sum() / n_mine)
            # There are many other images: evaluate them only where needed.
            cost = lost(some, strength) if flipped >= target else float("nan")
            one = Choice(some, float(strength), flipped, cost)
            if flipped >= target and cost <= harm:
                return one
            tried.append(one)
    best: Choice | None = None
    for one in sorted(tried, key=lambda one: (-one.flipped, len(one.features), -one.strength)):
        if best is not None and one.flipped <= best.flipped - best.others_lost:
            break
        cost = one.others_lost if np.isfinite(one.others_lost) else lost(one.features, one.strength)
        if best is None or one.flipped - cost > best.flipped - best.others_lost:
            best = replace(one, others_lost=cost)
    assert best is not None
    return best


def control_images(
    tried: ImageBench,
    bench: ImageBench,
    proposed: Mapping[int, Sequence[int]],
    names: Sequence[str],
    *,
    sizes: Sequence[int],
    strengths: Sequence[float],
    target: float = 0.9,
    harm: float = 0.05,
    draws: int = 5,
    seed: int = 0,
    track: Track = silent,
) -> list[Row[Outcome]]:
    """The table, one row per class with proposed features and correctly classified validation images.

    Args:
        tried: training images, for choosing what to suppress.
        bench: validation images.
        proposed: class -> its features, best first.
        draws: random feature sets, and random directions, to average over.
    """
    rows, frequency, right = [], tried.frequency, bench.right
    with track("control", len(proposed), "classes") as meter:
        for c, features in proposed.items():
            meter.update(1)
            if not features or not (right & (bench.labels == c)).any():
                continue
            choice = choose_by_images(tried, c, features, sizes=sizes, strengths=strengths, target=target, harm=harm)
            lost, features_lost, direction_lost = with_baselines(
                bench, frequency, choice, features, lambda change: bench.wrong(change).astype(float),
                draws=draws, seed=(seed * 1_000_003 + c) % 2**32,
            )  # fmt: skip
            by_features, by_direction = np.mean(features_lost, 0), np.mean(direction_lost, 0)
            mine = right & (bench.labels == c)
            rows.append(
                Row(
                    name=names[c],
                    number=c,
                    n_right=int(mine.sum()),
                    choice=choice,
                    suppressed=image_outcome(bench, c, lost, names),
                    random_features=image_outcome(bench, c, by_features, names),
                    random_direction=image_outcome(bench, c, by_direction, names),
                    over_features=_mean_interval((lost - by_features)[mine], seed),
                    over_direction=_mean_interval((lost - by_direction)[mine], seed),
                )
            )
    return rows


def _mean_interval(difference: Float[np.ndarray, " n"], seed: int) -> tuple[float, float]:
    """95 % interval of the mean, by bootstrap over images, percentile method."""
    rng = np.random.RandomState(seed % 2**32)
    means = difference[rng.randint(0, len(difference), (N_RESAMPLES, len(difference)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
