"""Finding the viewer that offers what a command needs, with wheels that are really built and installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import BuildWheel, Saev, environment

from saev_core.runs.run import Run
from saev_core.runs.viewer import RunViewer

TEXT = """
    from saev_core.runs.viewer import RunViewer

    class Text(RunViewer):
        def report(self, run):
            run.report_path.write_text("a report of " + run.path.name)
            return run.report_path
"""
FIND = """
import importlib.metadata as metadata, logging, sys
logging.basicConfig(format="%(message)s", stream=sys.stdout)
real = metadata.entry_points
if sys.argv[2:] == ["without-viz"]:
    metadata.entry_points = lambda **wanted: metadata.EntryPoints(e for e in real(**wanted) if not e.value.startswith("saev_viz"))
from saev_core.errors import PluginError
from saev_core.runs.viewer import find_viewer
try:
    print(type(find_viewer(sys.argv[1])).__name__)
except PluginError as error:
    print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def text(build_wheel: BuildWheel, install: Callable[..., Path]) -> Path:
    """A viewer that offers a report and nothing else."""
    return install(build_wheel("text-viewer", {"saev.viewers": {"text": "text_viewer:Text"}}, {"text_viewer.py": TEXT}))


@pytest.fixture(scope="module")
def rotten(build_wheel: BuildWheel, install: Callable[..., Path]) -> Path:
    """A viewer that cannot be imported, and a function where a class is asked for."""
    rotten = build_wheel("rotten-viewer", {"saev.viewers": {"rotten": "rotten_viewer:Gone"}}, {"rotten_viewer.py": "import not_there\n"})
    plain = build_wheel("plain-viewer", {"saev.viewers": {"plain": "plain_viewer:report"}}, {"plain_viewer.py": "def report(run): ...\n"})
    return install(rotten, plain)


def found(method: str, path: Path | None = None, *more: str) -> list[str]:
    """What `find_viewer` answers in a process of its own, after its log."""
    variables = environment(**({"PYTHONPATH": str(path)} if path else {}))
    done = subprocess.run([sys.executable, "-c", FIND, method, *more], capture_output=True, text=True, check=True, env=variables)
    return done.stdout.splitlines()


def test_a_viewer_offers_what_it_defines() -> None:
    class Report(RunViewer):
        def report(self, run: Run) -> Path:
            return run.report_path

    class More(Report):
        def pareto(self, run: Run) -> Path:
            return run.path

    assert (RunViewer.offered(), Report.offered(), More.offered()) == ([], ["report"], ["report", "pareto"])


def test_without_a_viewer_the_line_says_what_to_install() -> None:
    assert found("report", None, "without-viz") == ["NoViewerError: no viewer is installed; run pip install saev-viz."]


def test_a_viewer_without_the_method_is_named(text: Path) -> None:
    assert found("report", text, "without-viz") == ["Text"]
    assert found("serve", text, "without-viz") == [
        "NoViewerError: no installed viewer offers `serve` (installed: text (text-viewer)); run pip install saev-viz."
    ]


def test_where_two_offer_the_same_neither_is_taken_by_chance(text: Path) -> None:
    assert found("serve", text) == ["Viz"]
    assert found("report", text) == [
        "PluginError: several viewers offer `report`: text (text-viewer) and viz (saev-viz); uninstall all but one."
    ]


def test_a_broken_viewer_is_passed_over_where_another_one_serves(rotten: Path) -> None:
    *warned, viewer = found("report", rotten)
    assert viewer == "Viz"
    assert "is not a class derived from saev_core's RunViewer" in warned[0]
    assert "No module named 'not_there'" in warned[1]
    (alone,) = found("report", rotten, "without-viz")
    assert alone.startswith("PluginError: viewer plugin 'plain' (plain_viewer:report)")


@pytest.mark.slow
def test_plugins_are_checked_to_be_viewers(saev: Saev, rotten: Path) -> None:
    checked = saev("plugins", "--check", path=rotten)
    assert checked.returncode == 1
    assert "defines none of its methods" in checked.stdout
