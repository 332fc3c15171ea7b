"""`Stamps`: the key of a stage changes with what it makes, and with nothing else."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from saev_core.config.base import validate
from saev_core.config.run import RunConfig
from saev_core.config.stages import EvaluateConfig
from saev_core.errors import RunError
from saev_core.runs.run import Run
from saev_core.runs.stamps import Stamps
from saev_core.runs.sweep import expand

OLD: dict[str, Any] = {
    "read": {"n_threads": 2},
    "train": {"n_tokens": 0, "lr": 0.0, "ema": 0.0, "evaluate_every": 0, "memory_gb": 0.0},
    "evaluate": {"best_l0": 0.0, "consensus": 0.7},
    "index": {"names": "auto", "names_images": 3000, "names_fires": 0.5, "names_threshold": 0.8, "names_positive": 10},
}
"""As a `config.json` held its defaults when 0 stood for automatic and for none."""


@pytest.fixture
def stamps(tmp_path: Path) -> Stamps:
    return Stamps(Run.create(tmp_path / "run", RunConfig()), print)


@pytest.mark.parametrize("config", [RunConfig(), validate(RunConfig, OLD)])
def test_keys_of_runs_made_before_stay_valid(stamps: Stamps, config: RunConfig) -> None:
    # As written to stages.json before settings stated what they affect.
    assert stamps.key(config.evaluate, "x") == "10686475f890755a"
    assert stamps.key(config.index, "x") == "cb10b1ff0a8c7f40"
    assert stamps.key(config.report) == "e5d3ecb63d0ef5b8"
    assert stamps.key(expand(config).points[0].says(), "x") == "2e3b02972ad58136"


def test_how_saes_are_compared_does_not_measure_each_of_them_again(stamps: Stamps) -> None:
    same, other = EvaluateConfig(best_l0=20, consensus=None), EvaluateConfig(dense=0.5)
    assert stamps.key(same) == stamps.key(EvaluateConfig()) != stamps.key(other)


def test_the_key_of_a_configuration_does_not_depend_on_what_its_class_is_called(stamps: Stamps) -> None:
    class Renamed(EvaluateConfig):
        pass

    assert stamps.key(Renamed(consensus=None)) == stamps.key(EvaluateConfig())


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
    assert said == ["index: re-running because it is gone."]


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
