"""`State`: a control tab's picture, edits and patches, as its page requests them and links encode them. Independent of gradio.

The page holds the state and its history, so undo is free; it is validated here, since a link can contain anything.
Example link: `?tab=classification&image=17&edits=12:1.5,40:-1&where=3-8_20`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saev_core.errors import UsageError

MIN_STRENGTH, MAX_STRENGTH = -1.0, 2.0
"""Slider range. -1 turns the feature off; 2 adds twice its largest value on any picture."""


@dataclass(frozen=True)
class State:
    """One picture and its edits."""

    image: int
    edits: tuple[tuple[int, float], ...] = ()
    """Feature numbers and strengths: below 0, remove that share of the activation; above 0, add that many times the feature's
    largest value; 0 changes nothing."""
    where: tuple[int, ...] | None = None
    """Patches on which the edits act; None: all."""

    @classmethod
    def of(cls, asked: Mapping[str, Any], *, n_images: int, d_sae: int, n_patches: int) -> State:
        """Parse and validate a page's request.

        Raises:
            UsageError: a picture, feature or patch does not exist, or a strength is not a number.
        """
        image = _whole(asked.get("image", 0), "picture", n_images, f"This run has pictures 0 to {n_images - 1}.")
        told = f"This SAE has features 0 to {d_sae - 1}."
        edits = {}
        for feature, strength in _pairs(asked.get("edits") or ()):
            if not isinstance(strength, int | float) or not math.isfinite(strength):
                raise UsageError(f"Strength {strength!r} of feature {feature} is not a number.")
            edits[_whole(feature, "feature", d_sae, told)] = min(max(float(strength), MIN_STRENGTH), MAX_STRENGTH)
        where = None
        if asked.get("where"):
            patches = {_whole(patch, "patch", n_patches, f"A picture has patches 0 to {n_patches - 1}.") for patch in asked["where"]}
            where = tuple(sorted(patches))
        return cls(image, tuple(sorted((feature, s) for feature, s in edits.items() if s != 0)), where)


def _whole(value: Any, what: str, n: int, told: str) -> int:
    """Check that a value is a whole number from 0 to n - 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or not 0 <= value < n:
        raise UsageError(f"There is no {what} {value}. {told}")
    return int(value)


def _pairs(edits: Any) -> list[tuple[Any, Any]]:
    if not isinstance(edits, Sequence) or any(not isinstance(edit, Sequence) or len(edit) != 2 for edit in edits):
        raise UsageError("The edits in this link cannot be parsed; expected a form like edits=12:1.5,40:-1.")
    return [(feature, strength) for feature, strength in edits]
