"""Proposed feature names, each scored on images that were not used to choose it; features may stay unnamed.

A name is chosen on training images and scored on held-out ones: the AUROC with which the name (presence of the concept, or
similarity of image and text) predicts which of them fire the feature. Below a threshold a feature stays unnamed.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_array

from saev_core.features.naming.auroc import Agreement
from saev_core.features.naming.concepts import Concepts, Labels, Masks, Truth, known_concepts
from saev_core.features.naming.firing import Division, divide, division_of, fires_from, firing
from saev_core.features.naming.names import FORMAT, SOURCES, Name, Names, Source
from saev_core.features.naming.score_names import score_names
from saev_core.support.progress import Track, silent

if TYPE_CHECKING:
    from saev_core.activations.store.store import ActivationStore
    from saev_core.config.stages import NamesConfig
    from saev_core.features.index import FeatureIndex
    from saev_core.sae.checkpoint import Checkpoint

log = logging.getLogger(__name__)


def names_from(
    checkpoint: Checkpoint, store: ActivationStore, index: FeatureIndex, concepts: Concepts, cfg: NamesConfig, *, track: Track = silent
) -> Names:
    """Names from binary concepts: the most specific of those with the best AUROC on training images, scored on held-out ones.

    Raises:
        CheckpointError: no image is held out.
    """
    parts, least = division_of(checkpoint, store, cfg.n_images), fires_from(index, cfg.fires)
    d_sae = checkpoint.sae.d_sae
    tallies = [Agreement(len(concepts.names), d_sae) for _ in range(2)]
    per_image = store.grid.n_patches if concepts.per_patch else 1
    for tally, images in zip(tallies, (parts.train, parts.heldout), strict=True):
        for numbers, fires in firing(checkpoint, store, images, least, per_patch=concepts.per_patch, track=track):
            true, counts = concepts.of(numbers)
            n_series = fires.shape[0] // len(counts)
            counts, owner = np.tile(counts, n_series), np.tile(np.repeat(numbers, per_image), n_series)
            tally.add(np.tile(true, (n_series, 1))[counts], csr_array(fires[counts]), owner[counts])
    train, held = tallies
    choice, _ = train.best(2)
    scores = held.of(choice)
    few = train.fires == 0
    silent_ones = held.n - held.fires if concepts.per_patch else held.n_images - held.images
    few |= (held.images < cfg.n_positive) | (silent_ones < cfg.n_positive)
    source: Source = "truth" if isinstance(concepts, Truth) else "masks" if isinstance(concepts, Masks) else "labels"
    alive = (train.fires > 0) | (held.fires > 0)
    runner = choice[:, 1] if choice.shape[1] > 1 else np.full(d_sae, -1)
    names = chosen(concepts.names, choice[:, 0], runner, scores[:, 0], held.images, few, cfg.threshold)
    return Names(
        source, checkpoint.fingerprint, cfg.threshold, cfg.n_positive, names, d_sae, int(alive.sum()), int((alive & few).sum()),
        len(parts.train), len(parts.heldout), about={"unit": "patch" if concepts.per_patch else "image", "n_concepts": len(concepts.names)},
    )  # fmt: skip


def chosen(
    concepts: Sequence[str],
    best: Int[np.ndarray, " d_sae"],
    runner_up: Int[np.ndarray, " d_sae"],
    score: Float[np.ndarray, " d_sae"],
    n_positive: Int[np.ndarray, " d_sae"],
    few: Bool[np.ndarray, " d_sae"],
    threshold: float,
) -> dict[int, Name]:
    """The names above the threshold; -1 means no concept."""
    named = np.flatnonzero(~few & (best >= 0) & (score >= threshold))
    return {
        int(f): Name(concepts[best[f]], round(float(score[f]), 4), int(n_positive[f]), concepts[runner_up[f]] if runner_up[f] >= 0 else "")
        for f in named
    }


__all__ = [
    "FORMAT",
    "SOURCES",
    "Concepts",
    "Division",
    "Labels",
    "Masks",
    "Name",
    "Names",
    "Truth",
    "chosen",
    "divide",
    "division_of",
    "fires_from",
    "firing",
    "known_concepts",
    "names_from",
    "score_names",
]  # fmt: skip
