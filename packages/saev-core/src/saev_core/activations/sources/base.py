"""`ActivationSource`: where training vectors come from, in shuffled batches."""

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
        """The next batch, always full. The memory is reused: it is valid until the next call."""
        ...

    @property
    def image(self) -> Int[np.ndarray, " batch"]:
        """Image numbers of the last batch's vectors."""
        ...

    def state(self) -> dict[str, Any]:
        """JSON-able; `batches(..., state=state)` goes on with exactly the batch that would come next."""
        ...

    def close(self) -> None: ...


class ActivationSource(ABC):
    """Training vectors; `train` does not know where they come from."""

    d_model: int
    """Width of a vector, of all the sites that are joined in it."""
    n_sites: int = 1
    """Sites joined in each vector."""
    n_vectors: int
    """Training vectors in one pass."""
    norm: Norm
    """Brings them to mean 0 and mean squared length `d_model`."""
    site: str
    """What they were recorded from, such as `resid.10`, `resid.all`."""
    heldout: Bool[np.ndarray, " n_images"] = np.zeros(0, bool)
    """Images kept from training; empty where vectors do not come from images."""

    @abstractmethod
    def batches(self, batch_size: int, seed: int, state: Mapping[str, Any] | None = None) -> BatchStream:
        """Shuffled raw vectors, float32, clamped if asked, not normalised; the same for the same seed.

        Raises:
            StoreError: there are fewer vectors than one batch, or `state` is of another source.
        """

    @abstractmethod
    def sample(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        """`n` random training vectors (all of them, if there are fewer), raw, float32."""

    def heldout_sample(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        """`n` random vectors of held-out IMAGES (all of them, if there are fewer), raw, float32; none where nothing is held out.

        They come from 64 images or more, where there are so many.
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
        """What this is, as JSON, for the checkpoint."""

    def in_order(self, images: Int[np.ndarray, " n_images"], batch_images: int) -> Generator[Batch]:
        """The vectors of `images`, training images or held-out ones, in that order; see `ImageVectors.in_order`.

        Raises:
            StoreError: they do not come from images.
        """
        raise StoreError(f"the vectors of a {type(self).__name__} do not come from images, so there are none to go through in order.")
