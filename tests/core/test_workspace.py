"""`Workspace`: a run, opened. Each thing once, checked against the others, wherever the store is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from saev_core.activations.sources.stored_vectors import StoredVectors
from saev_core.activations.store.store import ActivationStore
from saev_core.config.base import PluginRef, validate
from saev_core.config.run import RunConfig
from saev_core.errors import ChangedDatasetError, CheckpointError, DatasetError, RunError, SaevError, StoreError
from saev_core.runs.run import Run
from saev_core.sae.checkpoint import Checkpoint
from saev_core.testing.task_contract import SMALL, _prepared
from saev_core.workspace import Workspace


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A small run with everything in it. Read only."""
    settings = json.dumps(SMALL, sort_keys=True)
    return _prepared(settings, tmp_path_factory.getbasetemp() / f"task-contract-{abs(hash(settings))}")


@pytest.fixture
def copied(made: Run, tmp_path: Path) -> Run:
    """A copy of it, to change."""
    shutil.copytree(made.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def changed(run: Run, **config: Any) -> Run:
    """The same folder with another configuration."""
    return Run(run.path, run.config.model_copy(update=config), run.plugins)


OPENED: list[Callable[[Workspace], object]] = [
    Workspace.store,
    Workspace.dataset,
    Workspace.model,
    Workspace.checkpoint,
    Workspace.index,
    lambda workspace: workspace.live(workspace.run.config.read),
]


@pytest.mark.parametrize("opened", OPENED, ids=["store", "dataset", "model", "checkpoint", "index", "live"])
def test_each_is_opened_once_even_by_threads_that_ask_at_once(made: Run, opened: Callable[[Workspace], object]) -> None:
    workspace, barrier = Workspace(made), Barrier(4)

    def ask(_: int) -> object:
        barrier.wait(timeout=60)
        return opened(workspace)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, range(4)))
    assert all(each is found[0] for each in [*found, opened(workspace)])


def test_what_was_opened_unchecked_is_what_is_opened_checked(made: Run) -> None:
    workspace = Workspace(made)
    assert workspace.store(checked=False) is workspace.store()
    assert workspace.index(checked=False) is workspace.index("topk")
    assert workspace.checkpoint(checked=False) is workspace.checkpoint("topk")
    assert workspace.sae_name() == "topk"
    images = workspace.images(made.config.read)
    assert isinstance(images, StoredVectors)
    assert images.store is workspace.store()


def test_what_failed_to_open_is_tried_again(copied: Run) -> None:
    workspace, there = Workspace(copied), copied.path / "store"
    there.rename(copied.path / "elsewhere")
    with pytest.raises(RunError, match="has no activations yet; record them with saev record"):
        workspace.store()
    (copied.path / "elsewhere").rename(there)
    assert workspace.store().n_images == 64


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_store_is_found_by_path_and_by_file_url(made: Run, tmp_path: Path, prefix: str) -> None:
    workspace = Workspace(changed(made, store=f"{prefix}{made.path / 'store'}"))
    assert workspace.has_store()
    assert workspace.is_recorded()
    assert workspace.checkpoint().site in map(str, workspace.store().sites)
    missing = Workspace(changed(made, store=f"{prefix}{tmp_path / 'nowhere'}"))
    assert not missing.has_store()
    assert not missing.is_recorded()
    with pytest.raises(RunError, match="has no activations yet"):
        missing.store()


def test_whether_a_remote_store_is_there_is_asked() -> None:
    assert not ActivationStore.exists("memory://workspace/nothing")
    with pytest.raises(StoreError, match="cannot be opened"):
        ActivationStore.exists("nosuch://a/b")


def test_a_run_may_be_started_again_with_a_file_url_where_nothing_is(tmp_path: Path) -> None:
    Run.create(tmp_path / "run", validate(RunConfig, {**SMALL, "store": f"file://{tmp_path / 'store'}"}))
    other = {**SMALL, "store": f"file://{tmp_path / 'other'}", "record": {"layers": [-1], "n_images": 8}}
    assert Run.create(tmp_path / "run", validate(RunConfig, other)).config.record.n_images == 8


