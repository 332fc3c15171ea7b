"""`ImageVectors`: the vectors of images in a requested order, recorded or computed on the fly."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from saev_core.activations.store.meta import StoreMeta
from saev_core.types import Box, Grid


class Batch(NamedTuple):
    """The vectors of some images."""

    image: Int[np.ndarray, " batch"]
    """Image numbers."""
    x: Float[Tensor, "batch n_tokens d_model"]
    """Raw vectors, float32, clamped if configured."""
    crop: Callable[[int], Box]
    """Image number -> the part of the original image that the model saw, in original pixels."""


class ImageVectors(Protocol):
    """The vectors a `ReadConfig` selects, image by image; implemented by `StoredVectors`, `StoreSource` and `LiveSource`."""

    @property
    def meta(self) -> StoreMeta:
        """Model, data set, grid and precision, in the form of a recording's metadata."""
        ...

    @property
    def grid(self) -> Grid: ...

    @property
    def n_images(self) -> int: ...

    def in_order(self, images: Int[np.ndarray, " n_images"], batch_images: int) -> Generator[Batch]:
        """The vectors of `images`, in that order, in batches of at most `batch_images`.

        Images that are missing, unreadable or excluded by label are omitted. With `layer="all"` every batch of images is
        yielded once per site, in sequence.

        Raises:
            StoreError: the layer is not recorded, a chunk is damaged, or a vector is not finite.
        """
        ...
