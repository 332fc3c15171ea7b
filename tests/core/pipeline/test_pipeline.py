"""`Pipeline` and its stages from Python: together, one by one, and with a store at any address."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saev_core.config.base import validate
from saev_core.config.run import RunConfig
from saev_core.errors import ConfigError, RunError
from saev_core.pipeline.evaluate_stage import evaluate_stage
from saev_core.pipeline.index_stage import index_stage
from saev_core.pipeline.names_stage import names_path
from saev_core.pipeline.pipeline import STAGE_FUNCTIONS, Pipeline
from saev_core.pipeline.record_stage import record_stage
from saev_core.pipeline.stage_context import StageContext
from saev_core.pipeline.train_stage import plan_training, train_stage
from saev_core.runs.run import STAGES, Run
from saev_core.workspace import Workspace

TINY: dict[str, Any] = {
    "model": {"name": "tiny", "options": {"pretrained": False}},
    "dataset": {"name": "shapes", "options": {"n": 24, "size": 96}},
    "sae": {"name": "topk", "options": {"d_sae": 32, "k": 4}},
    "train": {"n_tokens": 2000, "n_init": 256, "batch_size": 128},
    "index": {"names": "labels", "top_k": 4},
    "device": "cpu",
}


def new_run(folder: Path, **more: Any) -> Run:
    return Run.create(folder / "run", validate(RunConfig, {**TINY, **more}))


def state(run: Run) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file() and path.name != "metrics.jsonl"}


def test_the_stages_called_one_by_one_do_what_the_pipeline_does(tmp_path: Path) -> None:
    run, said = new_run(tmp_path), list[str]()
    workspace = Workspace(run)
    context = StageContext.of(workspace, say=said.append)
    with pytest.raises(RunError, match="has no activations yet"):
        train_stage(context)
    recorded = record_stage(context)
    assert (recorded.n_images, recorded.n_missing, recorded.missing) == (24, 0, [])
    assert plan_training(context)["points"] == 1
    with pytest.raises(RunError, match="has no trained SAE"):
        evaluate_stage(context)
    trained = train_stage(context)
    assert trained.stopped is None
    assert workspace.checkpoint().card == {}
    evaluated = evaluate_stage(context)
    assert evaluated.sae is not None
    assert workspace.checkpoint().card == evaluated.sae["topk"], "what the workspace keeps is not of before the stage"
    indexed = index_stage(context)
    assert workspace.index().d_sae == 32
    assert indexed.names is not None
    assert indexed.names["topk"]["source"] == "labels"
    assert names_path(run.features_path("topk")).exists()

    before, again = state(run), list[str]()
    summary = Pipeline(run, say=again.append).run_stages(["record", "train", "evaluate", "index"])
    assert state(run) == before
    assert sum("up to date" in line for line in again) == 4
    assert summary == replace(recorded | trained | evaluated | indexed, missing=None), "nothing was recorded this time"
    assert set(summary.seconds) == {"record", "train:topk", "evaluate:topk", "index:topk", "names:topk"}


def test_the_functions_are_the_stages_in_their_order() -> None:
    assert tuple(STAGE_FUNCTIONS) == STAGES


@pytest.mark.parametrize("place", ["file://{folder}/store", "memory://pipeline/{folder.name}"])
def test_a_run_records_to_a_url_where_nothing_is_yet_and_trains_from_it(tmp_path: Path, place: str) -> None:
    run, said = new_run(tmp_path, store=place.format(folder=tmp_path)), list[str]()
    Pipeline(run, say=said.append).run_stages(["record", "train", "evaluate"])
    assert run.sae_names == ["topk"]
    assert not (run.path / "store").exists()
    assert (tmp_path / "store" / "zarr.json").exists() == place.startswith("file://")
    assert Pipeline(run, say=said.append).run_stages(["record"]).n_images == 24
    assert said[-1] == "record: up to date (24 images at resid.2), skipping."


def test_an_sae_that_cannot_be_built_is_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    run = new_run(tmp_path, sae={"name": "topk", "options": {"d_sae": 32, "k": 64}})
    with pytest.raises(ConfigError):
        Pipeline(run).run_stages(["record", "train"])
    assert not (run.path / "store").exists()


def test_a_run_that_trains_live_says_what_needs_a_recording_and_keeps_to_one_source(tmp_path: Path) -> None:
    run, said = new_run(tmp_path, train={**TINY["train"], "live": True}), list[str]()
    work = Pipeline(run, say=said.append)
    summary = work.run_stages()
    assert said[-1].startswith("index and report need a recording; make one with saev record")
    assert (summary.n_images, summary.n_missing, summary.missing) == (24, 0, [])
    assert summary.sae is not None
    assert summary.names is None
    assert summary.report is None
    assert not (run.path / "store").exists()
    assert work.workspace.live_sources == [work.workspace.images(run.config.read)]
    Pipeline(run).run_stages(["record", "index"])
    assert Workspace(run).index().d_sae == 32


def test_a_failure_is_told_to_the_observers_and_what_was_made_stays(tmp_path: Path) -> None:
    from saev_core import hookimpl

    class Listener:
        ended: BaseException | None = None

        @hookimpl
        def run_ended(self, error: BaseException | None) -> None:
            self.ended = error

    run, listener = new_run(tmp_path), Listener()
    work = Pipeline(run, observers=[listener])
    work.run_stages(["record"])
    assert listener.ended is None
    with pytest.raises(RunError, match="has no trained SAE"):
        work.run_stages(["evaluate"])
    assert isinstance(listener.ended, RunError)
    assert work.workspace.is_recorded()
