"""Fixtures of the viewer's tests: a small real run on a folder of pictures, a server on it, and a browser."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saev_core.cli import main
from saev_core.features.index import FeatureIndex
from saev_core.features.naming.names import Name, Names
from saev_core.runs.run import Run

SHAPES = [(300, 200), (200, 300), (240, 240), (320, 180)]
N_IMAGES = 24
SMALL = ["train.n_tokens=3000", "train.n_init=256", "train.batch_size=128", "sae.options.d_sae=48", "sae.options.k=4"]


def paint(folder: Path, n: int = N_IMAGES) -> None:
    """Pictures of several shapes in two classes: `dots` and `stripes`."""
    rng = np.random.default_rng(0)
    for i in range(n):
        width, height = SHAPES[i % len(SHAPES)]
        y, x = np.mgrid[:height, :width]
        period = int(rng.integers(12, 40))
        on = (x // period) % 2 if i % 2 else ((x % period - period / 2) ** 2 + (y % period - period / 2) ** 2 < (period / 4) ** 2)
        pixels = np.where(on[..., None], rng.integers(120, 255, 3), rng.integers(0, 100, 3)).astype(np.uint8)
        (folder / ("stripes" if i % 2 else "dots")).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / ("stripes" if i % 2 else "dots") / f"{i:02}.png")


@pytest.fixture(scope="session")
def run_of_pictures(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of the shipped model on painted pictures with labels, made by the real commands. Read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("viewer")
    paint(folder / "pictures")
    command = ["run", "--out", str(folder / "run"), "--model", "tiny", "--dataset", f"image-folder:{folder / 'pictures'}"]
    assert main([*command, "--set", *SMALL]) == 0
    return Run.open(folder / "run")


SWEEP = """
[sae]
d_sae = 48
[train]
n_tokens = 3000
n_init = 256
batch_size = 128
[[point]]
sae.name = "topk"
sae.k = [2, 4, 8, 12]
[[point]]
sae.name = "relu"
"""


@pytest.fixture(scope="session")
def sweep_of_pictures(run_of_pictures: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A sweep on the same pictures: four topk SAEs and a relu, of which `relu`, `topk-k4` and the best are indexed. Read only."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.toml").write_text(SWEEP)
    data = f"image-folder:{run_of_pictures.path.parent / 'pictures'}"
    command = ["run", "--out", str(folder / "sweep"), "--model", "tiny", "--dataset", data, "--sweep", str(folder / "sweep.toml")]
    assert main(command) == 0
    assert main(["index", str(folder / "sweep"), "--only", "relu", "--only", "topk-k4"]) == 0
    return Run.open(folder / "sweep")


@pytest.fixture(scope="session")
def run_of_another_model(run_of_pictures: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run on the same pictures with another model: other patches, another crop, random weights. Read-only."""
    folder = tmp_path_factory.mktemp("another")
    data = f"image-folder:{run_of_pictures.path.parent / 'pictures'}"
    command = ["run", "--out", str(folder / "another"), "--model", "timm:vit_tiny_patch16_224", "--dataset", data, "--record-layers", "1"]
    assert main([*command, "--set", *SMALL, "model.options.pretrained=false", "model.options.image_px=160"]) == 0
    return Run.open(folder / "another")


@pytest.fixture
def copied(run_of_pictures: Run, tmp_path: Path) -> Run:
    """A copy of the run, to change."""
    shutil.copytree(run_of_pictures.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


@pytest.fixture(scope="session")
def write_names() -> Callable[[Run, str, Mapping[int, tuple[str, float]]], None]:
    """Writes names and their scores for features of an SAE, as `saev index --names` does."""

    def write(run: Run, sae: str, given: Mapping[int, tuple[str, float]]) -> None:
        index = FeatureIndex.open(run.features_path(sae))
        names = {feature: Name(name, score, 9, "") for feature, (name, score) in given.items()}
        made = Names("text", index.attributes["checkpoint"], 0.7, 3, names, index.d_sae, index.d_sae, 0, index.n_images, index.n_images)
        made.save(run.features_path(sae).with_suffix(".names.json"))

    return write
