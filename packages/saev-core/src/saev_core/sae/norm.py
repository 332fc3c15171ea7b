"""`Norm`: the shift and scale that normalise a site's activations to mean 0 and mean squared length d."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saev_core.errors import StoreError


@dataclass(frozen=True)
class Norm:
    """x -> (x - mean) * scale, and its inverse. Saved in the checkpoint, so that an SAE can be used on raw activations.

    `mean [d_model]` float32; `scale` is chosen so that the mean SQUARED length of the result is `d_model`.
    If vectors of several sites are joined, each site has its own scale, so that each part has that mean squared length:
    vectors of later sites are much longer and would otherwise dominate.

    Source: Conerly et al. 2024, https://transformer-circuits.pub/2024/april-update/index.html (squared norm).
    """

    mean: Float[Tensor, " d_model"]
    scale: float | tuple[float, ...]
    """One number; for joined sites, one per site."""

    @classmethod
    def identity(cls, d_model: int) -> Norm:
        """A norm that leaves activations unchanged."""
        return cls(torch.zeros(d_model), 1.0)

    @classmethod
    def from_moments(cls, n: int, total: Any, total_sq: float) -> Norm:
        """From streamed sums in float64: `n` vectors, their sum `[d_model]`, the sum of their squared lengths.

        Raises:
            StoreError: there are no vectors, they are all equal, or they are not finite.
        """
        mean = torch.as_tensor(total, dtype=torch.float64) / max(n, 1)
        variance = total_sq / max(n, 1) - float(mean @ mean)
        if n == 0:
            raise StoreError("the store contains no vectors to normalise; check that the recording is complete.")
        if not math.isfinite(variance):
            raise StoreError("the recorded activations are not finite; check the model's weights and record again with --dtype float32.")
        if variance <= 1e-12 * max(float(mean @ mean), 1e-30):
            raise StoreError("all recorded activations are equal; check the layer and that the images differ.")
        return cls(mean.float(), float((len(mean) / variance) ** 0.5))

    @classmethod
    def join(cls, norms: Sequence[Norm]) -> Norm:
        """The norm of joined vectors from the norms of their sites; a single site's norm is returned unchanged."""
        if len(norms) == 1:
            return norms[0]
        scales = [scale for norm in norms for scale in (norm.scale if isinstance(norm.scale, tuple) else (norm.scale,))]
        return cls(torch.cat([norm.mean for norm in norms]), tuple(scales))

    @classmethod
    def of(cls, x: Float[Tensor, "n d_model"], n_sites: int = 1) -> Norm:
        """Computed from vectors of `n_sites` joined sites.

        Raises:
            StoreError: as `from_moments`.
        """
        blocks = x.double().chunk(n_sites, dim=1)
        return cls.join([cls.from_moments(len(b), b.sum(0), float(b.square().sum())) for b in blocks])

    @property
    def factor(self) -> float | Float[Tensor, " d_model"]:
        """The factor for centred vectors: the scale or, for joined sites, one number per dimension."""
        if not isinstance(self.scale, tuple):
            return self.scale
        each = torch.tensor(self.scale, dtype=self.mean.dtype, device=self.mean.device)
        return each.repeat_interleave(len(self.mean) // len(self.scale))

    def to(self, device: torch.device | str) -> Norm:
        return Norm(self.mean.to(device), self.scale)

    def __call__(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """Normalise raw activations."""
        return (x - self.mean) * self.factor

    def inverse(self, x: Float[Tensor, "*batch d_part"], part: Callable[[Tensor], Tensor] | None = None) -> Float[Tensor, "*batch d_part"]:
        """Convert normalised activations back to raw ones.

        Args:
            part: selects the dimensions of the last axis that `x` has; None: it has all.
        """
        mean, factor = self.mean, self.factor
        if part is not None:
            mean, factor = part(mean), part(factor) if isinstance(factor, Tensor) else factor
        return x / factor + mean
