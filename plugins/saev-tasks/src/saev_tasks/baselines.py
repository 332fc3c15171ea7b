"""What control experiments of all tasks share: a change of activations, and the two baselines that stand beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

NEAREST = 20
"""Features nearest in frequency among which a random one is drawn."""


class Change(NamedTuple):
    """What an edit adds to raw activations at the SAE's site, on the tokens that it changes."""

    row: Int[np.ndarray, " m"]
    """Image's place in the bench times the number of tokens that edits may change, plus the token's place among them."""
    delta: Float[Tensor, "m d_model"]


def along(change: Change, direction: Float[Tensor, " d_model"]) -> Change:
    """A change of the same length on the same tokens, all in one other direction."""
    return Change(change.row, change.delta.norm(dim=1, keepdim=True) * (direction / direction.norm()))


def matched(frequency: Float[np.ndarray, " d_sae"], features: Sequence[int], avoid: Sequence[int], rng: np.random.RandomState) -> list[int]:
    """Random features of about the same frequency, one for each of `features`, none of `avoid`."""
    free = np.setdiff1d(np.flatnonzero(frequency > 0), np.asarray([*features, *avoid], int))
    out: list[int] = []
    for f in features:
        left = np.setdiff1d(free, out)
        if not len(left):
            break
        apart = np.abs(np.log(frequency[left]) - np.log(max(frequency[f], 1e-12)))
        out.append(int(rng.choice(left[np.argsort(apart, kind="stable")[:NEAREST]])))
    return out
