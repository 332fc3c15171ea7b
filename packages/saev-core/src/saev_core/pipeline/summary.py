"""`Summary`: the results of the stages of a run, for the final table and for `--json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypedDict


class MissingImage(TypedDict):
    """An image that could not be read."""

    index: int
    name: str
    why: str


@dataclass(frozen=True)
class Summary:
    """Results of one or several stages; None where no stage applies. `a | b` merges two, `b` taking precedence."""

    run: Path
    """The run's folder."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each stage took when it last ran, by its name in `Stamps`."""
    missing: list[MissingImage] | None = None
    """Images that could not be read in this call, by number."""
    n_images: int | None = None
    """Images of the run, readable or not."""
    n_missing: int | None = None
    """Images recorded as missing."""
    stopped: Mapping[str, str] | None = None
    """SAEs that diverged in training, with the reason."""
    sae: Mapping[str, Mapping[str, Any]] | None = None
    """The evaluation card of every SAE."""
    stability: Mapping[str, Any] | None = None
    """Seed agreement, as in `results/stability.json`."""
    pareto: Mapping[str, Any] | None = None
    """Comparison of several SAEs, as in `results/pareto.json`."""
    recovery: Mapping[str, Any] | None = None
    """How well each SAE recovers the ground truth, if known, as in `results/recovery.json`."""
    names: Mapping[str, Mapping[str, Any]] | None = None
    """For each indexed SAE, how many names were proposed and, with ground truth, how many are right."""
    report: Path | None = None
    """The illustrated report."""

    def __or__(self, later: Summary) -> Summary:
        found = {each.name: value for each in fields(later) if (value := getattr(later, each.name)) is not None}
        return replace(self, **{**found, "seconds": {**self.seconds, **later.seconds}})

    def to_json(self) -> dict[str, Any]:
        """The results as plain JSON; None values are omitted."""
        told = {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}
        return {key: str(value) if isinstance(value, Path) else value for key, value in told.items()}
