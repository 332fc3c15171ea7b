"""Shapes of schedules for learning rates, sparsity and k."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["linear", "cosine"]


def ramp(share: float, shape: Shape = "linear") -> float:
    """Rise from 0 to 1 as `share` does, linearly or as half a cosine wave; constant outside."""
    share = min(1.0, max(0.0, share))
    return share if shape == "linear" else (1 - math.cos(math.pi * share)) / 2
