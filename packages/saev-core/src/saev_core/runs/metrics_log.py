"""`jsonl`: the tracker that is always active, one line of JSON per event; and helpers for tracker plugins."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from saev_core.config.base import PluginConfig
from saev_core.runs.hooks import hookimpl

if TYPE_CHECKING:
    from saev_core.runs.run import Run


class JsonLinesConfig(PluginConfig):
    """Options of `jsonl`."""


class JsonLines:
    """Appends `{"time", "event", "sae", "step", ...}` to the run's `metrics.jsonl`.

    A resumed run repeats steps and writes them again: of two lines with the same SAE and step, use the later one.
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


def settings_of(run: Run, name: str) -> dict[str, Any]:
    """The run's configuration merged with the settings that determine the result of SAE `name`, as one dict.

    The SAE's own settings are nested under `train`, `sae`, `source` and `schedule`; they are available only during training.
    """
    settings: dict[str, Any] = run.config.model_dump(mode="json")
    file = run.sae_dir(name).with_name(f"{name}.training") / "config.json"
    if file.exists():
        for key, value in json.loads(file.read_text(encoding="utf-8")).items():
            place = settings
            *parents, last = key.split(".")
            for parent in parents:
                inner = place.get(parent)
                place[parent] = place = inner if isinstance(inner, dict) else {}
            place[last] = value
    return settings


def history(run: Run, name: str, before: int) -> list[tuple[str, int, dict[str, float]]]:
    """`stepped` and `evaluated` events of SAE `name` at steps below `before`: (event, step, numbers), by step.

    Read from `metrics.jsonl`, which survives a killed process. A tracker attached to a resumed training starts by
    replaying them.
    """
    found: dict[tuple[int, str], dict[str, float]] = {}
    for line in run.metrics_path.read_text(encoding="utf-8").splitlines() if run.metrics_path.exists() else ():
        # A truncated line comes from a killed process, and its step was repeated.
        facts = json.loads(line) if line.endswith("}") else {}
        if facts.get("event") in ("stepped", "evaluated") and facts["sae"] == name and facts["step"] < before:
            found[facts["step"], facts["event"]] = numbers({key: facts[key] for key in facts.keys() - {"time", "step"}})
    return [(event, step, metrics) for (step, event), metrics in sorted(found.items(), key=lambda item: item[0][0])]


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers among metrics or in an evaluation card, which can be plotted over steps."""
    return {key: float(value) for key, value in metrics.items() if isinstance(value, int | float) and not isinstance(value, bool)}
