"""The Pareto front of a run's SAEs in L0 and reconstruction error, and the best SAE."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any, Literal, Self

from saev_core.sae.checkpoint import Checkpoint

SLACK = 1.1
"""Default bound on L0, relative to the median of the SAEs: SAEs that target the same k may miss it by a tenth."""


@dataclass(frozen=True)
class EvaluatedSAE:
    """One evaluated SAE."""

    name: str
    variant: str
    l0: float
    nmse: float
    dead: float
    d_sae: int
    seed: int | None
    lr: float | None
    consensus: bool = False
    """Whether it is a consensus of several seeds."""
    on_front: bool = False
    best: bool = False

    @classmethod
    def of(cls, name: str, checkpoint: Checkpoint) -> Self:
        """The point of a checkpoint's evaluation card: the whole dictionary, not a prefix, on held-out images."""
        card, train = checkpoint.card, checkpoint.train
        return cls(
            name=name,
            variant=checkpoint.ref["name"],
            l0=float(card["l0"]),
            nmse=float(card["nmse"]),
            dead=float(card["dead"]),
            d_sae=checkpoint.sae.d_sae,
            seed=train.get("seed"),
            lr=train.get("lr"),
            consensus="consensus" in train,
        )


@dataclass(frozen=True)
class Pareto:
    """Evaluated SAEs, sorted by L0."""

    points: list[EvaluatedSAE]
    best_l0: float
    """Largest L0 that the best SAE may have."""

    @property
    def best(self) -> str | None:
        """The SAE with the lowest NMSE among those with an L0 of at most `best_l0`; None if there is none."""
        return next((point.name for point in self.points if point.best), None)

    def to_json(self) -> dict[str, Any]:
        """The content of `results/pareto.json`."""
        return {"best": self.best, "best_l0": self.best_l0, "points": [asdict(point) for point in self.points]}


def pareto(points: Iterable[EvaluatedSAE], best_l0: float | Literal["auto"] = "auto") -> Pareto:
    """The L0 / NMSE front of evaluated SAEs and the best SAE.

    An SAE is on the front if no other one is at least as low in both L0 and NMSE and lower in one of them.

    Args:
        best_l0: largest L0 of the best one; `auto`: 1.1 times the median L0 of the trained SAEs,
            so that an SAE does not win merely by being denser.
    """
    given = list(points)
    scores = {point.name: (point.l0, point.nmse) for point in given}
    if not given:
        return Pareto([], 0.0 if best_l0 == "auto" else best_l0)
    typical = median(point.l0 for point in given if not point.consensus or all(p.consensus for p in given))
    bound = SLACK * typical if best_l0 == "auto" else best_l0
    front = set(_front(scores))
    # Ties in error go to the sparser SAE.
    allowed = [name for name, (l0, _) in scores.items() if l0 <= bound]
    best = min(allowed, key=lambda name: (scores[name][1], scores[name][0], name), default=None)
    marked = [replace(point, on_front=point.name in front, best=point.name == best) for point in given]
    return Pareto(sorted(marked, key=lambda point: (point.l0, point.nmse, point.name)), bound)


def _front(scores: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names that no other dominates; equal scores do not dominate each other."""
    found: list[str] = []
    for name in sorted(scores, key=lambda name: scores[name]):
        if not found or scores[name][1] < scores[found[-1]][1] or scores[name] == scores[found[-1]]:
            found.append(name)
    return found
