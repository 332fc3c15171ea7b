"""Which features fire on which images or patches, and which images are used to choose and to score names."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from saev_core.activations.sources.heldout import heldout_mask
from saev_core.activations.sources.stored_vectors import StoredVectors
from saev_core.errors import CheckpointError
from saev_core.support.progress import Track, silent

if TYPE_CHECKING:
    from saev_core.activations.store.store import ActivationStore
    from saev_core.features.index import FeatureIndex
    from saev_core.sae.checkpoint import Checkpoint
    from saev_core.sae.codes import Codes


_BATCH_VECTORS = 8192


@dataclass(frozen=True)
class Division:
    """The images used for naming: names are chosen on `train` and scored on `heldout`; numbers ascending."""

    train: Int[np.ndarray, " n_train"]
    heldout: Int[np.ndarray, " n_heldout"]
    pool: Bool[np.ndarray, " n_images"]
    """All images available for choosing names."""


def divide(usable: Bool[np.ndarray, " n_images"], heldout: Bool[np.ndarray, " n_images"], n: int) -> Division:
    """At most `n` images, a third of them held out; deterministic.

    Raises:
        CheckpointError: one side has no images.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    order = rng.permutation(len(usable))
    held = order[usable[order] & heldout[order]][: max(1, n // 3)]
    train = order[usable[order] & ~heldout[order]][: max(1, n - n // 3)]
    if not len(held) or not len(train):
        raise CheckpointError("names are scored on held-out images, but there are none; train with read.heldout=0.1.")
    return Division(np.sort(train), np.sort(held), usable & ~heldout)


def division_of(checkpoint: Checkpoint, store: ActivationStore, n: int) -> Division:
    """`divide` applied to the images that a checkpoint can read.

    Raises:
        CheckpointError: no image is held out.
    """
    read = checkpoint.read
    usable = np.asarray(StoredVectors(store, read).usable.all(0))
    return divide(usable, heldout_mask(store.n_images, read.heldout, read.split_seed), n)


def fires_from(index: FeatureIndex, share: float) -> Float[np.ndarray, " d_sae"]:
    """The value above which each feature counts as firing: `share` of its 99th percentile.

    Sparse codes have a long tail of small values, but a name should describe a feature's strong activations. On `shapes` a share of
    one half raised the share of correct names from 55 to 78 %.
    """
    return np.asarray(np.maximum(share * index.percentile(99.0), np.finfo(np.float32).tiny), np.float32)


def firing(
    checkpoint: Checkpoint,
    store: ActivationStore,
    images: Int[np.ndarray, " n"],
    least: Float[np.ndarray, " d_sae"],
    *,
    per_patch: bool,
    track: Track = silent,
) -> Generator[tuple[Int[np.ndarray, " batch"], csr_array]]:
    """Which features fire, and how strongly, on each image or patch of a batch: `(image numbers, [units, d_sae])`.

    Args:
        least: the value at which a feature starts to fire, `fires_from`.

    If several layers are read as separate examples, an image's value is the largest of them, and a patch appears once per layer.
    """
    vectors, d_sae = StoredVectors(store, checkpoint.read), checkpoint.sae.d_sae
    batch = max(1, _BATCH_VECTORS // store.grid.n_patches)
    peak: np.ndarray | None = None
    series = 0
    with track("names", len(images), "images") as meter:
        for index, x, _ in vectors.in_order(images, batch):
            codes = checkpoint.codes(x)
            row, feature, value = _entries(codes, least)
            if per_patch:
                yield index, csr_array((value, (row, feature)), shape=(x.shape[0] * x.shape[1], d_sae))
            else:
                peak = np.zeros((len(index), d_sae), np.float32) if peak is None else peak
                np.maximum.at(peak, (row // x.shape[1], feature), value)
            series += 1
            if series == vectors.n_series:
                if peak is not None:
                    yield index, csr_array(peak)
                peak, series = None, 0
                meter.update(len(index))


def _entries(codes: Codes, least: Float[np.ndarray, " d_sae"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, feature and value of the codes that are strong enough."""
    row, feature, value = (part.cpu().numpy() for part in (codes.rows, codes.feature, codes.value))
    active = value >= least[feature]
    return row[active], feature[active], value[active]
