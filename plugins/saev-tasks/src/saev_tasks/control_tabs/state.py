"""`State`: what a control tab shows, as its page asks for it and as a link carries it: picture, edits, patches. Knows no gradio.

The page holds the state and its past, so that undo costs nothing; here it is checked, since a link can hold anything.
A link reads `?tab=classification&image=17&edits=12:1.5,40:-1&where=3-8_20`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from saev_core.errors import UsageError

MIN_STRENGTH, MAX_STRENGTH = -1.0, 2.0
"""The ends of a slider. -1 turns the feature off; 2 adds twice the largest value that it has on any picture."""


@dataclass(frozen=True)
class State:
    """One picture and what is changed on it."""

    image: int
    edits: tuple[tuple[int, float], ...] = ()
    """Feature numbers and strengths: below 0 that share is taken away of what is there, above 0 so many times the feature's
    largest value is added, 0 changes nothing."""
    where: tuple[int, ...] | None = None
    """Patches on which the edits act; None: all."""

    @classmethod
    def of(cls, asked: Mapping[str, Any], *, n_images: int, d_sae: int, n_patches: int) -> State:
        """The state that a page asks for.

        Raises:
            UsageError: a picture, a feature or a patch is not there, or a strength is no number.
        """
        image = _whole(asked.get("image", 0), "picture", n_images, f"This run has pictures 0 to {n_images - 1}.")
        told = f"This SAE has features 0 to {d_sae - 1}."
        edits = {}
        for feature, strength in _pairs(asked.get("edits") or ()):
            if not isinstance(strength, int | float) or not math.isfinite(strength):
                raise UsageError(f"Strength {strength!r} of feature {feature} is no number.")
            edits[_whole(feature, "feature", d_sae, told)] = min(max(float(strength), MIN_STRENGTH), MAX_STRENGTH)
        where = None
        if asked.get("where"):
            patches = {_whole(patch, "patch", n_patches, f"A picture has patches 0 to {n_patches - 1}.") for patch in asked["where"]}
            where = tuple(sorted(patches))
        return cls(image, tuple(sorted((feature, s) for feature, s in edits.items() if s != 0)), where)


def _whole(value: Any, what: str, n: int, told: str) -> int:
    """A number from 0 to n - 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value) or not 0 <= value < n:
        raise UsageError(f"There is no {what} {value}. {told}")
    return int(value)


def _pairs(edits: Any) -> list[tuple[Any, Any]]:
    if not isinstance(edits, Sequence) or any(not isinstance(edit, Sequence) or len(edit) != 2 for edit in edits):
        raise UsageError("The edits of this link cannot be read; they look like edits=12:1.5,40:-1.")
    return [(feature, strength) for feature, strength in edits]
