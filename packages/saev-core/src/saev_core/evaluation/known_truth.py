"""`recover`: how well single features predict a data set's ground truth.

For every factor value ("colour=red") it finds the feature and threshold that predict it best on the training images'
patches, and scores them on the held-out images. No classifier is trained: a value counts as recovered only if a
single feature predicts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int, Int8

from saev_core.data.dataset import KnownTruth
from saev_core.errors import CheckpointError, DatasetError
from saev_core.sae.checkpoint import Checkpoint
from saev_core.support.progress import Track, silent

if TYPE_CHECKING:
    from saev_core.activations.sources.image_vectors import ImageVectors

PER_OCTAVE, LOW, HIGH = 4, -10, 8
"""Thresholds tried: four per octave from 2^-10 to 2^8, in units of the SAE's activations."""
N_BINS = (HIGH - LOW) * PER_OCTAVE
_BATCH_VECTORS = 8192


@dataclass(frozen=True)
class Recovered:
    """One factor value and the feature that predicts it best; all numbers except `f1_train` are for held-out images."""

    factor: str
    value: str
    feature: int
    """-1: no feature is ever active on a patch of this value."""
    threshold: float
    """The feature predicts the value at or above this activation."""
    f1: float
    precision: float
    recall: float
    f1_train: float
    n_positive: int
    """Held-out patches for which the value is true."""


@dataclass(frozen=True)
class Recovery:
    """All factor values of a data set, and the counts behind them."""

    rows: tuple[Recovered, ...]
    n_images: int
    """Number of held-out images."""
    n_patches: int
    """Number of held-out patches that were counted."""
    n_left_out: int
    """Number of held-out patches that were not: their ground truth is undefined."""
    best_value: tuple[tuple[int, str, float], ...] = ()
    """For every feature that fires on any value, the one it predicts best on training images, such as `colour: red`, and the F1
    there at the best threshold."""

    @property
    def mean(self) -> float:
        """Mean F1 over the factor values that occur on held-out images."""
        return float(np.mean([row.f1 for row in self.rows if row.n_positive] or [0.0]))

    def factor_means(self) -> dict[str, float]:
        """Mean F1 per factor."""
        names = dict.fromkeys(row.factor for row in self.rows)
        return {name: float(np.mean([r.f1 for r in self.rows if r.factor == name and r.n_positive] or [0.0])) for name in names}

    def to_json(self) -> dict[str, Any]:
        """JSON-serialisable: `mean`, `factors`, `rows`, the counts, and `best_value` as `tells`."""
        counts = {"n_images": self.n_images, "n_patches": self.n_patches, "n_left_out": self.n_left_out}
        return {
            "mean": self.mean,
            "factors": self.factor_means(),
            "rows": [asdict(row) for row in self.rows],
            **counts,
            "tells": self.best_value,
        }

    def table(self) -> str:
        """Text table, one line per factor value."""
        lines = [f"{'factor':<10}{'value':<14}{'feature':>8}{'F1':>8}{'precision':>11}{'recall':>8}{'patches':>9}"]
        for r in self.rows:
            lines.append(f"{r.factor:<10}{r.value:<14}{r.feature:>8}{r.f1:>8.3f}{r.precision:>11.3f}{r.recall:>8.3f}{r.n_positive:>9}")
        lines += [f"{'mean':<10}{name:<14}{'':>8}{f1:>8.3f}" for name, f1 in self.factor_means().items()]
        return "\n".join([*lines, f"{'mean':<10}{'all values':<14}{'':>8}{self.mean:>8.3f}"])


