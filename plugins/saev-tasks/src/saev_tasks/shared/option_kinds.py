"""Option types shared by several tasks; every `Config` already rejects non-finite numbers."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator


def _moves(values: tuple[float, ...]) -> tuple[float, ...]:
    if 0 in values:
        raise ValueError("learning rates must be above 0")
    return _decays(values)


def _decays(values: tuple[float, ...]) -> tuple[float, ...]:
    if min(values) < 0:
        raise ValueError("must be finite numbers, 0 or above")
    return values


def _some(values: tuple[int, ...]) -> tuple[int, ...]:
    if min(values) < 1:
        raise ValueError("must be at least one feature")
    return values


Rates = Annotated[tuple[float, ...], AfterValidator(_moves)]
"""Learning rates, above 0."""
Decays = Annotated[tuple[float, ...], AfterValidator(_decays)]
"""Weight decays, 0 or above."""
Sizes = Annotated[tuple[int, ...], AfterValidator(_some)]
"""Numbers of features, 1 or above."""
