"""`jsonl`: every event of a run as one line of JSON."""

from __future__ import annotations

import json
from pathlib import Path

from saev_core.config.run import RunConfig
from saev_core.runs.hooks import Observers
from saev_core.runs.metrics_log import JsonLines, numbers, settings_of
from saev_core.runs.run import Run
from saev_core.testing import TrackerContract
from saev_core.testing.tracker_contract import Logged


class TestJsonLines(TrackerContract):
    tracker = JsonLines

    def logged(self, run: Run) -> Logged:
        return read(run, "stepped")

    def logged_heldout(self, run: Run) -> Logged:
        return read(run, "evaluated")


def read(run: Run, event: str) -> Logged:
    found: Logged = {}
    for line in run.metrics_path.read_text().splitlines():
        facts = json.loads(line)
        if facts.pop("event") == event:
            found.setdefault(facts.pop("sae"), {})[facts.pop("step")] = facts  # the later line counts
    return found


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


def test_settings_are_those_of_the_run_and_while_it_trains_of_the_sae(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RunConfig())
    assert settings_of(run, "topk") == run.config.model_dump(mode="json")
    folder = run.path / "sae" / "topk.training"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"train.lr": 0.5, "source.store.fingerprint": "f", "sae.k": 3}))
    settings = settings_of(run, "topk")
    assert (settings["train"]["lr"], settings["train"]["batch_size"]) == (0.5, run.config.train.batch_size)
    assert (settings["source"], settings["sae"]["k"]) == ({"store": {"fingerprint": "f"}}, 3)


def test_numbers_are_what_can_be_drawn() -> None:
    assert numbers({"nmse": 0.5, "n": 3, "images": "heldout", "ok": True, "by_site": [1.0]}) == {"nmse": 0.5, "n": 3.0}
