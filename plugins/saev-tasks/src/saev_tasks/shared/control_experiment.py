"""Shared by the control experiments of all tasks: the two baselines, and the table's rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saev_tasks.shared.edit_bench import Change, EditBench

FLIPPED, LOST = 0.8, 0.05
"""Criteria for control: minimum share of the class flipped, maximum share of the others lost."""
NEAREST = 20
"""Number of features nearest in frequency from which a random one is drawn."""


@dataclass(frozen=True)
class Choice:
    """What to suppress for a class, chosen on training images, and its effect there."""

    features: list[int]
    strength: float
    flipped: float
    others_lost: float


@dataclass(frozen=True)
class Outcome:
    """The effect of suppressing on validation images. Intervals are `(low, high)`."""

    flipped: float
    flipped_interval: tuple[float, float]
    others_lost: float
    others_lost_interval: tuple[float, float]
    worst_lost: float
    worst_class: str


Out = TypeVar("Out", bound=Outcome)
Effect = TypeVar("Effect")


@dataclass(frozen=True)
class Row(Generic[Out]):
    """One row of the table."""

    name: str
    number: int
    n_right: int
    """Units of the class that were correctly classified before."""
    choice: Choice
    suppressed: Out
    random_features: Out
    random_direction: Out
    over_features: tuple[float, float]
    """Interval of the difference in flipped share to random features, paired by image."""
    over_direction: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passes": self.passes}

    @property
    def passes(self) -> bool:
        """Whether at least 80 % of the class are flipped and other classes lose at most 5 %."""
        return self.suppressed.flipped >= FLIPPED and self.suppressed.others_lost <= LOST


def with_baselines(
    bench: EditBench,
    frequency: Float[np.ndarray, " d_sae"],
    choice: Choice,
    proposed: Sequence[int],
    effect: Callable[[Change], Effect],
    *,
    draws: int,
    seed: int,
) -> tuple[Effect, list[Effect], list[Effect]]:
    """The effect of suppressing the chosen features, and of each draw of both baselines.

    Args:
        frequency: how often each feature fires, for matching random ones.
        proposed: features excluded from the random draws.

    Returns:
        For the choice; for `draws` sets of random features of the same frequency; for `draws` changes of the same norm along a
        random direction, on the same tokens.
    """
    rng = np.random.RandomState(seed)
    sets = [matched(frequency, choice.features, proposed, rng) for _ in range(draws)]
    axes = [torch.from_numpy(rng.standard_normal(bench.directions.shape[1]).astype(np.float32)) for _ in range(draws)]
    change = bench.scaled(choice.features, choice.strength)
    by_features = [effect(bench.scaled(some, choice.strength)) for some in sets]
    return effect(change), by_features, [effect(along(change, axis)) for axis in axes]


def along(change: Change, direction: Float[Tensor, " d_model"]) -> Change:
    """A change of the same norm on the same tokens, along one other direction."""
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
