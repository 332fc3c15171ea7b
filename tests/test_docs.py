"""The documentation is true: its commands run, its code runs, its generated pages are fresh, and nothing is left out."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT

from saev_core.cli.list_flags import expand
from saev_core.cli.options import FLAGS
from saev_core.runs.hooks import Hooks

DOCS = ROOT / "docs"
PAGES = sorted(p.relative_to(ROOT).as_posix() for p in [*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"] if p.exists())
RUN = [
    "docs/datasets.md",
    "docs/evaluation.md",
    "docs/quickstart.md",
    "docs/sweeps.md",
    "docs/plugins.md",
    "docs/store-format.md",
    "docs/steering.md",
    "docs/control.md",
]
"""Pages whose `sh` and `python` blocks are run; `console` blocks, and those of other pages, are only checked."""


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks of a page, snippets not followed."""
    found = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    return [(language, text) for language, text in found if language in languages and "--8<--" not in text]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_blocks_of_a_page_run_one_after_another(page: str, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for language, text in blocks(page, "sh", "python"):
        command = ["bash", "-euc", text] if language == "sh" else [sys.executable, "-c", text]
        env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=240, check=False)
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        assert done.stderr == "", done.stderr


def saev_lines(page: str) -> list[list[str]]:
    """Every `saev ...` command line of a page, split into words."""
    text = "\n".join(text for _, text in blocks(page, "sh", "console", "bash", "shell")).replace("\\\n", " ")
    lines = [line.strip().removeprefix("$ ") for line in text.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith("saev ")]


def verb_of(task: str, verb: str) -> Any:
    """The command that a verb of an installed task is."""
    import typer

    from saev_core.cli.task import commands, load
    from saev_core.plugins.registry import find

    plugin = find("task", task)
    return typer.main.get_command(commands(plugin, load(plugin))).commands[verb]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_on_a_page_exists_with_its_flags(page: str) -> None:
    import typer

    from saev_core.cli.app import app

    top = typer.main.get_command(app)
    for _, *words in saev_lines(page):
        command, rest = top, expand(words)
        while rest and rest[0] in getattr(command, "commands", {}):
            command, rest = command.commands[rest[0]], rest[1:]
        if command.name == "task" and len(rest) > 1:
            command, rest = verb_of(*rest[:2]), rest[2:]
        known = {opt for parameter in command.params for opt in [*parameter.opts, *parameter.secondary_opts]} | {"--help"}
        flags = {word.partition("=")[0] for word in rest if word.startswith("--")}
        assert flags <= known, f"saev {' '.join(words)}: {flags - known}"
        assert not (command is top and rest and not flags), f"saev {' '.join(words)}"


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_on_a_page_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = re.findall(r"\bmake ([a-z]+)$|`make ([a-z]+)`|^ *make ([a-z]+)(?: |$)", (ROOT / page).read_text(), re.M)
    assert {name for names in named for name in names if name} <= targets


def test_the_table_of_commands_says_what_a_flag_takes() -> None:
    rows = {flag: value.strip() for flag, value in re.findall(r"^\| `(.+?)` \|(.*?)\|", (DOCS / "cli.md").read_text(), re.M)}
    assert {rows[flag] for flag in ("--live", "--dry-run", "--yes", "--json")} == {""}
    assert rows["--seed"] == "number"
    assert rows["--lr"] == "number or auto"
    assert rows["--record-layers"] == "number, several"
    assert rows["--model"] == rows["RUN"] == "text"
    assert (rows["--with"], rows["--export"]) == ("run, several", "folder")


@pytest.mark.slow
def test_generated_pages_are_fresh() -> None:
    # In a process of its own, so that plugins of other tests are not seen.
    script = """
import sys
from pathlib import Path
from write_reference import pages
print(*[name for name, text in pages().items() if (Path(sys.argv[1]) / name).read_text(encoding="utf-8") != text])
"""
    done = subprocess.run([sys.executable, "-c", script, str(DOCS)], cwd=ROOT / "scripts", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], "run make fix"


def test_every_hook_is_documented_with_its_arguments() -> None:
    text = (DOCS / "reference" / "hooks.md").read_text()
    for name, hook in vars(Hooks).items():
        if not name.startswith("_"):
            assert f"`{name}({', '.join(list(signature(hook).parameters)[1:])})`" in text


def test_every_flag_and_configuration_key_is_documented() -> None:
    from saev_core.config.run import RunConfig

    commands, settings = (DOCS / "cli.md").read_text(), (DOCS / "reference" / "config.md").read_text()
    assert all(f"`{flag}`" in commands for flag in FLAGS)
    for name, field in RunConfig.model_fields.items():
        inner = getattr(field.annotation, "model_fields", {}) if not field.description else {}
        for key in [f"{name}.{part}" for part in inner] or [name]:
            assert f"| `{key}` |" in settings, key


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text()
    missing = [p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md") if p.relative_to(DOCS).as_posix() not in nav]
    assert missing == []


def test_no_page_names_a_path_of_somebodys_machine() -> None:
    for page in [*DOCS.rglob("*.md"), ROOT / "CHANGELOG.md"]:
        assert not re.search(r"/(home|Users|root|work)/\w", page.read_text()), page
