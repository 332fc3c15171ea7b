"""`FeatureTable`: all features' numbers as columns, to search, filter and sort. Does not import gradio."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

import numpy as np
from jaxtyping import Bool, Float, Int

from saev_core import FeatureIndex
from saev_viz.run_view.choose_features import common_label, purity

Numbers = Float[np.ndarray, " d_sae"]

NUMBER = "number"
"""Sort key: the feature number."""
GOES_WITH = 0.2
"""Fraction of a feature's top pictures that must have a label for a search by that label to match."""
_BLOCK = 2048
"""Features per purity computation; bounds memory."""
_WORD = re.compile(r'(?:\w+:)?"[^"]*"?|\S+')
_HALF_TYPED = re.compile(r"#|\w+[<>]=?[-+]?\.?|(?:name|label|note):|\"+")
_COMPARISON = re.compile(r"(\w+)(<=|>=|<|>)([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)(%?)")


class Column:
    """One number per feature, computed on first access."""

    def __init__(
        self,
        title: str,
        help: str,
        values: Numbers | Callable[[], Numbers],
        *,
        log: bool = False,
        one: Callable[[int], float] | None = None,
    ) -> None:
        """
        Args:
            help: one-sentence definition, with the formula in words.
            values: the numbers, or a function that computes them; NaN where a feature has none.
            log: whether it spans orders of magnitude.
            one: computes a single feature's number, if faster than computing all.
        """
        self.title, self.help, self.log = title, help, log
        self._from, self._one = values, one
        self._lock = Lock()

    @property
    def values(self) -> Numbers:
        """The numbers."""
        with self._lock:
            if callable(self._from):
                self._from = self._from()
            return self._from

    def at(self, feature: int) -> float:
        """The number of one feature."""
        if self._one is not None and callable(self._from):
            return self._one(feature)
        return float(self.values[feature])


@dataclass(frozen=True)
class Query:
    """A search; all non-empty parts must match."""

    text: str = ""
    """Words that must occur in a feature's name, labels, known truth or note, `"two words"` as a phrase; `name:`, `label:` and
    `note:` restrict a word to that field; `123` or `#123` is feature 123; `frequency<1%` and the like compare a column."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Column -> minimum and maximum, inclusive; features without a value are left out."""
    sort: str = "max"
    ascending: bool = False
    alive: bool = True
    """Exclude features that never fire."""


