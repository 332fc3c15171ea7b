"""`ArraySource`: training vectors that are already in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from saev_core.activations.sources.base import ActivationSource
from saev_core.errors import ShapeError, StoreError
from saev_core.sae.norm import Norm

_BLOCK = 65_536
"""Vectors converted to float64, or hashed, at once."""


class ArraySource(ActivationSource):
    """Vectors in memory as a source of training batches, for activations that do not come from a store.

    The array is not copied: a memory-mapped array stays on disk, a bfloat16 array is converted batch by batch.
    Each epoch uses all vectors in a new order, determined by the seed and the epoch.
    """

    def __init__(self, x: np.ndarray | Tensor, site: str = "resid.0", *, n_sites: int = 1) -> None:
        """
        Args:
            x: `[n, d_model]`, numpy array or tensor, of any floating-point dtype, on any device.
            site: where in the model they were recorded, for the checkpoint.
            n_sites: number of sites joined in `x`.

        Raises:
            ShapeError: `x` is not a matrix, or its width is not a multiple of `n_sites`.
            StoreError: there are no vectors, all are equal, or one is not finite.
        """
        self.x = x.detach() if isinstance(x, Tensor) else np.asarray(x)
        if self.x.ndim != 2 or self.x.shape[1] % n_sites:
            raise ShapeError(f"training vectors must be [n, d_model] with d_model a multiple of {n_sites}, got {list(self.x.shape)}.")
        self.n_vectors, self.d_model = map(int, self.x.shape)
        self.site, self.n_sites = site, n_sites
        self.norm = self._norm()

    def batches(self, batch_size: int, seed: int, state: Mapping[str, Any] | None = None) -> ArrayStream:
        return ArrayStream(self, batch_size, seed, state)

    def sample(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        order = torch.randperm(self.n_vectors, generator=torch.Generator().manual_seed(seed))
        return self.take(order[:n])

    def take(self, index: Int[Tensor, " n"]) -> Float[Tensor, "n d_model"]:
        """A float32 copy of the vectors at these indices, in that order."""
        if isinstance(self.x, Tensor):
            return self.x[index.to(self.x.device)].float()
        return torch.from_numpy(self.x[index.numpy()].astype(np.float32, copy=False))

    def describe(self) -> dict[str, Any]:
        return {"kind": "array", "array": self._digest, "site": self.site, "n_vectors": self.n_vectors}

    def _blocks(self) -> list[Float[Tensor, "block d_model"] | Float[np.ndarray, "block d_model"]]:
        return [self.x[start : start + _BLOCK] for start in range(0, self.n_vectors, _BLOCK)]

    def _norm(self) -> Norm:
        """Computed from all vectors in float64."""
        each = self.d_model // self.n_sites
        total, squares = torch.zeros(self.d_model, dtype=torch.float64), torch.zeros(self.n_sites, dtype=torch.float64)
        for block in self._blocks():
            x = block.double().cpu() if isinstance(block, Tensor) else torch.from_numpy(block.astype(np.float64))
            total += x.sum(0)
            squares += x.square().view(-1, self.n_sites, each).sum((0, 2))
        if not self.n_vectors:
            raise StoreError("there are no vectors to train on; the array is empty.")
        if not bool(squares.isfinite().all()):
            raise StoreError("some vectors are not finite (NaN or infinity); remove them before training.")
        moments = zip(total.view(self.n_sites, each), squares.tolist(), strict=True)
        return Norm.join([Norm.from_moments(self.n_vectors, part, square) for part, square in moments])

    @cached_property
    def _digest(self) -> str:
        """sha256 of the bytes, hex."""
        found = hashlib.sha256()
        for block in self._blocks():
            x = block.cpu().contiguous().view(torch.uint8).numpy() if isinstance(block, Tensor) else np.ascontiguousarray(block)
            found.update(x.data)
        return found.hexdigest()


class ArrayStream:
    """Batches of an `ArraySource`. Vectors left at the end of an epoch start the next batch."""

    def __init__(self, source: ArraySource, batch_size: int, seed: int, state: Mapping[str, Any] | None) -> None:
        self._source, self._size, self._seed = source, batch_size, seed
        self._epoch: int = state["epoch"] if state else 0
        self._at: int = state["at"] if state else 0
        self._draw()

    def _draw(self) -> None:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        self._order = torch.randperm(self._source.n_vectors, generator=generator)

    def __iter__(self) -> ArrayStream:
        return self

    def __next__(self) -> Float[Tensor, "batch d_model"]:
        parts, need = [], self._size
        while need:
            part = self._order[self._at : self._at + need]
            self._at += len(part)
            need -= len(part)
            parts.append(part)
            if self._at == len(self._order):
                self._epoch, self._at = self._epoch + 1, 0
                self._draw()
        self._last = torch.cat(parts)
        return self._source.take(self._last)

    @property
    def image(self) -> Int[np.ndarray, " batch"]:
        """Row numbers: every vector counts as its own image."""
        return self._last.numpy()

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "at": self._at}

    def close(self) -> None:
        """Do nothing: there are no resources to release."""
