"""`FeatureTable`: every feature's numbers side by side, to search, filter and sort. Knows no gradio."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from saev_core.features import FeatureIndex

Numbers = Float[np.ndarray, " d_sae"]


@dataclass(frozen=True)
class Column:
    """One number of every feature."""

    title: str
    help: str
    """One sentence that says what it is."""
    values: Numbers
    log: bool = False
    """Whether it spans orders of magnitude and is drawn and filtered by its logarithm."""


@dataclass(frozen=True)
class Query:
    """What a person looks for; every part that is not empty must hold."""

    text: str = ""
    """Words that must occur in a feature's name, labels or note; `123` or `#123` is feature 123 itself; `frequency<0.01`
    and so on compare a column."""
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Column -> least and largest value, ends included."""
    sort: str = "max"
    ascending: bool = False
    alive: bool = True
    """Leave out features that never fire."""


class FeatureTable:
    """Columns by name, and for each feature the words that a search looks through."""

    def __init__(self, columns: Mapping[str, Column], words: Sequence[str]) -> None:
        self.columns = dict(columns)
        self.words = list(words)
        self.names = [""] * len(self.words)
        """What a feature is called, where something says so."""
        self.notes: dict[int, str] = {}
        """What people wrote, by feature; searched too."""

    @classmethod
    def of(cls, index: FeatureIndex, classes: Sequence[str] = ()) -> FeatureTable:
        """The table of an index; `classes` names its labels."""
        columns = {
            "frequency": Column("Frequency", "Share of patches that fire the feature.", index.frequency, log=True),
            "image_frequency": Column("Image frequency", "Share of images with such a patch.", index.image_frequency, log=True),
            "mean": Column("Mean value", "Mean of the values that are not zero.", index.mean, log=True),
            "max": Column("Largest value", "Largest value anywhere.", index.max, log=True),
        }
        return cls(columns, [""] * index.d_sae)

    def __len__(self) -> int:
        return len(self.words)

    @property
    def alive(self) -> Bool[np.ndarray, " d_sae"]:
        """Features that fire at all."""
        return np.asarray(self.columns["frequency"].values > 0)

    def find(self, query: Query) -> Int[np.ndarray, " n"]:
        """Features that match, in order.

        Raises:
            ValueError: the text compares a column that is not there.
        """
        keep = self.alive if query.alive else np.ones(len(self), bool)
        for key, (low, high) in query.ranges.items():
            values = self.columns[key].values
            keep = keep & (values >= low) & (values <= high)
        keep = keep & self._matches(query.text)
        found = np.flatnonzero(keep)
        values = self.columns[query.sort].values[found] if query.sort in self.columns else found
        # Equal values keep their number's order in both directions.
        return np.asarray(found[np.argsort(values if query.ascending else -np.asarray(values, float), kind="stable")])

    def _matches(self, text: str) -> Bool[np.ndarray, " d_sae"]:
        keep = np.ones(len(self), bool)
        for word in text.lower().split():
            if comparison := re.fullmatch(r"(\w+)([<>]=?)([-+.\de]+)", word):
                name, sign, number = comparison.groups()
                if name not in self.columns:
                    raise ValueError(f"there is no column {name!r}; there are {', '.join(self.columns)}.")
                values, bound = self.columns[name].values, float(number)
                keep &= {"<": values < bound, "<=": values <= bound, ">": values > bound, ">=": values >= bound}[sign]
            elif re.fullmatch(r"#?\d+", word):
                keep &= np.arange(len(self)) == int(word.lstrip("#"))
            else:
                keep &= np.fromiter(
                    (word in known or word in self.notes.get(i, "").lower() for i, known in enumerate(self.words)), bool, len(self)
                )
        return keep