def recover(checkpoint: Checkpoint, vectors: ImageVectors, dataset: KnownTruth, track: Track = silent) -> Recovery:
    """Find the best feature for every factor value on the training images, and score it on the held-out ones.

    One pass over the images, in blocks. Memory: twice 72 counts of four bytes per (factor value, feature). Thresholds are
    bin edges, so a reported F1 is exact for the reported threshold.

    Args:
        vectors: as `measure`.

    Raises:
        CheckpointError: the SAE does not read patches, no image is held out, or the vectors are of another store or model.
        DatasetError: the data set has no ground truth for its patches.
    """
    from saev_core.activations.sources.heldout import heldout_mask

    read = checkpoint.read
    if not isinstance(dataset, KnownTruth):
        raise DatasetError(f"{type(dataset).__name__} has no ground truth for patches; recovery needs `factors` and `patch_factors`.")
    if read.tokens != "patches":
        raise CheckpointError(f"recovery is per patch, but the SAE was trained on read.tokens={read.tokens}; train one on patches.")
    checkpoint.check(vectors)
    heldout = heldout_mask(vectors.n_images, read.heldout, read.split_seed)
    if not heldout.any():
        raise CheckpointError("recovery is measured on held-out images, but read.heldout is 0; train with read.heldout=0.1.")
    counts = [_Counts(len(dataset.factors), checkpoint.sae.d_sae) for _ in range(2)]  # training, held out
    grid = vectors.grid
    with track("recover", vectors.n_images, "images") as meter:
        for index, x, crop in vectors.in_order(np.arange(vectors.n_images), max(1, _BATCH_VECTORS // grid.n_patches)):
            truth = np.stack([dataset.patch_factors(int(i), grid, crop(int(i))) for i in index])  # [b, factors, patches]
            codes = checkpoint.codes(x)
            row, feature, value = (t.cpu().numpy() for t in (codes.rows, codes.feature, codes.value))
            flat = truth.swapaxes(1, 2).reshape(-1, len(dataset.factors))  # [b * patches, factors]
            held = np.repeat(heldout[index], grid.n_patches)
            for tally, mine in zip(counts, (~held, held), strict=True):
                tally.add(flat, mine, row, feature, value)
            meter.update(len(index))
    train, test = counts
    rows = tuple(_best(name, i, train, test) for i, name in enumerate(dataset.factors))
    return Recovery(rows, int(heldout.sum()), test.n_counted, test.n_left_out, _best_values(dataset.factors, train))


class _Counts:
    """Histogram of each feature's values, over all counted patches and over those of each factor value."""

    def __init__(self, n_factors: int, d_sae: int) -> None:
        self.active = np.zeros((d_sae, N_BINS), np.int64)
        self.true = np.zeros((n_factors, d_sae, N_BINS), np.int32)
        self.n_true = np.zeros(n_factors, np.int64)
        self.n_counted = self.n_left_out = 0

    def add(
        self, truth: Int8[np.ndarray, "n n_factors"], mine: np.ndarray, row: np.ndarray, feature: np.ndarray, value: np.ndarray
    ) -> None:
        """Count the codes `(row, feature, value)` of those of `n` patches that are in `mine`."""
        counted = mine & (truth >= 0).all(1)
        self.n_counted += int(counted.sum())
        self.n_left_out += int(mine.sum() - counted.sum())
        positive = (truth == 1) & counted[:, None]
        self.n_true += positive.sum(0)
        keep = counted[row] & (value > 0)
        row, cell = row[keep], feature[keep].astype(np.int64) * N_BINS + _bin(value[keep])
        self.active += np.bincount(cell, minlength=self.active.size).reshape(self.active.shape)
        entry, factor = positive[row].nonzero()
        flat = self.true.reshape(-1)
        np.add.at(flat, factor * self.active.size + cell[entry], np.ones(len(entry), flat.dtype))


def _bin(value: Float[np.ndarray, " nnz"]) -> Int[np.ndarray, " nnz"]:
    """The bin of each positive value; bin b begins at `edge(b)`, values below the first count there."""
    # searchsorted instead of a logarithm: a value at an edge must be consistent with `>= edge`.
    bins: np.ndarray = np.clip(np.searchsorted(_EDGES, value, side="right") - 1, 0, N_BINS - 1)
    return bins


_EDGES = np.exp2(LOW + np.arange(N_BINS) / PER_OCTAVE).astype(np.float32)


def _from(counts: np.ndarray) -> np.ndarray:
    """Counts at or above each bin, along the last axis."""
    above: np.ndarray = np.flip(np.flip(counts, -1).cumsum(-1, dtype=np.int64), -1)
    return above


def _f1(i: int, counts: _Counts) -> Float[np.ndarray, "d_sae n_bins"]:
    """F1 of a factor value for every feature and threshold: 2 hits / (predicted + true)."""
    return np.asarray(2 * _from(counts.true[i]) / np.maximum(_from(counts.active) + counts.n_true[i], 1))


def _best_values(factors: Sequence[str], train: _Counts) -> tuple[tuple[int, str, float], ...]:
    """`Recovery.best_value`."""
    f1 = np.stack([_f1(i, train).max(1) for i in range(len(factors))])  # [n_factors, d_sae]
    best = f1.argmax(0)
    return tuple(
        (int(feature), factors[best[feature]].replace("=", ": ", 1), round(float(f1[best[feature], feature]), 4))
        for feature in np.flatnonzero(f1.max(0) > 0)
    )


def _best(name: str, i: int, train: _Counts, test: _Counts) -> Recovered:
    factor, _, value = name.partition("=")
    f1 = _f1(i, train)
    feature, low = divmod(int(f1.argmax()), N_BINS)
    n_true = int(test.n_true[i])
    if f1[feature, low] == 0:
        return Recovered(factor, value, -1, 0.0, 0.0, 0.0, 0.0, 0.0, n_true)
    hits, yes = int(test.true[i, feature, low:].sum()), int(test.active[feature, low:].sum())
    threshold = float(_EDGES[low]) if low else 0.0
    return Recovered(
        factor=factor,
        value=value,
        feature=feature,
        threshold=threshold,
        f1=2 * hits / max(yes + n_true, 1),
        precision=hits / max(yes, 1),
        recall=hits / max(n_true, 1),
        f1_train=float(f1[feature, low]),
        n_positive=n_true,
    )
