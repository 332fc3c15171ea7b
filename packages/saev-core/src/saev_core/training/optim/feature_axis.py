"""Where an optimiser's state of some features lies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")

FeatureAxes = Mapping[str, int | None]
"""Name of a parameter -> which of its axes counts features, None where none does; `SAE.feature_axes` says so."""


def along_features(parameters: Mapping[str, T], axes: FeatureAxes) -> Iterator[tuple[str, T, int]]:
    """Name, parameter and axis of those that have features."""
    for name, parameter in parameters.items():
        if (axis := axes[name]) is not None:
            yield name, parameter, axis
