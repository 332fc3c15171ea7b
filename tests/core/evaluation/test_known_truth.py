"""`recover` against a plain float64 reference, on activations whose features are known."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from saev_core.activations.recording.record import record
from saev_core.activations.sources.heldout import heldout_mask
from saev_core.activations.sources.stored_vectors import StoredVectors
from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import ReadConfig, RecordConfig
from saev_core.data.dataset import ImageDataset, KnownTruth
from saev_core.data.shapes import Shapes, ShapesConfig
from saev_core.errors import CheckpointError, DatasetError
from saev_core.evaluation.known_truth import Recovery, recover
from saev_core.models.base import VisionModel
from saev_core.models.tiny import Tiny, TinyConfig
from saev_core.models.transform import ResizeCrop
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.norm import Norm
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.types import Box, Example, Grid

MODEL_REF = {"name": "tiny", "dist": "saev-core", "options": {}}
DATASET_REF = {"name": "shapes", "dist": "saev-core", "options": {}}


@pytest.fixture(scope="module")
def shapes() -> Shapes:
    return Shapes(ShapesConfig(n=30))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, shapes: Shapes) -> ActivationStore:
    url = str(tmp_path_factory.mktemp("recovery") / "store")
    model = Tiny(TinyConfig(pretrained=False)).eval().requires_grad_(False)
    return record(model, shapes, url, RecordConfig(shard_images=16, chunk_images=8), model_ref=MODEL_REF, dataset_ref=DATASET_REF).store


def checkpoint(store: ActivationStore, k: int = 8, **read: object) -> Checkpoint:
    sae = TopK(TopKConfig(d_in=store.meta.d_model, d_sae=64, k=k), torch.Generator().manual_seed(0))
    site = store.sites[0]
    described = {"fingerprint": store.meta.fingerprint}
    config = ReadConfig.model_validate({"heldout": 0.3, **read})
    return Checkpoint(sae, store.norm(site), {"name": "topk", "dist": "saev-core", "version": "0"}, str(site), config, described)


def recovered(made: Checkpoint, store: ActivationStore, dataset: KnownTruth) -> Recovery:
    return recover(made, StoredVectors(store, made.read), dataset)


def reference(made: Checkpoint, store: ActivationStore, shapes: Shapes, name: str, at: tuple[int, float], *, held: bool) -> float:
    """F1 of one feature and threshold, counted patch by patch."""
    chosen = (heldout_mask(store.n_images, made.read.heldout, made.read.split_seed) == held).nonzero()[0]
    hits = said = true = 0
    row, (feature, threshold) = shapes.factors.index(name), at
    for index, x, _ in StoredVectors(store, made.read).in_order(chosen, 4):
        z = made.codes(x.flatten(0, 1)).dense().double().numpy()[:, feature]
        truth = np.concatenate([shapes.patch_factors(int(i), store.grid, store.crop(int(i)))[row] for i in index])
        yes = (z >= threshold) & (z > 0) & (truth >= 0)
        hits, said, true = hits + (yes & (truth == 1)).sum(), said + yes.sum(), true + (truth == 1).sum()
    return float(2 * hits / max(said + true, 1))


def test_f1_is_that_of_a_plain_count(store: ActivationStore, shapes: Shapes) -> None:
    made = checkpoint(store)
    found = recovered(made, store, shapes)
    assert len(found.rows) == len(shapes.factors) == 33
    for row in found.rows[::8]:
        name = f"{row.factor}={row.value}"
        assert row.f1 == pytest.approx(reference(made, store, shapes, name, (row.feature, row.threshold), held=True), abs=1e-12)
        assert row.f1_train == pytest.approx(reference(made, store, shapes, name, (row.feature, row.threshold), held=False), abs=1e-12)


def test_no_feature_and_threshold_is_better_on_training_images(store: ActivationStore, shapes: Shapes) -> None:
    made = checkpoint(store)
    row = recovered(made, store, shapes).rows[0]
    for feature, threshold in itertools.product(range(0, 64, 9), (0.0, 0.5, 1.5)):
        assert reference(made, store, shapes, "shape=circle", (feature, threshold), held=False) <= row.f1_train + 1e-12


class Painted(ImageDataset):
    """3 x 4 patches whose red and green channels are the truth; patches that are not counted are white."""

    factors: Sequence[str] = ("red=yes", "green=yes", "never=yes")

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Example:
        rows = self.patch_factors(index, Grid(3, 4, 8), Box(0, 0, 32, 24))
        tiles = (np.abs(rows).astype(np.uint8).T * 255).reshape(3, 4, 3)
        return Example(index, Image.fromarray(tiles.repeat(8, 0).repeat(8, 1)))

    def patch_factors(self, index: int, grid: Grid, crop: Box) -> np.ndarray:
        rng = np.random.default_rng(index)
        rows = (rng.random((3, grid.n_patches)) < 0.2).astype(np.int8)
        rows[2] = 0
        rows[:, rng.random(grid.n_patches) < 0.1] = -1
        return rows


class Pools(VisionModel):
    """The mean colour of each patch."""

    def __init__(self) -> None:
        super().__init__()
        self.grid, self.d_model = Grid(3, 4, 8), 3
        self.transform = ResizeCrop(None, None, (0.0,) * 3, (1.0,) * 3)
        self.pool = nn.AvgPool2d(8)
        self.blocks = nn.ModuleList([nn.Identity()])
        self.unused = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.blocks[0](self.pool(images).flatten(2).transpose(1, 2))
        return tokens


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> tuple[ActivationStore, Checkpoint]:
    """A store whose three axes are the truth, and an SAE whose features are the axes."""
    url = str(tmp_path_factory.mktemp("painted") / "store")
    cfg = RecordConfig(layers=(-1,), shard_images=8, chunk_images=4)
    store = record(Pools(), Painted(), url, cfg, model_ref=MODEL_REF, dataset_ref=DATASET_REF).store
    sae = TopK(TopKConfig(d_in=3, d_sae=3, k=3))
    with torch.no_grad():
        sae.W_enc.copy_(torch.eye(3))
    described = {"fingerprint": store.meta.fingerprint}
    made = Checkpoint(
        sae, Norm.identity(3), {"name": "topk", "dist": "", "version": ""}, "resid.0", ReadConfig(layer=0, heldout=0.3), described
    )
    return store, made


def test_features_that_are_the_truth_recover_it_wholly(painted: tuple[ActivationStore, Checkpoint]) -> None:
    store, made = painted
    red, green, never = recovered(made, store, Painted()).rows
    assert (red.f1, red.precision, red.recall, red.feature) == (1.0, 1.0, 1.0, 0)
    assert (green.f1, green.feature) == (1.0, 1)
    assert (never.f1, never.feature, never.n_positive) == (0.0, -1, 0)


def test_values_that_do_not_occur_are_left_out_of_the_mean(painted: tuple[ActivationStore, Checkpoint]) -> None:
    assert recovered(painted[1], painted[0], Painted()).mean == 1.0


def test_every_held_out_patch_is_counted_or_left_out(store: ActivationStore, shapes: Shapes) -> None:
    found = recovered(checkpoint(store), store, shapes)
    assert found.n_images == 9
    assert found.n_patches + found.n_left_out == 9 * 144
    assert 0 < found.n_left_out < 0.2 * 9 * 144


def test_recovery_is_json_and_a_table(store: ActivationStore, shapes: Shapes) -> None:
    found = recovered(checkpoint(store), store, shapes)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["mean"] == found.mean
    assert set(told["factors"]) == {"shape", "colour", "texture", "size", "place"}
    lines = found.table().splitlines()
    assert len(lines) == 1 + 33 + 5 + 1
    assert f"{found.mean:.3f}" in lines[-1]


def test_what_cannot_be_measured_is_refused(store: ActivationStore, shapes: Shapes, tmp_path: Path) -> None:
    class Plain(ImageDataset):
        pass

    with pytest.raises(DatasetError, match="Plain has no ground truth"):
        recovered(checkpoint(store), store, Plain())  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="train one on patches"):
        recovered(checkpoint(store, tokens="cls"), store, shapes)
    with pytest.raises(CheckpointError, match="held-out"):
        recovered(checkpoint(store, heldout=0.0), store, shapes)
    assert isinstance(shapes, KnownTruth)
