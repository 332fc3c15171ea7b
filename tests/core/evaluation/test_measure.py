"""`evaluate`: one definition of each number, on held-out images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from saev_core.activations.sources.heldout import heldout_mask
from saev_core.activations.sources.stored import StoreSource
from saev_core.activations.sources.stored_vectors import StoredVectors
from saev_core.activations.store.meta import StoreMeta
from saev_core.activations.store.store import ActivationStore
from saev_core.config.stages import EvaluateConfig, ReadConfig, TrainConfig
from saev_core.errors import CheckpointError
from saev_core.evaluation.measure import Tally, evaluate, measure
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.codes import Codes
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.testing.sae_contract import planted
from saev_core.training.train import TrainSpec, train
from saev_core.types import Site

SITE = Site(1)


def store_of(tmp_path: Path, x: torch.Tensor, missing: tuple[int, ...] = ()) -> ActivationStore:
    """`x [n, 4, d]` as a store of 2 x 2 patches."""
    meta = StoreMeta(
        model={"name": "none", "n_blocks": 2}, dataset={"name": "none"}, rows=2, cols=2, patch_px=8, d_model=x.shape[2], dtype="float32",
        n_images=len(x), chunk_images=4, shard_images=16,
    )  # fmt: skip
    store = ActivationStore.create(str(tmp_path / "store"), meta)
    store.add_site(SITE)
    for shard in range(store.n_shards):
        images = range(shard * 16, min(len(x), shard * 16 + 16))
        with store.write_shard([SITE], shard) as writer:
            writer.append({SITE: x[images.start : images.stop]}, list(images), missing=[i in missing for i in images])
    return store


def trained(store: ActivationStore, read: ReadConfig) -> Checkpoint:
    source = StoreSource(store, read)
    sae = TopK(TopKConfig(d_in=12, d_sae=40, k=3), torch.Generator().manual_seed(0))
    (checkpoint,) = train(source, [TrainSpec("a", sae)], TrainConfig(batch_size=32, n_tokens=32 * 60, n_init=100))
    return checkpoint


def vectors(checkpoint: Checkpoint, store: ActivationStore) -> StoredVectors:
    return StoredVectors(store, checkpoint.read)


@pytest.fixture
def images() -> torch.Tensor:
    return planted(50 * 4, 12)[0].view(50, 4, 12)


def test_every_number_is_its_definition(tmp_path: Path, images: torch.Tensor) -> None:
    """Recomputed densely in float64 over the held-out images, by the formulas alone."""
    store = store_of(tmp_path, images, missing=(7, 8))
    read = ReadConfig(layer=1, heldout=0.3)
    checkpoint = trained(store, read)
    cfg = EvaluateConfig(batch_size=24, dense=0.05, almost_dead=0.02)
    done = measure(checkpoint, vectors(checkpoint, store), cfg)

    held = [i for i in np.flatnonzero(heldout_mask(50, 0.3, 0)) if i not in (7, 8)]
    x = checkpoint.norm(images[held].reshape(-1, 12))
    z = checkpoint.sae.encode(x).detach().double()
    x_hat = checkpoint.sae.decode(checkpoint.sae.encode(x)).detach().double()
    x = x.double()
    error = (x - x_hat).square().sum()
    frequency = (z > 0).double().mean(0)
    card = done.card
    assert card["nmse"] == pytest.approx(float(error / (x - x.mean(0)).square().sum()), rel=1e-6)
    assert card["explained_variance"] == pytest.approx(1 - card["nmse"])
    assert card["mse"] == pytest.approx(float(error / len(x)), rel=1e-6)
    assert card["l0"] == pytest.approx(float((z > 0).sum(1).double().mean()))
    assert card["l1"] == pytest.approx(float(z.sum(1).mean()), rel=1e-6)
    assert card["dead"] == pytest.approx(float((frequency == 0).double().mean()))
    assert card["dense"] == pytest.approx(float((frequency > 0.05).double().mean()))
    assert card["n_almost_dead"] == int(((frequency > 0) & (frequency < 0.02)).sum())
    assert card["n_images"] == len(held)
    assert card["n_vectors"] == 4 * len(held)
    np.testing.assert_allclose(done.frequency, frequency)
    mean = torch.where(frequency > 0, z.sum(0) / (z > 0).sum(0).clamp_min(1), 0.0)
    np.testing.assert_allclose(done.mean_value, mean, rtol=1e-6)
    for name in ("log_frequency", "log_value"):
        assert sum(card["histograms"][name]["counts"]) == int((frequency > 0).sum())
    json.dumps(card, allow_nan=False)
    assert evaluate(checkpoint, vectors(checkpoint, store), cfg) == card


def test_batches_change_nothing(tmp_path: Path, images: torch.Tensor) -> None:
    store = store_of(tmp_path, images)
    checkpoint = trained(store, ReadConfig(layer=1, heldout=0.3))
    small, large = (evaluate(checkpoint, vectors(checkpoint, store), EvaluateConfig(batch_size=size)) for size in (4, 10_000))
    assert small["nmse"] == pytest.approx(large["nmse"], rel=1e-6)
    assert small["l0"] == large["l0"]


def test_training_images_are_not_measured_unless_asked_for(tmp_path: Path, images: torch.Tensor) -> None:
    store = store_of(tmp_path, images)
    checkpoint = trained(store, ReadConfig(layer=1, heldout=0.3))
    counts = {
        name: evaluate(checkpoint, vectors(checkpoint, store), EvaluateConfig(), images=name)["n_images"]
        for name in ("heldout", "train", "all")
    }
    assert counts == {"heldout": 15, "train": 35, "all": 50}
    chosen = evaluate(checkpoint, vectors(checkpoint, store), EvaluateConfig(), images=np.array([3, 1]))
    assert (chosen["n_images"], chosen["images"]) == (2, "chosen")


def test_predicting_the_mean_has_nmse_one_wherever_the_mean_lies() -> None:
    """About the mean VECTOR: a common offset must not flatter it, nor a scale, nor how it is split into batches."""
    generator = torch.Generator().manual_seed(0)
    for offset, scale in ((0.0, 1.0), (50.0, 1.0), (3.0, 1e-3)):
        x = torch.randn(1000, 6, generator=generator) * scale + offset
        tally, x_hat = Tally(6, 5), x.double().mean(0).expand(1000, 6)
        for a in range(0, 1000, 130):
            tally.add(x[a : a + 130], x_hat[a : a + 130], Codes.from_dense(torch.zeros(len(x[a : a + 130]), 5)))
        card = tally.result(EvaluateConfig()).card
        assert card["nmse"] == pytest.approx(1, rel=1e-6)
        assert card["dead"] == 1.0
        assert card["l0"] == 0.0


def test_what_cannot_be_measured_is_one_clear_line(tmp_path: Path, images: torch.Tensor) -> None:
    store = store_of(tmp_path, images)
    checkpoint = trained(store, ReadConfig(layer=1, heldout=0.0))
    with pytest.raises(CheckpointError, match=r"no image to evaluate on.*heldout is 0"):
        evaluate(checkpoint, vectors(checkpoint, store), EvaluateConfig())
    with pytest.raises(CheckpointError, match="no vectors to evaluate on"):
        Tally(3, 3).result(EvaluateConfig())
    other = store_of(tmp_path / "other", images[:40])
    checkpoint = trained(store, ReadConfig(layer=1))
    with pytest.raises(CheckpointError, match="another store"):
        evaluate(checkpoint, vectors(checkpoint, other), EvaluateConfig())
