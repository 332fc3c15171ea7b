"""The rooms of the packages: what the import contracts cover, how large a room is, and that each says what it is."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import grimp
import pytest
from commands import ROOT

LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
LAYERED = [contract for contract in LINTER["contracts"] if contract["type"] == "layers"]
SOURCES = {
    "saev_core": ROOT / "packages" / "saev-core" / "src" / "saev_core",
    "saev_viz": ROOT / "packages" / "saev-viz" / "src" / "saev_viz",
    "saev_tasks": ROOT / "plugins" / "saev-tasks" / "src" / "saev_tasks",
}
MOST_FILES = 12
LARGER = {
    "saev_core/sae": "the SAE, its kernels and the built-in variants",
    "saev_core/cli": "one file a command",
}
"""Rooms of more files than that, and why."""

ROOMS = sorted(folder.parent for source in SOURCES.values() for folder in source.rglob("__init__.py"))


def name(folder: Path) -> str:
    """`saev_core/sae` of a folder in the checkout."""
    return folder.as_posix().rpartition("/src/")[2]


def named(contract: dict) -> set[str]:
    """The modules that a contract's layers name."""
    return {layer.strip() for line in contract["layers"] for layer in re.split("[|:]", line)}


@pytest.mark.parametrize("package", SOURCES)
def test_every_module_is_covered_by_a_contract_of_its_package(package: str) -> None:
    (contract,) = [contract for contract in LAYERED if contract["containers"] == [package]]
    modules = grimp.build_graph(package, cache_dir=None).modules - {package}
    rooms = {module.split(".")[1] for module in modules}
    assert contract["exhaustive"] is True
    assert named(contract) == rooms
    covered = {module for module in modules if module.split(".")[1] in named(contract)}
    files = {".".join(name(path).removesuffix(".py").split("/")).removesuffix(".__init__") for path in SOURCES[package].rglob("*.py")}
    assert covered == modules == files - {package}


def test_the_core_has_ten_layers_of_rooms_and_of_the_few_files_beside_them() -> None:
    (core,) = [contract for contract in LAYERED if contract["containers"] == ["saev_core"]]
    beside = {path.stem for path in SOURCES["saev_core"].glob("*.py")}
    assert len(core["layers"]) == 10
    assert named(core) & beside == {"errors", "types", "workspace"}
    # An arrow that only a type checker sees is an arrow.
    assert LINTER["exclude_type_checking_imports"] is False


@pytest.mark.parametrize("room", ROOMS, ids=name)
def test_a_room_says_what_it_is_and_is_not_too_large(room: Path) -> None:
    said = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8")))
    assert said, f"{name(room)}/__init__.py has no docstring"
    assert len(said) > 30
    n_files = len([path for path in room.glob("*.py") if path.name != "__init__.py"])
    assert n_files <= MOST_FILES or name(room) in LARGER


def test_every_module_has_a_docstring() -> None:
    bare = [
        name(path)
        for source in SOURCES.values()
        for path in source.rglob("*.py")
        if len(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "") < 12
    ]
    assert not bare


def test_no_import_of_ours_hides_from_the_contracts() -> None:
    """`importlib.import_module` serves the two packages that resolve their public names on first use, and nothing else."""
    found = {
        name(path)
        for source in SOURCES.values()
        for path in source.rglob("*.py")
        if re.search(r"\bimport_module\b|__import__\(", path.read_text(encoding="utf-8"))
    }
    assert found == {"saev_core/__init__.py", "saev_core/testing/__init__.py"}
