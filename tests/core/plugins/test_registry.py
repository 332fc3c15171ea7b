"""Discovery, with wheels that are really built and installed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import BuildWheel, Saev

from saev_core.errors import ConfigError, PluginError, UnknownPluginError
from saev_core.plugins.registry import config_class, find, installed, parse_ref, resolve

STRIPES = """
    import numpy as np
    from PIL import Image
    from saev_core import DatasetConfig, Example, ImageDataset

    class Config(DatasetConfig):
        n: int = 4
        '''Images.'''

    class Stripes(ImageDataset):
        Config = Config
        classes = ["horizontal", "vertical"]

        def __init__(self, cfg):
            self.cfg = cfg

        def __len__(self):
            return self.cfg.n

        def __getitem__(self, index):
            pixels = np.zeros((64, 64, 3), np.uint8)
            stripe = slice(index % 8, None, 8)
            if index % 2:
                pixels[:, stripe] = 255
            else:
                pixels[stripe] = 255
            return Example(index, Image.fromarray(pixels), label=index % 2)
"""


@pytest.fixture(scope="module")
def world(build_wheel: BuildWheel, install: Callable[..., Path]) -> Path:
    """One good plugin, two distributions with one name, a plugin that cannot be imported, and one that is no plugin."""
    return install(
        build_wheel("stripes-a", {"saev.datasets": {"bands": "stripes_a:Stripes"}}, {"stripes_a.py": STRIPES}),
        build_wheel(
            "Stripes_B", {"saev.datasets": {"bands": "stripes_b:Stripes", "spots": "stripes_b:Stripes"}}, {"stripes_b.py": STRIPES}
        ),
        build_wheel("rotten", {"saev.datasets": {"rotten": "rotten:Gone"}}, {"rotten.py": "import a_library_that_is_not_there\n"}),
        build_wheel("hollow", {"saev.models": {"hollow": "hollow:Hollow"}}, {"hollow.py": "class Hollow: pass\n"}),
    )


def test_every_plugin_is_listed_from_metadata_without_importing_any(saev: Saev, world: Path) -> None:
    done = saev("plugins", "--json", path=world)
    assert done.returncode == 0, done.stderr
    listed = {(p["kind"], p["name"], p["dist"]) for p in json.loads(done.stdout)}
    assert {("dataset", "bands", "stripes-a"), ("dataset", "bands", "stripes-b"), ("dataset", "rotten", "rotten")} <= listed
    assert ("model", "tiny", "saev-core") in listed


@pytest.mark.slow
def test_check_says_ok_or_why_not_for_each(saev: Saev, world: Path) -> None:
    done = saev("plugins", "--check", "--json", path=world)
    by_name = {(p["name"], p["dist"]): p for p in json.loads(done.stdout)}
    assert by_name["spots", "stripes-b"]["ok"]
    assert by_name["tiny", "saev-core"]["ok"], by_name["tiny", "saev-core"]["error"]
    error = by_name["rotten", "rotten"]["error"]
    assert all(part in error for part in ("dataset", "'rotten'", "rotten:Gone", "rotten 0.1.0", "a_library_that_is_not_there"))
    assert "no `Config`" in by_name["hollow", "hollow"]["error"]
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1


def ask(saev: Saev, world: Path, dataset: str) -> tuple[int, str]:
    """Exit code and stderr of a plan on a data set: the model and images are really loaded."""
    done = saev("store", "plan", "--dataset", dataset, "--set", "model.pretrained=false", "--out", world / "none", path=world)
    return done.returncode, done.stderr


def test_two_distributions_with_one_name_are_both_named_with_the_spelling_that_chooses(saev: Saev, world: Path) -> None:
    code, text = ask(saev, world, "bands")
    assert code == 2
    assert text.splitlines() == ["saev: dataset 'bands' is provided by stripes-a and stripes-b; use stripes-a:bands or stripes-b:bands."]


def test_dist_and_name_chooses_also_with_a_main_option(saev: Saev, world: Path) -> None:
    assert ask(saev, world, "stripes-b:bands") == (0, "")
    assert ask(saev, world, "Stripes.B:bands:7") == (0, "")


def test_a_broken_neighbour_hurts_nobody(saev: Saev, world: Path) -> None:
    assert ask(saev, world, "spots:3") == (0, "")


def test_a_broken_plugin_is_one_error_that_names_plugin_target_distribution_and_cause(saev: Saev, world: Path) -> None:
    code, text = ask(saev, world, "rotten")
    assert code == 1
    assert text.splitlines() == [
        "saev: dataset plugin 'rotten' (rotten:Gone, from rotten 0.1.0) cannot be imported: "
        "ModuleNotFoundError: No module named 'a_library_that_is_not_there'"
    ]


def test_a_near_miss_is_named(saev: Saev, world: Path) -> None:
    code, text = ask(saev, world, "spotz")
    assert code == 2
    assert "no dataset plugin named 'spotz'; did you mean spots" in text
    assert "Installed: " in text


def test_a_wrong_option_of_a_plugin_is_named_with_its_place(saev: Saev, world: Path) -> None:
    done = saev("store", "plan", "--dataset", "spots", "--set", "dataset.nn=3", path=world, cwd=world)
    assert done.returncode == 2
    assert done.stderr == "saev: dataset.options.nn: unknown; did you mean n?\n"


def test_an_unknown_name_of_ours_says_what_to_install() -> None:
    from saev_core.plugins.registry import _pick

    for kind, name, dist in [
        ("model", "clip", "saev-models"),
        ("model", "dinov2-focus", "saev-dinov2-focus"),
        ("sae", "transcoder", "saev-saes"),
        ("sae", "crosscoder", "saev-saes"),
        ("tracker", "wandb", "saev-wandb"),
        ("tracker", "tensorboard", "saev-tensorboard"),
    ]:
        with pytest.raises(UnknownPluginError) as caught:
            _pick(kind, name, [])
        assert str(caught.value) == f"no {kind} plugin named {name!r}; pip install {dist}."
    with pytest.raises(UnknownPluginError, match=r"did you mean tiny\?"):
        find("model", "tinny")


def test_a_colon_sets_the_main_option() -> None:
    assert parse_ref("sae", "topk:32").options == {config_class(find("sae", "topk")).main_option(): "32"}
    assert parse_ref("sae", "saev-core:topk").name == "saev-core:topk"
    _, cfg = resolve("sae", "topk:16")
    assert cfg.k == 16


def test_a_value_that_does_not_fit_is_named() -> None:
    with pytest.raises(ConfigError, match=r"sae\.options\.k: .*got 'many'"):
        resolve("sae", "topk:many")


def test_our_own_plugins_import() -> None:
    names = {plugin.name for plugin in installed("dataset")}
    assert {"shapes", "photos", "image-folder"} <= names


def test_an_unknown_group_of_a_missing_package_is_not_an_error() -> None:
    assert isinstance(installed("task"), list)
    with pytest.raises(PluginError):
        find("task", "anything")
