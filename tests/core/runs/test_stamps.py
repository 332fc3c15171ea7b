"""`Stamps`: which stages of a run are up to date."""

from __future__ import annotations

import time
from pathlib import Path

from saev_core.config.run import RunConfig
from saev_core.config.stages import IndexConfig
from saev_core.errors import RunError
from saev_core.runs.run import Run
from saev_core.runs.stamps import Stamps


def refuse() -> None:
    raise RunError("it is gone.")


def test_a_stage_is_up_to_date_with_its_key_alone_and_while_its_artifact_opens(tmp_path: Path) -> None:
    said: list[str] = []
    stamps = Stamps(Run.create(tmp_path / "run", RunConfig()), said.append)
    assert not stamps.up_to_date("index:a", "k", refuse)
    stamps.record("index:a", "k", time.monotonic())
    assert stamps.up_to_date("index:a", "k")
    assert not stamps.up_to_date("index:a", "other", refuse)
    assert said == []
    assert not stamps.up_to_date("index:a", "k", refuse)
    assert said == ["index: done again, for it is gone."]


def test_stamps_are_there_for_the_next_who_opens_the_run(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RunConfig())
    stamps = Stamps(run, print)
    stamps.record("record", "", time.monotonic() - 8)
    stamps.record("train:a", "k", time.monotonic() - 8, share=4, stopped="why")
    again = Stamps(Run.open(run.path), print)
    assert 8 <= again.seconds("record", "evaluate:a")["record"] < 60
    assert set(again.seconds("record", "evaluate:a")) == {"record"}
    assert 2 <= again.seconds("train:a")["train:a"] < 8
    assert again.get("train:a")["stopped"] == "why"
    assert again.get("train:b") == {}
    assert list(again.of_saes("train")) == ["a"]


def test_settings_that_leave_no_mark_are_no_part_of_a_key() -> None:
    assert Stamps.key(IndexConfig(), "f") == Stamps.key(IndexConfig(names="none"), "f")
    assert Stamps.key(IndexConfig(), "f") != Stamps.key(IndexConfig(top_k=5), "f")
    assert Stamps.key(IndexConfig(), "f") != Stamps.key(IndexConfig(), "g")
