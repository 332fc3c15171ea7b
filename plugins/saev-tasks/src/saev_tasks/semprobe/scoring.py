"""Features as detectors: how well `activation >= threshold` separates the images, or patches, of a concept from others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csc_array

from saev_core import Checkpoint
from saev_core.support.progress import Track, silent
from saev_tasks.semprobe.curated import Curated
from saev_tasks.shared.peaks import peaks
from saev_tasks.shared.ranking import Members, order, rank


def activate(
    checkpoint: Checkpoint, curated: Curated, per_image: bool, track: Track = silent
) -> tuple[csc_array, Int[np.ndarray, " n_units"]]:
    """Activations `[n_units, d_sae]` of all patches, or of images, as the maximum over their patches; and the index of
    each unit's image. Unreadable images are skipped.
    """
    rows, columns, values, places = [], [], [], []
    n_units, d_sae = 0, checkpoint.sae.d_sae
    with track("activate", len(curated.images), "images") as meter:
        for place, x, _ in curated.activations():
            codes = checkpoint.codes(x)
            row, feature, value = (part.cpu().numpy() for part in (codes.rows, codes.feature, codes.value))
            if per_image:
                row, feature, value = peaks(row // x.shape[1], feature, value, d_sae)
            units = place if per_image else np.repeat(place, x.shape[1])
            rows.append(row[value > 0] + n_units)
            columns.append(feature[value > 0])
            values.append(value[value > 0])
            places.append(units)
            n_units += len(units)
            meter.update(len(place))
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return csc_array(entries, shape=(n_units, d_sae)), np.concatenate(places)


@dataclass(frozen=True)
class Detected:
    """Scores of each feature for one concept; a threshold is a share of the feature's largest recorded value, 0: it fires at all."""

    precision: Float[np.ndarray, "n_thresholds d_sae"]
    """0 if the feature never exceeds the threshold."""
    recall: Float[np.ndarray, "n_thresholds d_sae"]
    f1: Float[np.ndarray, "n_thresholds d_sae"]
    auroc: Float[np.ndarray, " d_sae"]
    n_positive: int
    n_negative: int


def detect(
    codes: csc_array,
    true: Bool[np.ndarray, " n_units"],
    counts: Bool[np.ndarray, " n_units"],
    thresholds: Sequence[float],
    largest: Float[np.ndarray, " d_sae"],
) -> Detected:
    """Score every feature as a detector of `true`, among the units that count."""
    units = np.flatnonzero(counts)
    mine = csc_array(codes[units])
    mine.sort_indices()
    y, d_sae = true[units], mine.shape[1]
    feature, unit, value = np.repeat(np.arange(d_sae), np.diff(mine.indptr)), mine.indices, mine.data
    n_true = int(y.sum())
    out = np.zeros((3, len(thresholds), d_sae))
    for i, threshold in enumerate(thresholds):
        yes = value >= threshold * largest[feature] if threshold > 0 else value > 0
        said = np.bincount(feature[yes], minlength=d_sae)
        right = np.bincount(feature[yes & y[unit]], minlength=d_sae)
        out[:, i] = right / np.maximum(said, 1), right / max(n_true, 1), 2 * right / np.maximum(said + n_true, 1)
    by = order(feature, unit, value)
    members = Members(np.concatenate([[0], np.cumsum(y)]), np.zeros(n_true, np.int64), 1)
    auroc = rank(feature[by], unit[by], value[by], members, d_sae, 1).auroc[:, 0]
    return Detected(out[0], out[1], out[2], auroc, n_true, len(y) - n_true)


def halves(
    true: Bool[np.ndarray, "n n_concepts"], negative: Bool[np.ndarray, " n"], share: float, seed: int
) -> tuple[Bool[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Images to choose features on, and images to report on: `share` of every concept and of the negatives, at least one image
    of each on both sides. If `share` is 0, or a concept or the negatives have a single image, all are on both sides.
    """
    group = np.where(negative, -1, np.where(true.any(1), true.argmax(1), -1))
    rng = np.random.RandomState(seed % 2**32)
    val = np.zeros(len(true), bool)
    for one in np.unique(group):
        mine = rng.permutation(np.flatnonzero(group == one))
        if share == 0 or len(mine) < 2:
            return np.ones(len(true), bool), np.ones(len(true), bool)
        val[mine[: min(max(round(len(mine) * share), 1), len(mine) - 1)]] = True
    return ~val, val
