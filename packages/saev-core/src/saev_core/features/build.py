"""`index_features`: compute every feature's statistics and top images in one pass over a store, as a `FeatureIndex`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from saev_core.errors import StoreError
from saev_core.features.accumulate import PERCENTILES, FeatureAccumulator
from saev_core.features.index import FORMAT, FeatureIndex
from saev_core.sae.codes import Codes
from saev_core.support.progress import Track, silent
from saev_core.types import Grid

if TYPE_CHECKING:
    from saev_core.activations.store.store import ActivationStore
    from saev_core.config.stages import IndexConfig
    from saev_core.sae.checkpoint import Checkpoint

log = logging.getLogger(__name__)

MAX_LABEL_BYTES = 8 << 30
"""Label counts above this size are omitted, with a warning."""


def index_features(checkpoint: Checkpoint, store: ActivationStore, path: Path, cfg: IndexConfig, *, track: Track = silent) -> FeatureIndex:
    """Build the feature index of a checkpoint over all recorded images of a store, in one pass.

    Raises:
        CheckpointError: the checkpoint does not belong to the store.
        StoreError: the store has no images, is damaged, or the index cannot be written.
    """
    from saev_core.activations.sources.stored_vectors import StoredVectors

    checkpoint.check(store)
    path, read, vectors = Path(path), checkpoint.read, StoredVectors(store, checkpoint.read)
    labels, d_sae, n_patches = store.labels, checkpoint.sae.d_sae, vectors.n_tokens
    images = np.flatnonzero(vectors.usable.all(0))
    if len(images) == 0:
        raise StoreError(f"{store.url} has no recorded images to index; record some first with saev record.")
    n_labels = int(labels.max()) + 1
    if n_labels * d_sae * 4 > MAX_LABEL_BYTES:
        log.warning("%d labels times %d features are too many to count; the index has no label statistics.", n_labels, d_sae)
        n_labels = 0
    wide = len(images) * n_patches * vectors.n_series >= 1 << 31
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = FeatureAccumulator(
            d_sae,
            n_patches,
            cfg.top_k,
            n_samples=cfg.n_samples,
            n_labels=n_labels,
            d_embedding=vectors.d_model,
            wide=wide,
            folder=path.parent,
        )
    except OSError as error:
        raise StoreError(f"{path}: the feature index cannot be written ({error.strerror or error}); choose another --out.") from None
    layers: list[Codes] = []
    mean = checkpoint.norm.mean.cpu()
    embedding = torch.empty(0)
    with track("index", len(images), "images") as meter:
        for index, x, _ in vectors.in_order(images, cfg.batch_images):
            layers.append(checkpoint.codes(x))
            pooled = x.mean(1) - mean
            embedding = pooled if len(layers) == 1 else embedding + pooled
            if len(layers) == vectors.n_series:  # the same images appeared once per layer
                found.add(index, layers, labels[index], embedding.numpy())
                layers = []
                meter.update(len(index))
    grid = store.grid if n_patches == store.grid.n_patches else Grid(1, 1, max(store.grid.height_px, store.grid.width_px))
    attributes = {
        "saev_features": FORMAT,
        "checkpoint": checkpoint.fingerprint,
        "weights": checkpoint.weights_digest,
        "store": store.meta.fingerprint,
        "grid": {"rows": grid.rows, "cols": grid.cols, "patch_px": grid.patch_px},
        "tokens": read.tokens,
        "percentile": cfg.percentile,
    }
    found.write(path, attributes, sorted({*PERCENTILES, cfg.percentile}))
    return FeatureIndex.open(path)  # without the checkpoint: its fingerprint is slow to compute and has just been written
