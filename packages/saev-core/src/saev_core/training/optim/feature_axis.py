"""The feature axes of parameters, for resetting an optimiser's state per feature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")

FeatureAxes = Mapping[str, int | None]
"""Parameter name -> its feature axis, None if it has none; from `SAE.feature_axes`."""


def along_features(parameters: Mapping[str, T], axes: FeatureAxes) -> Iterator[tuple[str, T, int]]:
    """Name, parameter and axis of every parameter with a feature axis."""
    for name, parameter in parameters.items():
        if (axis := axes[name]) is not None:
            yield name, parameter, axis
