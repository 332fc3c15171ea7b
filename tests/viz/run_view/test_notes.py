"""Notes outlive the window, and two windows do not lose each other's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from saev_core.errors import RunError
from saev_viz.run_view.notes import BOTH, Notes


def test_a_note_is_found_again_and_an_empty_one_is_gone(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes" / "topk.json")
    assert notes.all() == {}
    notes.write(12, " spotted wings \n")
    notes.write(7, "sky – also water")
    assert Notes(notes.path).all() == {7: "sky – also water", 12: "spotted wings"}
    notes.write(12, "", seen="spotted wings")
    assert Notes(notes.path).all() == {7: "sky – also water"}


def test_two_windows_on_one_feature_keep_both_texts(tmp_path: Path) -> None:
    first, second = Notes(tmp_path / "n.json"), Notes(tmp_path / "n.json")
    first.write(3, "one", seen="")
    assert second.write(3, "two", seen="") == f"one{BOTH}two"
    # A writer who saw the text replaces it by editing and deletes it by clearing.
    assert first.write(3, "both", seen=f"one{BOTH}two") == "both"
    assert second.write(3, "", seen="both") == ""
    assert first.all() == {}


def test_clearing_a_note_that_another_window_changed_keeps_the_change(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "n.json")
    notes.write(3, "new", seen="")
    assert notes.write(3, "", seen="old") == "new"


@pytest.mark.slow
def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from saev_viz.run_view.notes import Notes\n"
    code += "for i in range(40): Notes(Path(sys.argv[1])).write(int(sys.argv[2]) * 100 + i, f'note {i}')"
    path = tmp_path / "notes" / "n.json"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(k)]) for k in range(4)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 4
    assert len(Notes(path).all()) == 160


def test_a_file_that_is_not_ours_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "n.json"
    path.write_text("[1, 2]")
    with pytest.raises(RunError, match="cannot be read"):
        Notes(path).write(1, "x")
    assert path.read_text() == "[1, 2]"
