"""The shapes of schedules: of learning rates, of sparsity, of k."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["linear", "cosine"]


def ramp(share: float, shape: Shape = "linear") -> float:
    """Rises from 0 to 1 as `share` does, in a straight line or as half a cosine wave; flat outside."""
    share = min(1.0, max(0.0, share))
    return share if shape == "linear" else (1 - math.cos(math.pi * share)) / 2
