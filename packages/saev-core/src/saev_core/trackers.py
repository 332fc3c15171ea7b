"""`jsonl`: the tracker that is always there, one line of JSON per event."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from saev_core.config import PluginConfig
from saev_core.hooks import hookimpl

if TYPE_CHECKING:
    from saev_core.run import Run


class JsonLinesConfig(PluginConfig):
    """Options of `jsonl`."""


class JsonLines:
    """Appends `{"time", "event", "sae", "step", ...}` to the run's `metrics.jsonl`.

    A step that a resumed run takes again is written again: of two lines with one SAE and step the later one counts.
    """

    Config: ClassVar[type[PluginConfig]] = JsonLinesConfig

    def __init__(self, cfg: JsonLinesConfig | None = None) -> None:
        self.cfg = cfg or JsonLinesConfig()

    @hookimpl
    def run_started(self, run: Run) -> None:
        _append(run, "run_started")

    @hookimpl
    def recorded(self, run: Run, n_images: int, n_missing: int) -> None:
        _append(run, "recorded", n_images=n_images, n_missing=n_missing)

    @hookimpl
    def stepped(self, run: Run, name: str, step: int, metrics: Mapping[str, float]) -> None:
        _append(run, "stepped", sae=name, step=step, **metrics)

    @hookimpl
    def evaluated(self, run: Run, name: str, step: int, card: Mapping[str, Any]) -> None:
        _append(run, "evaluated", sae=name, step=step, **{key: card[key] for key in ("nmse", "l0", "dead")})

    @hookimpl
    def checkpointed(self, run: Run, name: str, step: int, path: Path) -> None:
        _append(run, "checkpointed", sae=name, step=step, path=str(path))

    @hookimpl
    def indexed(self, run: Run, name: str) -> None:
        _append(run, "indexed", sae=name)

    @hookimpl
    def run_ended(self, run: Run, error: BaseException | None) -> None:
        _append(run, "run_ended", error=str(error) if error else None)


def _append(run: Run, event: str, **facts: Any) -> None:
    with run.metrics_path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"time": round(time.time(), 3), "event": event, **facts}) + "\n")
