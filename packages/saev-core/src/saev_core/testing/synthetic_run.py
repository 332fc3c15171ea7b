"""`synthetic_run`: a run of any size with realistic random data, for load tests and benchmarks of the viewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from saev_core.activations.store.meta import StoreMeta
from saev_core.activations.store.store import ActivationStore
from saev_core.config.base import PluginRef
from saev_core.config.run import RunConfig
from saev_core.config.stages import ReadConfig
from saev_core.data.shapes import Shapes, ShapesConfig
from saev_core.features.accumulate import PERCENTILES, FeatureAccumulator
from saev_core.features.histogram import N_BINS, edges
from saev_core.features.index import FORMAT
from saev_core.features.random_images import N_COACTIVE
from saev_core.runs.run import Run
from saev_core.sae.base import make_sae
from saev_core.sae.checkpoint import Checkpoint, ref_of
from saev_core.sae.norm import Norm
from saev_core.types import Site

SITE = Site(10)


def synthetic_run(
    folder: str | Path,
    *,
    d_sae: int = 24_576,
    n_images: int = 50_000,
    d_model: int = 768,
    n_labels: int = 1000,
    side: int = 14,
    top_k: int = 24,
    n_samples: int = 40,
    recorded: bool = False,
    seed: int = 0,
) -> Run:
    """Create a run whose images are `shapes`, whose SAE is untrained, and whose feature index is random.

    Its frequencies, values, heat maps, samples and labels are distributed like those of trained SAEs, and one feature in
    fifty never fires; they are unrelated to the images.

    Args:
        side: rows and columns of patches.
        recorded: also write random activations; otherwise the store holds only labels, sizes and crops.
    """
    rng = np.random.default_rng(seed)
    config = RunConfig.model_validate(
        {
            "dataset": PluginRef(name="shapes", options={"n": n_images}),
            "sae": PluginRef(name="topk", options={"d_sae": d_sae, "k": 32}),
            "index": {"top_k": top_k, "n_samples": n_samples},
        }
    )
    run = Run.create(folder, config)
    labels = rng.integers(0, n_labels, n_images)
    store = _store(run, labels, d_model, side, recorded, rng)
    torch.manual_seed(seed)
    sae = make_sae(config.sae.model_copy(), d_model)
    meta = store.meta
    about = {"fingerprint": meta.fingerprint, "model": meta.model, "dataset": meta.dataset, "transform": meta.transform}
    train = {"n_vectors": 100_000_000, "lr": 1e-3, "seed": seed}
    card = {"nmse": 0.12, "l0": 32.0, "dead": 0.02, "almost_dead": 0.02, "dense": 0.1}
    checkpoint = Checkpoint(sae, Norm.identity(d_model), ref_of(sae), str(SITE), ReadConfig(layer=SITE.layer), about, train, card)
    checkpoint.save(run.sae_dir("topk"))
    found = _filled(d_sae, n_images, side * side, top_k, n_samples, labels, n_labels, rng)
    attributes = {
        "saev_features": FORMAT,
        "checkpoint": checkpoint.fingerprint,
        "store": meta.fingerprint,
        "grid": {"rows": side, "cols": side, "patch_px": 16},
        "tokens": "patches",
        "percentile": 99.0,
    }
    found.write(run.features_path("topk"), attributes, PERCENTILES)
    return run


def _store(run: Run, labels: np.ndarray[Any, Any], d_model: int, side: int, recorded: bool, rng: np.random.Generator) -> ActivationStore:
    n, dataset = len(labels), Shapes(ShapesConfig(n=len(labels)))
    meta = StoreMeta(
        model={"name": "tiny", "options": {}, "n_blocks": 12},
        dataset={"name": "shapes", "options": {}, "identity": dataset.identity()},
        rows=side,
        cols=side,
        patch_px=16,
        d_model=d_model,
        n_images=n,
    )
    store = ActivationStore.create(run.store_url, meta)
    store.add_site(SITE)
    px = dataset.cfg.size
    facts = {"label": labels, "size": np.full((n, 2), px), "crop": np.tile(np.array([0, 0, px, px], np.float32), (n, 1))}
    for shard in range(store.n_shards):
        images = np.arange(n)[shard * meta.shard_images : (shard + 1) * meta.shard_images]
        if recorded:
            with store.write_shard([SITE], shard) as writer:
                x = torch.from_numpy(rng.standard_normal((len(images), side * side, d_model), np.float32))
                writer.append({SITE: x}, images, **{name: values[images] for name, values in facts.items()})
        else:
            for name, values in facts.items():
                store._arrays.put(name, store._tables[name], shard, values[images])
    return store


class _Filled(FeatureAccumulator):
    """An accumulator with a given monosemanticity."""

    monosemanticity: np.ndarray[Any, Any]

    def arrays(self, percentiles: Any) -> dict[str, np.ndarray[Any, Any]]:
        return super().arrays(percentiles) | {"monosemanticity": self.monosemanticity}


def _filled(
    d_sae: int, n_images: int, n_patches: int, k: int, n_samples: int, labels: np.ndarray[Any, Any], n_labels: int, rng: np.random.Generator
) -> FeatureAccumulator:
    found = _Filled(d_sae, n_patches, k, n_samples=n_samples, n_labels=n_labels)
    alive = rng.random(d_sae) > 0.02
    found.n_images, found.n_vectors = n_images, n_images * n_patches
    # Image frequency spans three decades, values one.
    firing = np.where(alive, np.clip(10 ** rng.normal(-2, 0.7, d_sae), 2 / n_images, 0.9), 0)
    scale = 10 ** rng.normal(0.3, 0.3, d_sae)
    found.images_firing[:] = np.round(firing * n_images)
    found.monosemanticity = np.where(alive, rng.beta(2, 3, d_sae), np.nan).astype(np.float32)
    n_active = found.images_firing * rng.integers(1, max(2, n_patches // 4), d_sae)
    middle = (edges()[:-1] + edges()[1:]) / 2
    bell = np.exp(-0.5 * (np.log(middle) / 0.7) ** 2)  # for a feature of scale 1
    shift = np.round(np.log2(scale) * 32).astype(int)
    for move in np.unique(shift):
        here = np.flatnonzero(shift == move)
        share = np.roll(bell, move)
        found.histogram.counts[here] = np.round(share / share.sum() * n_active[here, None])
        found.histogram.counts[here, int(share.argmax())] += n_active[here] > 0
    total = found.histogram.counts.sum(1, dtype=np.int64)
    found.sum[:] = total * scale * 1.2
    found.max[:] = np.where(total > 0, scale * rng.uniform(4, 8, d_sae), 0)
    found.position[:] = rng.random((d_sae, n_patches), np.float32)
    found.position *= (found.sum / found.position.sum(1))[:, None].astype(np.float32)

    kept = np.arange(k) < found.images_firing[:, None]
    first = rng.integers(0, n_images, d_sae)[:, None]
    step = rng.integers(1, max(2, n_images // k), d_sae)[:, None]
    found.top.image[:] = np.where(kept, (first + step * np.arange(k)) % n_images, -1)
    found.top.token[:] = np.where(kept, rng.integers(0, n_patches, (d_sae, k)), -1)
    found.top.value[:] = np.where(kept, found.max[:, None] * np.linspace(1, 0.6, k, dtype=np.float32), 0)
    blobs = _blobs(n_patches)
    for start in range(0, d_sae, 1024):
        rows = slice(start, start + 1024)
        found.top._maps[rows] = blobs[np.maximum(found.top.token[rows], 0)] * found.top.value[rows, :, None]

    kept = np.arange(n_samples) < found.images_firing[:, None]
    samples = found.samples
    samples.image[:] = np.where(kept, rng.integers(0, n_images, (d_sae, n_samples)), -1)
    samples.token[:] = np.where(kept, rng.integers(0, n_patches, (d_sae, n_samples)), -1)
    samples.value[:] = np.where(kept, scale[:, None] * rng.lognormal(0, 0.6, (d_sae, n_samples)), 0)
    samples.coactive[:] = rng.integers(0, d_sae, (d_sae, n_samples, N_COACTIVE))
    samples.coactive[..., :2] = (np.arange(d_sae)[:, None, None] + [1, 17]) % d_sae  # two features that often co-occur
    samples.coactive[~kept] = -1
    if n_labels:
        found.label_images[:] = np.bincount(labels, minlength=n_labels)
        share = found.label_images / n_images
        for label in range(n_labels):
            found.label_count[label] = rng.poisson(share[label] * found.images_firing)
        liked = rng.integers(0, n_labels, d_sae)
        found.label_count[liked, np.arange(d_sae)] += (0.2 * found.images_firing).astype(np.int32)
    assert found.histogram.counts.shape[1] == N_BINS
    return found


def _blobs(n_patches: int) -> np.ndarray[Any, Any]:
    """A round spot at every patch of a square grid, `[n_patches, n_patches]`, 1 at its centre and 0 far away."""
    side = round(n_patches**0.5)
    at = np.stack(np.divmod(np.arange(n_patches), side), 1).astype(np.float32)
    apart = np.square(at[:, None] - at[None]).sum(-1)
    spot = np.exp(-apart / 4)
    return np.where(spot > 0.1, spot, 0).astype(np.float16)