class FeatureTable:
    """Columns by name, and the searchable text of each feature."""

    def __init__(
        self,
        columns: Mapping[str, Column],
        d_sae: int,
        *,
        names: Mapping[int, tuple[str, float]] | None = None,
        truth: Mapping[int, Sequence[tuple[str, float]]] | None = None,
        top_labels: Int[np.ndarray, "d_sae k"] | None = None,
        classes: Sequence[str] = (),
    ) -> None:
        """
        Args:
            names: proposed name and its score, by feature; the others are unnamed.
            truth: ground-truth values that a feature detects, with F1, best first.
            top_labels: labels of each feature's top pictures, -1 where unknown.
            classes: names of the labels.
        """
        self.columns = dict(columns)
        self.names = [""] * d_sae
        """Proposed name of each feature; empty if it has none."""
        self.scores: dict[int, float] = {}
        for feature, (name, score) in (names or {}).items():
            if 0 <= feature < d_sae:
                self.names[feature], self.scores[feature] = name, score
        self.truth = {feature: list(found) for feature, found in (truth or {}).items() if 0 <= feature < d_sae}
        self.classes = list(classes)
        self._top_labels = top_labels

    @classmethod
    def of(
        cls,
        index: FeatureIndex,
        classes: Sequence[str] = (),
        *,
        labels: Int[np.ndarray, " n_images"] | None = None,
        names: Mapping[int, tuple[str, float]] | None = None,
        truth: Mapping[int, Sequence[tuple[str, float]]] | None = None,
        stability: Numbers | None = None,
    ) -> FeatureTable:
        """The table of an index.

        Args:
            classes: names of its labels.
            labels: label of each image, -1 where unknown.
            names, truth: as `FeatureTable`.
            stability: each feature's agreement with SAEs of other seeds.
        """
        d_sae, k = index.top_index.shape
        columns = {
            "max": Column("Largest value", "The feature's maximum value over all patches of all pictures.", index.max, log=True),
            "mean": Column("Mean value", "Its mean value over the patches on which it fires.", index.mean, log=True),
            "frequency": Column(
                "Frequency", "Fraction of all patches on which it fires, i.e. has a value above 0 (0.01 is 1 %).", index.frequency, log=True
            ),
            "image_frequency": Column(
                "Image frequency", "Fraction of all pictures with at least one patch on which it fires.", index.image_frequency, log=True
            ),
            "monosemanticity": Column(
                "Monosemanticity",
                "Similarity of the pictures on which it fires: mean cosine similarity over pairs of pictures, each pair weighted by how "
                "strongly the feature fires on both. 1: all alike; about 0: no more similar than random pairs.",
                lambda: index.monosemanticity,
            ),
            "concentration": Column(
                "Concentration",
                "How localised it is: 1 minus the effective fraction of patches on which it fires, weighted by "
                "strength, mean over its top pictures. Near 1: a single patch; 0: the whole picture evenly.",
                lambda: index.concentration,
            ),
        }
        known = labels is not None and bool((labels >= 0).any())
        top_labels = None
        if labels is not None and known:
            top_labels = np.where(index.top_index >= 0, labels[index.top_index], -1).astype(np.int32)
            there, of = index.top_index, labels
            columns["purity"] = Column(
                f"Label purity@{k}",
                f"Fraction of its {k} top pictures that have their most common label; missing pictures lower it.",
                lambda: _purity(there, of),
                one=lambda feature: float(_purity(there[feature : feature + 1], of)[0]),
            )
        if index.has_labels:
            columns["lift"] = Column(
                "Lift of its best label",
                "How many times more often than by chance one label occurs among the pictures on which it fires: the label's fraction of "
                "those pictures over its fraction of all pictures; shrunk towards 1 if there are few such pictures.",
                lambda: index.best_labels[1],
                log=True,
                one=lambda feature: next((told.lift for told in index.labels(feature, 1)), np.nan),
            )
        if stability is not None and len(stability) == d_sae:
            columns["stability"] = Column(
                "Stability across seeds",
                "Whether SAEs trained with other seeds find it again: cosine similarity of its decoder direction and its matched "
                "partner's, mean over the other seeds. 1: identical; 0: not found.",
                stability,
            )
        if names:
            scores = np.full(d_sae, np.nan)
            for feature, (_, score) in names.items():
                if 0 <= feature < d_sae:
                    scores[feature] = score
            columns["name_score"] = Column(
                "Name score",
                "How well the proposed name predicts, on held-out pictures, whether the feature fires: the fraction of "
                "pairs of a firing and a non-firing picture that it ranks correctly (AUROC). 0.5: chance; 1: perfect.",
                scores,
            )
        return cls(columns, d_sae, names=names, truth=truth, top_labels=top_labels, classes=classes)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def alive(self) -> Bool[np.ndarray, " d_sae"]:
        """Features that fire at all."""
        return np.asarray(self.columns["frequency"].values > 0)

    @cached_property
    def common(self) -> Int[np.ndarray, " d_sae"]:
        """The label of at least half of each feature's top pictures; -1: none."""
        if self._top_labels is None:
            return np.full(len(self), -1)
        n = int(self._top_labels.max(initial=-1)) + 1
        # `common_label` looks labels up by image number: here each label is its own image number.
        return common_label(self._top_labels, np.arange(max(n, 1)))

    def title(self, feature: int) -> str:
        """A feature's title: its proposed name, else the ground-truth value it detects, else its top pictures' label, else empty."""
        if self.names[feature]:
            return self.names[feature]
        if feature in self.truth:
            return self.truth[feature][0][0]
        return self.label(int(self.common[feature]))

    def label(self, number: int) -> str:
        """Name of a label; empty for -1."""
        if number < 0:
            return ""
        return self.classes[number] if number < len(self.classes) else f"label {number}"

    def find(self, query: Query, notes: Mapping[int, str] | None = None) -> Int[np.ndarray, " n"]:
        """Matching features, sorted; those without a value come last.

        Args:
            notes: users' notes, by feature.

        Raises:
            ValueError: the query names an unknown column.
        """
        keep = self.alive if query.alive else np.ones(len(self), bool)
        for key, (low, high) in query.ranges.items():
            values = self.columns[self._column(key)].values
            keep = keep & (values >= low) & (values <= high)  # NaN is in no range
        keep = keep & self._matches(query.text, notes or {})
        found = np.flatnonzero(keep)
        if query.sort == NUMBER:
            return found if query.ascending else found[::-1]
        values = np.asarray(self.columns[self._column(query.sort)].values[found], float)
        # Ties keep feature order in both directions; numpy puts NaN last.
        return np.asarray(found[np.argsort(values if query.ascending else -values, kind="stable")])

    def _column(self, name: str) -> str:
        """A column by its key or a unique prefix of it."""
        if name in self.columns:
            return name
        fitting = [key for key in self.columns if key.startswith(name.lower())]
        if len(fitting) != 1:
            raise ValueError(f"unknown column {name!r}; choose one of {', '.join(self.columns)}.")
        return fitting[0]

    def _matches(self, text: str, notes: Mapping[int, str]) -> Bool[np.ndarray, " d_sae"]:
        keep = np.ones(len(self), bool)
        for word in _WORD.findall(text.lower()):
            if comparison := _COMPARISON.fullmatch(word):
                name, sign, number, percent = comparison.groups()
                values, bound = self.columns[self._column(name)].values, float(number) / (100 if percent else 1)
                keep &= {"<": values < bound, "<=": values <= bound, ">": values > bound, ">=": values >= bound}[sign]
            elif _HALF_TYPED.fullmatch(word):
                continue  # incomplete while typing
            elif re.fullmatch(r"#?\d+", word):
                keep &= np.arange(len(self)) == int(word.lstrip("#"))
            else:
                where, _, rest = word.partition(":")
                where, rest = (where, rest) if where in ("name", "label", "note") and rest else ("", word)
                keep &= self._named(rest.strip('"'), where, notes)
        return keep

    def _named(self, word: str, where: str, notes: Mapping[int, str]) -> Bool[np.ndarray, " d_sae"]:
        """Features whose name, labels, ground truth or note contain `word`."""
        found = np.zeros(len(self), bool)
        if where in ("", "name"):
            found |= np.fromiter((word in name for name in self._lower), bool, len(self))
        if where in ("", "label"):
            numbers = [i for i, name in enumerate(self.classes) if word in name.lower()]
            if numbers and self._top_labels is not None:
                top = self._top_labels
                some = (top >= 0).sum(1)
                found |= (some > 0) & (np.isin(top, numbers).sum(1) >= np.maximum(GOES_WITH * some, 1))
            for feature, told in self.truth.items():
                if any(word in what.lower() for what, _ in told):
                    found[feature] = True
        if where in ("", "note"):
            for feature, note in notes.items():
                if 0 <= feature < len(self) and word in note.lower():
                    found[feature] = True
        return found

    @cached_property
    def _lower(self) -> list[str]:
        return [name.lower() for name in self.names]


def _purity(top_index: Int[np.ndarray, "d_sae k"], labels: Int[np.ndarray, " n_images"]) -> Numbers:
    """Purity of each feature's top pictures; NaN if none of them has a known label."""
    parts = [purity(top_index[start : start + _BLOCK], labels) for start in range(0, len(top_index), _BLOCK)]
    found = np.concatenate(parts).astype(np.float32)
    return np.where(found > 0, found, np.nan)
