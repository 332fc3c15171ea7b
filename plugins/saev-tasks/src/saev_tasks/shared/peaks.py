"""The largest activation of every feature on every unit."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def peaks(
    unit: Int[np.ndarray, " nnz"], feature: Int[np.ndarray, " nnz"], value: Float[np.ndarray, " nnz"], d_sae: int
) -> tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """The largest value of each feature on each unit, for pairs that occur."""
    key = unit.astype(np.int64) * d_sae + feature
    by = np.argsort(key, kind="stable")
    first = np.flatnonzero(np.diff(key[by], prepend=-1))
    found = key[by][first]
    return found // d_sae, found % d_sae, np.maximum.reduceat(value[by], first) if len(first) else value[:0]
