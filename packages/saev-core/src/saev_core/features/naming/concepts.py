"""`Concepts`: what is known of each image or patch, from labels, masks or ground truth, to name features by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from jaxtyping import Bool, Int, UInt16

from saev_core.activations.store.meta import NO_CLASS
from saev_core.data.dataset import KnownTruth
from saev_core.errors import RunError

if TYPE_CHECKING:
    from saev_core.activations.store.store import ActivationStore
    from saev_core.data.dataset import ImageDataset
    from saev_core.sae.checkpoint import Checkpoint


class Concepts(Protocol):
    """Yes-or-no concepts of images, or of their patches."""

    names: list[str]
    per_patch: bool

    def of(self, images: Int[np.ndarray, " b"]) -> tuple[Bool[np.ndarray, "n n_concepts"], Bool[np.ndarray, " n"]]:
        """Which concepts are true of each image or patch, and which of these count."""
        ...


class Labels:
    """Image labels; a label is true of the whole image."""

    per_patch = False

    def __init__(self, labels: Int[np.ndarray, " n_images"], classes: Sequence[str] | None) -> None:
        n = max(int(labels.max(initial=-1)) + 1, 0)
        self._labels = labels
        self.names = [classes[i] if classes is not None and i < len(classes) else f"label {i}" for i in range(n)]

    def of(self, images: Int[np.ndarray, " b"]) -> tuple[Bool[np.ndarray, "b n_concepts"], Bool[np.ndarray, " b"]]:
        label = self._labels[images]
        return np.asarray(label[:, None] == np.arange(len(self.names))), np.asarray(label >= 0)


class Masks:
    """Mask classes; the majority class of a patch is true of the patch."""

    per_patch = True

    def __init__(self, mask: UInt16[np.ndarray, "n_images n_patches"], classes: Sequence[str] | None) -> None:
        self._mask = mask
        known = mask[mask != NO_CLASS]
        n = int(known.max()) + 1 if len(known) else 0
        self.names = [classes[i] if classes is not None and i < len(classes) else f"class {i}" for i in range(n)]

    def of(self, images: Int[np.ndarray, " b"]) -> tuple[Bool[np.ndarray, "n n_concepts"], Bool[np.ndarray, " n"]]:
        classes = self._mask[images].reshape(-1)  # [b * patches]
        return np.asarray(classes[:, None] == np.arange(len(self.names))), np.asarray(classes != NO_CLASS)


class Truth:
    """Ground truth for every patch, such as `colour: red`."""

    per_patch = True

    def __init__(self, dataset: KnownTruth, store: ActivationStore) -> None:
        self._dataset, self._store = dataset, store
        self.names = [factor.replace("=", ": ", 1) for factor in dataset.factors]

    def of(self, images: Int[np.ndarray, " b"]) -> tuple[Bool[np.ndarray, "n n_concepts"], Bool[np.ndarray, " n"]]:
        grid = self._store.grid
        truth = np.stack([self._dataset.patch_factors(int(i), grid, self._store.crop(int(i))) for i in images])
        flat = truth.swapaxes(1, 2).reshape(-1, len(self.names))  # [b * patches, n_factors]
        return flat == 1, np.asarray((flat >= 0).all(1))


def known_concepts(source: str | None, checkpoint: Checkpoint, store: ActivationStore, dataset: Callable[[], ImageDataset]) -> Concepts:
    """The data set's concepts to name features by: from `source`, or from the best one available if it is None.

    Raises:
        RunError: there are no concepts to name features by.
    """
    patches, labels = checkpoint.read.tokens == "patches", store.labels
    wanted: Sequence[str] = ("truth", "masks", "labels") if source is None else (source,)
    for one in wanted:
        if one == "truth" and patches and isinstance(dataset(), KnownTruth):
            data: Any = dataset()
            return Truth(data, store)
        if one == "masks" and patches and store.mask is not None:
            return Masks(store.mask, dataset().mask_classes)
        if one == "labels" and (labels >= 0).any():
            return Labels(labels, dataset().classes)
    lacks = f"no {source}" if source else "neither labels nor masks"
    raise RunError(
        f"there is nothing to name features by: {store.url} has {lacks}, and the model has no text encoder or --names no vocabulary; "
        "use a model such as clip with --names, or a data set with labels."
    )
