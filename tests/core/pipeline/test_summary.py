"""`Summary`: what stages found, put together and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from saev_core.pipeline.summary import MissingImage, Summary

RUN = Path("runs/a")


def test_two_summaries_together_are_both_the_later_before_the_earlier() -> None:
    first = Summary(RUN, {"record": 1.0, "report": 3.0}, n_images=4, n_missing=1, sae={"a": {"nmse": 0.5}})
    both = first | Summary(RUN, {"train:a": 2.0, "report": 4.0}, n_missing=0, stopped={"b": "why"})
    assert both == Summary(
        RUN, {"record": 1.0, "train:a": 2.0, "report": 4.0}, n_images=4, n_missing=0, stopped={"b": "why"}, sae={"a": {"nmse": 0.5}}
    )
    assert first | Summary(RUN) == first


def test_as_json_only_what_was_found_is_there() -> None:
    assert Summary(RUN).to_json() == {"run": "runs/a", "seconds": {}}
    missing = [MissingImage(index=3, name="c.png", why="truncated")]
    found = Summary(RUN, {"record": 1.0}, missing=missing, n_images=0, n_missing=1, names={}, report=RUN / "report.html")
    assert json.loads(json.dumps(found.to_json())) == {
        "run": "runs/a",
        "seconds": {"record": 1.0},
        "missing": [{"index": 3, "name": "c.png", "why": "truncated"}],
        "n_images": 0,
        "n_missing": 1,
        "names": {},
        "report": "runs/a/report.html",
    }
