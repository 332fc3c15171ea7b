"""`Viz` is the one viewer plugin of this package; loading it is cheap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from PIL import Image

from saev_core.config.run import RunConfig
from saev_core.evaluation.pareto import EvaluatedSAE, pareto
from saev_core.plugins.registry import find, installed
from saev_core.runs.run import Run
from saev_core.runs.viewer import RunViewer, find_viewer
from saev_viz.viewer_plugin import Viz


def test_it_is_registered_once_and_offers_everything_that_a_viewer_can() -> None:
    assert [plugin.name for plugin in installed("viewer") if plugin.dist == "saev-viz"] == ["viz"]
    assert find("viewer", "viz").load() is Viz
    assert Viz.offered() == list(RunViewer.METHODS)
    for method in RunViewer.METHODS:
        assert isinstance(find_viewer(method), Viz)


def test_loading_it_imports_neither_gradio_nor_torch() -> None:
    script = """
import sys
from saev_core.runs.viewer import find_viewer
find_viewer("serve")
print([name for name in ("torch", "gradio", "fastapi") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_it_writes_the_pareto_figure_where_the_run_says(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RunConfig())
    points = [EvaluatedSAE("a", "topk", 8.0, 0.2, 0.0, 64, 0, 1e-3), EvaluatedSAE("b", "topk", 16.0, 0.1, 0.0, 64, 0, 1e-3)]
    run.write_result("pareto", pareto(points, 16).to_json())
    written = find_viewer("pareto").pareto(run)
    assert written == run.results_path("pareto").with_suffix(".png")
    with Image.open(written) as figure:
        assert figure.width > 300


def test_it_writes_the_report_where_the_run_says(run_of_pictures: Run) -> None:
    made = run_of_pictures.report_path.read_text(encoding="utf-8")  # by `saev run`
    assert find_viewer("report").report(run_of_pictures) == run_of_pictures.report_path
    assert run_of_pictures.report_path.read_text(encoding="utf-8") == made
