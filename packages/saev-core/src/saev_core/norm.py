"""`Norm`: the shift and scale that bring a site's activations to mean 0 and mean squared length d."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saev_core.errors import StoreError


@dataclass(frozen=True)
class Norm:
    """x -> (x - mean) * scale, and back. Travels in the checkpoint, so that an SAE is usable on raw activations.

    `mean [d_model]` float32; `scale` is chosen so that the mean SQUARED length of the result is `d_model`.
    Source: Conerly et al. 2024, https://transformer-circuits.pub/2024/april-update/index.html (squared norm).
    """

    mean: Float[Tensor, " d_model"]
    scale: float

    @classmethod
    def identity(cls, d_model: int) -> Norm:
        """Leaves activations as they are."""
        return cls(torch.zeros(d_model), 1.0)

    @classmethod
    def from_moments(cls, n: int, total: Any, total_sq: float) -> Norm:
        """From streamed sums in float64: `n` vectors, their sum `[d_model]`, their summed squared length.

        Raises:
            StoreError: there are no vectors, they are all the same, or they are not finite.
        """
        mean = torch.as_tensor(total, dtype=torch.float64) / max(n, 1)
        variance = total_sq / max(n, 1) - float(mean @ mean)
        if n == 0:
            raise StoreError("the store holds no vector to normalise; check that the recording is complete.")
        if not math.isfinite(variance):
            raise StoreError("the recorded activations are not finite; check the model's weights and record again with --dtype float32.")
        if variance <= 1e-12 * max(float(mean @ mean), 1e-30):
            raise StoreError("all recorded activations are the same; check the layer and that the images differ.")
        return cls(mean.float(), float((len(mean) / variance) ** 0.5))

    def to(self, device: torch.device | str) -> Norm:
        return Norm(self.mean.to(device), self.scale)

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Raw activations, normalised."""
        return (x - self.mean) * self.scale

    def inverse(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Normalised activations, raw again."""
        return x / self.scale + self.mean
