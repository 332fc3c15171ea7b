"""`ImageVectors`: the vectors of images in an order that is asked for, whether they were recorded or are computed now."""

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
    """Raw, float32, clamped if asked."""
    crop: Callable[[int], Box]
    """Of the number of an image of this batch, the part of the original that the model saw, in original pixels."""


class ImageVectors(Protocol):
    """The vectors that a `ReadConfig` selects, image by image: `StoredVectors`, `StoreSource` and `LiveSource` are such."""

    @property
    def meta(self) -> StoreMeta:
        """Model, data set, grid and precision, as of a recording."""
        ...

    @property
    def grid(self) -> Grid: ...

    @property
    def n_images(self) -> int: ...

    def in_order(self, images: Int[np.ndarray, " n_images"], batch_images: int) -> Generator[Batch]:
        """The vectors of `images`, in that order, in batches of at most `batch_images`.

        Images that are missing, unreadable or of another label than asked for are left out. With `layer="all"` every batch of
        images comes once per site, one after the other.

        Raises:
            StoreError: the layer is not recorded, a chunk is damaged, or a vector is not finite.
        """
        ...
