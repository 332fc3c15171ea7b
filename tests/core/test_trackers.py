"""`jsonl`: every event of a run as one line of JSON."""

from __future__ import annotations

import json
from pathlib import Path

from saev_core.config import RunConfig
from saev_core.hooks import Observers
from saev_core.run import Run
from saev_core.testing import TrackerContract
from saev_core.trackers import JsonLines


class TestJsonLines(TrackerContract):
    tracker = JsonLines


def test_each_event_is_a_line_with_its_numbers(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RunConfig())
    observers = Observers(JsonLines(), discover=False)
    observers.emit("run_started", run=run, config={})
    observers.emit("stepped", run=run, name="topk", step=25, metrics={"nmse": 0.5, "l0": 32.0})
    observers.emit("run_ended", run=run, error=ValueError("no"))
    lines = [json.loads(line) for line in run.metrics_path.read_text().splitlines()]
    assert [line["event"] for line in lines] == ["run_started", "stepped", "run_ended"]
    assert lines[1].items() >= {"sae": "topk", "step": 25, "nmse": 0.5, "l0": 32.0}.items()
    assert lines[2]["error"] == "no"
    assert all(line["time"] > 0 for line in lines)
