"""The command line: what help costs, what flags do, how errors look."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Saev

import saev_core
from saev_core.cli import main
from saev_core.cli.console import Screen, duration
from saev_core.cli.list_flags import expand

COMMANDS = [
    "run",
    "record",
    "train",
    "evaluate",
    "index",
    "view",
    "store",
    "store info",
    "store verify",
    "store plan",
    "task",
    "plugins",
    "plugins new",
    "data",
    "data download",
]
HEAVY = ("torch", "numpy", "zarr", "gradio", "transformers", "PIL", "pandas", "saev_models", "saev_datasets", "saev_viz")


@pytest.mark.slow
def test_drawing_any_help_imports_nothing_heavy() -> None:
    script = f"""
import contextlib, io, sys
from saev_core.cli import main
for command in {["", *COMMANDS]!r}:
    with contextlib.redirect_stdout(io.StringIO()) as text:
        assert main([*command.split(), "--help"]) == 0, command
    assert "Usage" in text.getvalue(), command
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
assert "saev_core.config.base" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_listing_plugins_imports_no_plugin_and_no_torch() -> None:
    script = f"""
import sys
from saev_core.cli import main
assert main(["plugins"]) == 0
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_table_of_commands_is_closed() -> None:
    from saev_core.cli.app import app

    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    groups = [group.name for group in app.registered_groups]
    assert sorted([*names, *groups]) == ["data", "evaluate", "index", "plugins", "record", "run", "store", "task", "train", "view"]


@pytest.mark.parametrize(
    ("given", "expanded"),
    [
        ("run --record-layers -1 -2 --lr 3", "run --record-layers -1 --record-layers -2 --lr 3"),
        ("run --record-layers 10 11", "run --record-layers 10 --record-layers 11"),
        ("record --record-layers -1 runs/a", "record --record-layers -1 runs/a"),
        ("run --set a=1 b.c=[2] --json", "run --set a=1 --set b.c=[2] --json"),
        ("run --record-layers -1 --record-layers -2", "run --record-layers -1 --record-layers -2"),
        ("run --record-layers", "run --record-layers"),
        ("run -- --record-layers 1 2", "run -- --record-layers 1 2"),
    ],
)
def test_several_values_may_follow_one_flag(given: str, expanded: str) -> None:
    assert expand(given.split()) == expanded.split()


def test_version_and_a_bare_command_show_what_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == saev_core.__version__
    assert main([]) == 0
    assert "Usage" in capsys.readouterr().out


def fails(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str]:
    """Exit code and the one line of stderr."""
    code = main([str(arg) for arg in argv])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return code, lines[0]


def test_wrong_usage_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    code, line = fails(capsys, "run", "--modle", "tiny")
    assert code == 2
    assert "--modle" in line
    assert "--model" in line
    assert line.endswith("See saev run --help.")
    for command in ("run", "train"):
        code, line = fails(capsys, command, "--layers", "-1", "-2")
        assert (code, "--record-layers for the blocks to record" in line) == (2, True)
    code, line = fails(capsys, "rn")
    assert code == 2
    assert "rn" in line
    assert fails(capsys, "run", "--lr", "fast")[0] == 2
    assert fails(capsys, "store", "verify")[0] == 2


def test_an_interrupt_says_how_to_resume_and_exits_130(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saev_core.cli.plugins.show", interrupted)
    assert fails(capsys, "plugins") == (130, "saev: interrupted; re-run the same command to resume.")


def test_what_nobody_foresaw_is_one_line_and_debug_gives_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("saev_core.cli.plugins.show", broken)
    assert fails(capsys, "plugins") == (1, "saev: unexpected ZeroDivisionError: a bug; add --debug for the traceback.")
    assert main(["plugins", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_output_that_nobody_reads_ends_quietly(tmp_path: Path) -> None:
    command = f"{sys.executable} -c 'import sys; from saev_core.cli import main; sys.exit(main())' plugins | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_json_is_all_there_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "list", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found["image-folder"]["error"] is None
    assert found["shapes"]["options"]


def test_a_log_gets_plain_lines_with_rate_and_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saev_core.cli.console.EVERY_S", 0.0)
    with Screen().track("train", 4, "steps") as meter:
        meter.update(2, nmse=0.12345)
        meter.update(2, nmse=0.1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("train: 2 of 4 steps, ")
    assert lines[0].endswith("left  nmse 0.1235")
    assert lines[-1].startswith("train: 4 steps in 0.0 s  nmse 0.1")
    with Screen(as_json=True).track("train", 4, "steps") as meter:
        meter.update(4)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.slow
def test_new_plugins_install_run_and_pass_their_own_tests(saev: Saev, tmp_path: Path, install: Callable[..., Path]) -> None:
    kinds = ("model", "dataset", "sae")
    folders = [tmp_path / f"saev-my-{kind}" for kind in kinds]
    for kind, folder in zip(kinds, folders, strict=True):
        assert main(["plugins", "new", f"my-{kind}", "--kind", kind, "--in", str(tmp_path)]) == 0
        subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=folder, check=True, capture_output=True)
    site = install(*(wheel for folder in folders for wheel in (folder / "dist").glob("*.whl")))
    chosen = [word for kind in kinds for word in (f"--{kind}", f"my-{kind}")]
    small = ["--n-tokens", 1000, "--batch-size", 128, "--set", "sae.expansion=2"]
    done = saev("run", *chosen, *small, "--out", tmp_path / "run", path=site)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    versions = json.loads((tmp_path / "run" / "config.json").read_text())["plugins"]
    assert {f"{kind}:my-{kind}": f"saev-my-{kind} 0.1.0" for kind in kinds}.items() <= versions.items()
    assert (tmp_path / "run" / "report.html").exists()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *folders]
    own = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(site)}, check=False)
    assert own.returncode == 0, own.stdout


def test_a_plugin_name_that_will_not_do_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert fails(capsys, "plugins", "new", "My Plugin", "--in", tmp_path)[0] == 2
    assert fails(capsys, "plugins", "new", "mine", "--kind", "tracker", "--in", tmp_path)[0] == 2
    (tmp_path / "saev-mine").mkdir()
    assert "File exists" in fails(capsys, "plugins", "new", "mine", "--in", tmp_path)[1]
