"""`ActivationSource`: the interface of sources of training vectors, in shuffled batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from typing import Any, Protocol, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saev_core.activations.sources.image_vectors import Batch
from saev_core.errors import StoreError
from saev_core.sae.norm import Norm


class BatchStream(Protocol):
    """Endless batches of raw vectors, reshuffled every epoch. Close it, or use it as `contextlib.closing(stream)`."""

    def __iter__(self) -> Self: ...

    def __next__(self) -> Float[Tensor, "batch d_model"]:
        """The next batch, always full. Its memory is reused: it is valid only until the next call."""
        ...

    @property
    def image(self) -> Int[np.ndarray, " batch"]:
        """Image numbers of the last batch's vectors."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-serialisable; `batches(..., state=state)` resumes with exactly the next batch."""
        ...

    def close(self) -> None: ...


class ActivationSource(ABC):
    """Base class of sources of training vectors; `train` uses only this interface."""

    d_model: int
    """Width of a vector, over all joined sites."""
    n_sites: int = 1
    """Number of sites joined in each vector."""
    n_vectors: int
    """Number of training vectors in one epoch."""
    norm: Norm
    """Normaliser of the vectors, to mean 0 and mean squared length `d_model`."""
    site: str
    """Where the vectors were recorded, such as `resid.10`, `resid.all`."""
    heldout: Bool[np.ndarray, " n_images"] = np.zeros(0, bool)
    """Mask of held-out images; empty if vectors do not come from images."""

    @abstractmethod
    def batches(self, batch_size: int, seed: int, state: Mapping[str, Any] | None = None) -> BatchStream:
        """Shuffled raw vectors, float32, clamped if configured, not normalised; reproducible for a given seed.

        Raises:
            StoreError: there are fewer vectors than one batch, or `state` belongs to another source.
        """

    @abstractmethod
    def sample(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        """`n` random training vectors (all if there are fewer), raw, float32."""

    def heldout_sample(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        """`n` random vectors of held-out IMAGES (all if there are fewer), raw, float32; empty if nothing is held out.

        They come from at least 64 images, if there are that many.
        """
        held = np.flatnonzero(self.heldout)
        generator = torch.Generator().manual_seed(seed)
        images = held[torch.randperm(len(held), generator=generator).numpy()]
        parts: list[Tensor] = []
        for start in range(0, len(images), 64):
            some = np.sort(images[start : start + 64])
            parts += [batch.x.reshape(-1, self.d_model).clone() for batch in self.in_order(some, 16)]
            if sum(map(len, parts)) >= n:
                break
        x = torch.cat([torch.empty(0, self.d_model), *parts])
        return x[torch.randperm(len(x), generator=generator)[:n]]

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """A description of the source as JSON, for the checkpoint."""

    def in_order(self, images: Int[np.ndarray, " n_images"], batch_images: int) -> Generator[Batch]:
        """The vectors of `images`, training images or held-out ones, in that order; see `ImageVectors.in_order`.

        Raises:
            StoreError: the vectors do not come from images.
        """
        raise StoreError(f"the vectors of a {type(self).__name__} do not come from images, so they cannot be read in order of images.")
