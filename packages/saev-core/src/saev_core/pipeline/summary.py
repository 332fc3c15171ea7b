"""`Summary`: what the stages of a run found, for a table at the end and for `--json`."""

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
    """What one stage found, or several: what none of them had to do with is None. `a | b` is both, the later before the earlier."""

    run: Path
    """The run's folder."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """How long each stage took when it was last done, by the names of `Stamps`."""
    missing: list[MissingImage] | None = None
    """Images that could not be read just now, by their number."""
    n_images: int | None = None
    """Images of the run, readable or not."""
    n_missing: int | None = None
    """Those that were recorded as missing."""
    stopped: Mapping[str, str] | None = None
    """SAEs whose training diverged, and why."""
    sae: Mapping[str, Mapping[str, Any]] | None = None
    """Every SAE's evaluation card."""
    stability: Mapping[str, Any] | None = None
    """How well seeds agree, as `results/stability.json`."""
    pareto: Mapping[str, Any] | None = None
    """Several SAEs compared, as `results/pareto.json`."""
    recovery: Mapping[str, Any] | None = None
    """Where the data set knows the truth, how well each SAE recovers it, as `results/recovery.json`."""
    names: Mapping[str, Mapping[str, Any]] | None = None
    """For each indexed SAE how many names were proposed, and how many are right where the truth is known."""
    report: Path | None = None
    """The illustrated report."""

    def __or__(self, later: Summary) -> Summary:
        found = {each.name: value for each in fields(later) if (value := getattr(later, each.name)) is not None}
        return replace(self, **{**found, "seconds": {**self.seconds, **later.seconds}})

    def to_json(self) -> dict[str, Any]:
        """What was found, as plain JSON; what no stage had to do with is left out."""
        told = {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}
        return {key: str(value) if isinstance(value, Path) else value for key, value in told.items()}
