"""Each distribution builds a wheel of its own and works alone, in an empty environment, with what it declares."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from commands import ROOT, UV
from scripts import write_known_packages

from saev_core.plugins.registry import GROUPS

PROJECTS = sorted(p.parent for place in ("packages", "plugins") for p in (ROOT / place).glob("*/pyproject.toml"))
NAMES = [p.name for p in PROJECTS]

# In a wheel alone, or not at all: what an extra brings is missing in the bare environment.
NEEDS_EXTRA = {"clip", "siglip", "dinov2", "timm", "moondream2", "imagenet", "huggingface", "photos", "flowers102"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel of every distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in PROJECTS:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder]
        subprocess.run(list(map(str, command)), cwd=project, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty environment. One for all packages, each installed with `--exact`, so that torch is compiled only once."""
    folder = tmp_path_factory.mktemp("alone") / "env"
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, folder], check=True)
    return folder / "bin"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_package_installs_alone_with_what_it_declares(name: str, wheels: Path, environment: Path) -> None:
    python, saev = environment / "python", environment / "saev"
    # Our own siblings come from the wheels just built; all else is as pinned, from the cache that set-up filled.
    # --exact takes away everything that the package did not ask for.
    where = ["--exact", "--reinstall-package", name, "--find-links", wheels, "-c", ROOT / "constraints.txt", "--python", python]
    done = subprocess.run([UV, "pip", "install", "--quiet", *where, name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    script = f"import {name.replace('-', '_')}, saev_core; print(saev_core.__version__)"
    assert subprocess.run([python, "-c", script], capture_output=True, text=True, check=True).stdout == "0.1.0\n"
    listed = json.loads(subprocess.run([saev, "plugins", "--check", "--json"], capture_output=True, text=True, check=False).stdout)
    mine = [plugin for plugin in listed if plugin["dist"] == name]
    assert {p["name"] for p in mine} == {
        n for group, entries in declared(name).get("entry-points", {}).items() if group in GROUPS.values() for n in entries
    }
    for plugin in mine:
        if not plugin["ok"]:
            assert plugin["name"] in NEEDS_EXTRA, plugin["error"]
            assert "ModuleNotFoundError" in plugin["error"]


def declared(name: str) -> dict:
    """The project table of a distribution."""
    (project,) = (p for p in PROJECTS if p.name == name)
    return tomllib.loads((project / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("name", NAMES)
def test_a_package_carries_licence_readme_types_and_version(name: str) -> None:
    project = declared(name)
    assert project["name"] == name
    assert project["version"] == "0.1.0"
    assert project["license"] == "MIT"
    assert project["requires-python"] == ">=3.11"
    (folder,) = (p for p in PROJECTS if p.name == name)
    assert (folder / "README.md").read_text().startswith(f"# {name}\n")
    assert (folder / "src").is_dir() is False or list(folder.glob("src/*/py.typed"))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "saev-core"])
def test_everything_but_the_core_imports_only_the_core(name: str) -> None:
    (folder,) = (p for p in PROJECTS if p.name == name)
    own = name.replace("-", "_")
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            ours = {n.partition(".")[0] for n in names if n.startswith("saev")}
            assert ours <= {"saev_core", own}, f"{file}: {ours}"


def test_all_brings_the_family() -> None:
    extras = declared("saev-core")["optional-dependencies"]
    asked = " ".join(extras["all"])
    # What sends metrics elsewhere brings much with it, and is asked for by name.
    apart = {"saev-tensorboard": "tensorboard", "saev-wandb": "wandb"}
    assert all(name in " ".join(extras[extra]) and name not in asked for name, extra in apart.items())
    assert all(name in asked for name in NAMES if name not in ("saev-core", "saev-example", *apart))


def test_the_core_knows_what_to_install_for_every_plugin() -> None:
    assert write_known_packages.TARGET.read_text(encoding="utf-8") == write_known_packages.text(), "run make fix"


def test_pins_name_versions_and_nothing_else() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, equals, version = line.partition("==")
        assert equals, line
        assert name, line
        assert version[0].isdigit(), line
        assert not set("@/: ") & set(line), line
