"""`Library`: a run as the viewer opens it, and that it refuses what the pipeline and the tasks refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from saev_core.config.base import PluginRef
from saev_core.errors import DatasetError, StoreError
from saev_core.pipeline.pipeline import Pipeline
from saev_core.runs.run import Run
from saev_core.tasks.context import TaskContext
from saev_viz.run_view.library import Library


def opened(run: Run) -> dict[str, Callable[[], object]]:
    """Opening a run's pictures, for display and for computation."""

    def viewer() -> object:
        library = Library(run)
        if library.dataset is None:
            raise DatasetError(library.no_pictures)
        return library.dataset

    return {"pipeline": Pipeline(run).workspace.dataset, "task": TaskContext(run, "any").dataset, "viewer": viewer}


def at(run: Run, folder: Path) -> Run:
    """The run, its pictures elsewhere."""
    ref = PluginRef(name="image-folder", options={**run.config.dataset.options, "root": str(folder)})
    return Run(run.path, run.config.model_copy(update={"dataset": ref}), run.plugins)


def test_pictures_that_moved_or_changed_are_refused_by_pipeline_task_and_viewer_alike(copied: Run, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(str(copied.config.dataset.options["root"]), folder)
    for who, pictures in opened(at(copied, folder)).items():
        assert pictures(), f"{who}: the same pictures are welcome anywhere"
    (folder / "dots" / "00.png").unlink()
    for pictures in opened(at(copied, folder)).values():
        with pytest.raises(DatasetError, match="not the ones recorded"):
            pictures()
    shutil.rmtree(folder)
    for pictures in opened(at(copied, folder)).values():
        with pytest.raises(DatasetError, match=str(folder)):
            pictures()


def test_the_store_of_other_saes_is_not_shown(copied: Run) -> None:
    assert Library(copied).store is not None
    path = copied.path / "store" / "zarr.json"
    saved = json.loads(path.read_text())
    saved["attributes"]["saev"]["transform"] = "another"
    path.write_text(json.dumps(saved))
    library = Library(copied)
    assert "is not the store that topk was trained on" in library.lost
    with pytest.raises(StoreError, match="is not the store"):
        _ = library.store
    assert library["topk"].checkpoint.sae.d_sae == library["topk"].index.d_sae, "everything else works as with a missing store"
    assert library.dataset is not None


def test_an_index_and_its_sae_are_opened_once_and_the_sae_on_the_cpu(run_of_pictures: Run) -> None:
    library = Library(run_of_pictures)
    view = library["topk"]
    assert view.index is library.workspace.index("topk")
    assert view.checkpoint is library.workspace.checkpoint("topk")
    assert view.checkpoint.sae.W_dec.device.type == "cpu"
