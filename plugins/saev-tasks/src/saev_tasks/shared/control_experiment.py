"""What control experiments of all tasks share: features on tokens and changes of them, the two baselines beside them, the table's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse import csc_array, csr_array
from torch import Tensor

from saev_core.sae.checkpoint import Checkpoint

FLIPPED, LOST = 0.8, 0.05
"""What counts as control: so much of the class flipped at least, so much of the others lost at most."""
NEAREST = 20
"""Features nearest in frequency among which a random one is drawn."""


class Change(NamedTuple):
    """What an edit adds to raw activations at the SAE's site, on the tokens that it changes."""

    row: Int[np.ndarray, " m"]
    """Image's place in the bench times the number of tokens that edits may change, plus the token's place among them."""
    delta: Float[Tensor, "m d_model"]


class Coded:
    """The SAE's features on every token that edits may change, of some images, on which changes are tried."""

    codes: csc_array
    """`[n_images * n_tokens, d_sae]`, by feature."""
    directions: Float[Tensor, "d_sae d_model"]
    """What one unit of each feature adds to raw activations."""

    @cached_property
    def frequency(self) -> Float[np.ndarray, " d_sae"]:
        """Share of tokens that fire each feature."""
        return np.asarray(np.diff(self.codes.indptr) / self.codes.shape[0])

    def scaled(self, features: Sequence[int], factor: float) -> Change:
        """Every activation f of these features becomes `factor` f: 0 ablates, a negative one writes in the opposite.

        Only tokens that fire one of them change, so that where to act need not be said.
        """
        some = csr_array(self.codes[:, list(features)])
        row = np.flatnonzero(np.diff(some.indptr))
        f = torch.from_numpy(some[row].toarray().astype(np.float32))
        return Change(row, (factor - 1) * (f @ self.directions[list(features)]))


def directions_of(checkpoint: Checkpoint) -> Float[Tensor, "d_sae d_model"]:
    """What one unit of each feature adds to raw activations, on the CPU."""
    return (checkpoint.sae.frozen().W_dec.detach() / checkpoint.norm.factor).cpu()


def codes_of(checkpoint: Checkpoint, x: Float[Tensor, "*batch d_model"]) -> csr_array:
    """Features of raw vectors, `[n, d_sae]`, in the order of `x.reshape(-1, d_model)`."""
    codes = checkpoint.codes(x)
    parts = tuple(part.cpu().numpy() for part in (codes.value.float(), codes.feature, codes.offsets))
    made = csr_array(parts, shape=(len(codes), codes.d_sae))
    made.eliminate_zeros()
    return made


@dataclass(frozen=True)
class Choice:
    """What is suppressed for a class, chosen on training images, with what it did there."""

    features: list[int]
    strength: float
    flipped: float
    others_lost: float


@dataclass(frozen=True)
class Outcome:
    """What suppressing did on validation images. Intervals are `(low, high)`."""

    flipped: float
    flipped_interval: tuple[float, float]
    others_lost: float
    others_lost_interval: tuple[float, float]
    worst_lost: float
    worst_class: str


Out = TypeVar("Out", bound=Outcome)


@dataclass(frozen=True)
class Row(Generic[Out]):
    """One class of the table."""

    name: str
    number: int
    n_right: int
    """What of the class was told right before."""
    choice: Choice
    suppressed: Out
    random_features: Out
    random_direction: Out
    over_features: tuple[float, float]
    """Interval of how much more is flipped than by random features, image by image."""
    over_direction: tuple[float, float]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"passes": self.passes}

    @property
    def passes(self) -> bool:
        """At least 80 % of the class flipped, other classes lose at most 5 %."""
        return self.suppressed.flipped >= FLIPPED and self.suppressed.others_lost <= LOST


def random_axes(n: int, d_model: int, rng: np.random.RandomState) -> list[Float[Tensor, " d_model"]]:
    """Directions for `along`."""
    return [torch.from_numpy(rng.standard_normal(d_model).astype(np.float32)) for _ in range(n)]


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