def test_a_store_of_another_model_or_data_set_is_refused(made: Run) -> None:
    for config, words in [
        ({"model": PluginRef(name="tiny", options={"pretrained": False})}, "recorded with another model: its options"),
        ({"dataset": PluginRef(name="shapes", options={"n": 32, "size": 96})}, "recorded with another dataset: its options"),
    ]:
        workspace = Workspace(changed(made, **config))
        assert workspace.store(checked=False).n_images == 64
        with pytest.raises(RunError, match=words):
            workspace.store()


def test_an_sae_of_another_store_is_refused(made: Run, copied: Run) -> None:
    path = copied.sae_dir("topk") / "checkpoint.json"
    meta = json.loads(path.read_text())
    meta["store"] |= {"fingerprint": "0" * 64, "transform": "another"}
    path.write_text(json.dumps(meta))
    workspace = Workspace(copied)
    assert workspace.checkpoint(checked=False).store["transform"] == "another"
    with pytest.raises(CheckpointError, match="was trained on transform another"):
        workspace.checkpoint()
    with pytest.raises(SaevError):
        workspace.index()


def test_an_index_of_another_sae_is_refused(copied: Run) -> None:
    path = copied.features_path("topk") / "zarr.json"
    saved = json.loads(path.read_text())
    saved["attributes"]["checkpoint"] = "0" * 64
    path.write_text(json.dumps(saved))
    workspace = Workspace(copied)
    assert workspace.index(checked=False).d_sae == 64
    with pytest.raises(RunError, match="is the index of another checkpoint; rebuild it"):
        workspace.index()


def test_an_sae_can_be_opened_where_the_store_is_gone_but_not_where_it_is_damaged(copied: Run) -> None:
    (copied.path / "store" / "zarr.json").write_text("{")
    with pytest.raises(StoreError, match="not readable"):
        Workspace(copied).checkpoint()
    shutil.rmtree(copied.path / "store")
    assert Workspace(copied).checkpoint().sae.d_sae == 64


def test_an_sae_that_was_written_anew_is_opened_anew_once_it_is_forgotten(copied: Run) -> None:
    workspace = Workspace(copied)
    before, index = workspace.checkpoint(), workspace.index()
    before.with_card({"nmse": 0.25}).save(copied.sae_dir("topk"))
    assert workspace.checkpoint() is before
    assert workspace.read_checkpoint("topk").card == {"nmse": 0.25}
    workspace.forget("topk")
    assert workspace.checkpoint().card == {"nmse": 0.25}
    assert workspace.index() is not index


def test_other_pictures_than_those_recorded_are_refused_and_the_hint_is_given(made: Run, tmp_path: Path) -> None:
    hint = "saev view RUN --dataset NAME:FOLDER"
    assert len(Workspace(made).dataset()) == 64
    with pytest.raises(ChangedDatasetError, match=r"not the ones recorded.*pass their new location: saev view RUN"):
        Workspace(made, dataset="shapes:63", hint=hint).dataset()
    with pytest.raises(ChangedDatasetError, match=r"restore those, or record these into another run"):
        Workspace(made, dataset="shapes:63").dataset()
    with pytest.raises(DatasetError, match=r"If the images have moved, pass their new location: saev view RUN"):
        Workspace(made, dataset=f"image-folder:{tmp_path / 'gone'}", hint=hint).dataset()
    gone = Workspace(changed(made, store=str(tmp_path / "gone")), dataset="shapes:63")
    assert len(gone.dataset()) == 63
    with pytest.raises(ChangedDatasetError):
        gone.dataset(identity=str(Checkpoint.load(made.sae_dir("topk")).store["dataset"]["identity"]))
