"""`SAEContract`, what every SAE variant must keep, and `ArraySource`, activations that are already in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saev_core.norm import Norm
from saev_core.source import ActivationSource


class ArrayStream:
    """Batches of an `ArraySource`: each pass in a new order, drawn from (seed, pass)."""

    def __init__(self, x: Tensor, batch_size: int, seed: int, state: Mapping[str, Any] | None) -> None:
        self._x, self._size, self._seed = x, batch_size, seed
        self._epoch: int = state["epoch"] if state else 0
        self._at: int = state["at"] if state else 0
        self._draw()

    def _draw(self) -> None:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        self._order = torch.randperm(len(self._x), generator=generator)

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
        return self._x[self._last].float()

    @property
    def image(self) -> np.ndarray[Any, Any]:
        """Row numbers: here every vector is its own image."""
        return self._last.numpy()

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "at": self._at}

    def close(self) -> None:
        """Nothing is held."""


class ArraySource(ActivationSource):
    """Vectors `[n, d_model]` in memory as a source: for tests, and for activations that did not come from a store."""

    def __init__(self, x: Float[Tensor, "n d_model"], site: str = "resid.0") -> None:
        self.x = x
        self.n_vectors, self.d_model = x.shape
        self.site = site
        total = x.double().sum(0)
        self.norm = Norm.from_moments(len(x), total, float(x.double().square().sum()))

    def batches(self, batch_size: int, seed: int, state: Mapping[str, Any] | None = None) -> ArrayStream:
        return ArrayStream(self.x, batch_size, seed, state)

    def sample(self, n: int, seed: int) -> Float[Tensor, "n d_model"]:
        order = torch.randperm(self.n_vectors, generator=torch.Generator().manual_seed(seed))
        return self.x[order[:n]].float()

    def describe(self) -> dict[str, Any]:
        return {"array": hashlib.sha256(self.x.numpy().tobytes()).hexdigest(), "site": self.site}
