"""`nmf`: semi-non-negative matrix factorisation; each code solves a small optimisation problem. A baseline."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from saev_core import SAE, Codes, Progress, SAEConfig, Step
from saev_core.errors import ConfigError


class NMFConfig(SAEConfig):
    """Options of `nmf`."""

    main = "sparsity_coeff"

    expansion: int = Field(default=1, ge=1)
    """Features per input dimension, used where `d_sae` is `auto`; few, since each vector's codes take `2 n_iter` matmuls."""
    sparsity_coeff: float = Field(default=0.0, ge=0)
    """Sparsity coefficient c: c sqrt(d_in) times the L1 norm of the codes, relative to the squared distance; 0: plain semi-NMF."""
    n_iter: int = Field(default=50, ge=1)
    """Iterations to compute the codes, the same for every vector."""


class NMF(SAE):
    """f = argmin_{z >= 0} |x - b_dec - z W_dec|^2 + c sqrt(d_in) |z|_1; loss = the mean of that minimum.

    Codes are non-negative, rows of W_dec have length 1 and any sign: X ~ Z W with Z >= 0 is semi-NMF. With c > 0 it is
    non-negative sparse coding. Codes are computed by `n_iter` steps of FISTA from 0, with L = 2 |W_dec|_2^2:

        z_t = relu(y_t - (2 (y_t W - x + b) W^T + c sqrt(d_in)) / L),
        s_{t+1} = (1 + sqrt(1 + 4 s_t^2)) / 2,  y_{t+1} = z_t + (s_t - 1) / s_{t+1} (z_t - z_{t-1}).

    The dictionary follows the loss's gradient at fixed codes, 2 Z^T (Z W + b - X) / n: at the minimum over z this equals the
    gradient of the minimum (Danskin), so no gradient flows through the steps. There are no encoder weights.

    Sources: Ding, Li and Jordan 2010, Convex and Semi-Nonnegative Matrix Factorizations (the problem; its multiplicative
    updates need all data at once). https://doi.org/10.1109/TPAMI.2008.277
    Mairal et al. 2009, Online dictionary learning for sparse coding. https://doi.org/10.1145/1553374.1553463
    Beck and Teboulle 2009, FISTA. https://doi.org/10.1137/080716542
    """

    Config: ClassVar[type[SAEConfig]] = NMFConfig
    tied = True
    cfg: NMFConfig

    def __init__(self, cfg: NMFConfig, generator: torch.Generator | None = None) -> None:
        """Raises ConfigError if codes are penalised but rows are not normalised."""
        super().__init__(cfg, generator)
        if cfg.sparsity_coeff and not cfg.normalize_w_dec:
            raise ConfigError("long rows would evade the penalty on codes; remove sae.normalize_w_dec or set sae.sparsity_coeff to 0.")

    @property
    def weight(self) -> float:
        """Coefficient of a code's L1 norm."""
        return self.cfg.sparsity_coeff * math.sqrt(self.d_in)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """The optimal non-negative codes; not differentiable."""
        self.check_width(x)
        W, target = self.W_dec, x - self.b_dec
        gram = W @ W.T if self.d_sae <= 2 * self.d_in else None
        # The largest eigenvalue of the smaller product, slightly increased to allow for rounding.
        small = gram if gram is not None and self.d_sae <= self.d_in else W.T @ W
        step = 0.5 / (float(torch.linalg.eigvalsh(small)[-1]) * 1.001 + 1e-30)
        pull = 2 * (target @ W.T) - self.weight
        z = y = torch.zeros_like(pull)
        s = 1.0
        for _ in range(self.cfg.n_iter):
            back = y @ gram if gram is not None else (y @ W) @ W.T
            new = torch.add(y, pull - 2 * back, alpha=step).relu_()
            after = (1 + math.sqrt(1 + 4 * s * s)) / 2
            y = torch.lerp(z, new, 1 + (s - 1) / after)
            z, s = new, after
        return z

    def penalty(self, z: Tensor | Codes, progress: Progress) -> Float[Tensor, ""]:
        if isinstance(z, Codes):
            return z.value.sum() * (self.weight / len(z))
        return z.sum(-1).mean() * self.weight

    def backward(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        return self.backward_autograd(x, progress)
