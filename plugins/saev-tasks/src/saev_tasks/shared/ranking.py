"""Features as rankings of units: average precision, AUROC and purity of every pair of a feature and a class, exact, from sparse codes.

Units on which a feature does not fire are tied at 0, below its positive values and above its negative ones; ties count as
in scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

Array = np.ndarray


@dataclass(frozen=True)
class Members:
    """The classes of each unit, in CSR order: unit i has `klass[offsets[i] : offsets[i + 1]]`."""

    offsets: Int[np.ndarray, " n_units_plus_1"]
    klass: Int[np.ndarray, " nnz"]
    n_classes: int

    @property
    def n_units(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def size(self) -> Int[np.ndarray, " n_classes"]:
        """Number of units of each class."""
        return np.bincount(self.klass, minlength=self.n_classes)

    def of(self, unit: Int[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"]]:
        """Every class of the given units: index into `unit`, and class."""
        first = self.offsets[unit].astype(np.int64)
        many = self.offsets[unit + 1].astype(np.int64) - first
        place = np.repeat(np.arange(len(unit)), many)
        within = np.arange(len(place)) - np.repeat(np.cumsum(many) - many, many)
        return place, self.klass[first[place] + within]


@dataclass(frozen=True)
class Ranked:
    """For each pair: average precision, AUROC, and the share of the class among the feature's `k` strongest units."""

    ap: Float[np.ndarray, "n_features n_classes"]
    auroc: Float[np.ndarray, "n_features n_classes"]
    purity: Float[np.ndarray, "n_features n_classes"]


def order(feature: Int[np.ndarray, " nnz"], unit: Int[np.ndarray, " nnz"], value: Float[np.ndarray, " nnz"]) -> Int[np.ndarray, " nnz"]:
    """Permutation that sorts entries by feature, then descending value, then unit; independent of input order."""
    return np.lexsort((unit, -value, feature))


def rank(
    feature: Int[np.ndarray, " nnz"],
    unit: Int[np.ndarray, " nnz"],
    value: Float[np.ndarray, " nnz"],
    members: Members,
    n_features: int,
    k: int,
) -> Ranked:
    """Rank every pair of `n_features` features and the classes.

    AP = sum over thresholds of (recall gained) x precision, as `sklearn.metrics.average_precision_score`; AUROC = the probability
    that a unit of the class has a higher value than one that is not, ties counting half. NaN for a class with no units, or all of them.
    If a feature fires on fewer than `k` units, the missing ones count as impure.

    Args:
        feature, unit, value: entries that are not 0, sorted by `order`.
    """
    n_classes, n_units, size = members.n_classes, members.n_units, members.size.astype(np.float64)
    shape = (n_features, n_classes)
    place, klass = members.of(unit)
    key = feature[place].astype(np.int64) * n_classes + klass
    by_pair = np.argsort(key, kind="stable")  # within a pair: descending values
    key, place = key[by_pair], place[by_pair]

    n_entries = np.bincount(feature, minlength=n_features)
    n_above = np.bincount(feature[value > 0], minlength=n_features)
    silent = n_units - n_entries
    start = np.cumsum(n_entries) - n_entries
    # Ranks at the ends of each entry's tie; zeros are between positive and negative values.
    fresh = np.ones(len(value), bool)
    fresh[1:] = (feature[1:] != feature[:-1]) | (value[1:] != value[:-1])
    first, last = _runs(fresh)
    below = np.where(value < 0, silent[feature], 0)
    upto = last + 1 - start[feature] + below  # units with this value or a higher one
    above = first - start[feature] + below  # units with a higher value

    hits = np.bincount(key, minlength=n_features * n_classes).reshape(shape)
    hits_above = np.bincount(key[value[place] > 0], minlength=n_features * n_classes).reshape(shape)
    missed = size - hits  # units of the class on which the feature does not fire
    begins = np.cumsum(hits.reshape(-1)) - hits.reshape(-1)
    fresh = np.ones(len(key), bool)
    fresh[1:] = (key[1:] != key[:-1]) | (first[place][1:] != first[place][:-1])
    first_hit, last_hit = _runs(fresh)
    under = np.where(value[place] < 0, missed.reshape(-1)[key], 0)
    hit_upto = last_hit + 1 - begins[key] + under
    hit_above = first_hit - begins[key] + under

    gained = np.bincount(key, weights=hit_upto / upto[place], minlength=n_features * n_classes).reshape(shape)
    silent_rank = (n_above + silent)[:, None]
    gained += np.where(missed > 0, missed * (hits_above + missed) / np.maximum(silent_rank, 1), 0)

    # For each hit: negatives with a lower value, plus half of the tied ones.
    others = n_units - size
    lower = (n_units - upto[place]) - (size[key % n_classes] - hit_upto)
    tied = (upto - above)[place] - (hit_upto - hit_above)
    won: Array = np.bincount(key, weights=lower + 0.5 * tied, minlength=n_features * n_classes).reshape(shape)
    negative = n_entries - n_above
    won = won + missed * (negative[:, None] - (hits - hits_above) + 0.5 * (silent[:, None] - missed))

    strongest = np.arange(len(value)) - start[feature] < np.minimum(k, n_above[feature])
    pure = np.bincount(key[strongest[place]], minlength=n_features * n_classes).reshape(shape) / k
    with np.errstate(divide="ignore", invalid="ignore"):
        ap, auroc = gained / size, won / (size * others)
    defined = (size > 0) & (others > 0)
    return Ranked(np.where(size > 0, ap, np.nan), np.where(defined, auroc, np.nan), np.where(size > 0, pure, np.nan))


def _runs(fresh: Array) -> tuple[Array, Array]:
    """First and last index of each entry's run of ties; `fresh` marks where runs begin."""
    begins = np.flatnonzero(fresh)
    number = np.cumsum(fresh) - 1
    ends = np.append(begins[1:], len(fresh)) - 1
    return begins[number], ends[number]
