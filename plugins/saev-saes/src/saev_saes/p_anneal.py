"""`p-anneal`: an L_p penalty with p decreasing from 1, which approaches the number of active features."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from saev_core import Codes, Progress, SAEConfig, Step
from saev_core.sae.kernels import SPARSE_BELOW, encode_above
from saev_core.sae.lean_step import backward_codes
from saev_core.sae.relu import ReLU, ReLUConfig


class PAnnealConfig(ReLUConfig):
    """Options of `p-anneal`."""

    p_end: float = Field(default=0.2, gt=0, le=1)
    """Final exponent p; it starts at 1."""
    anneal_start: float = Field(default=0.3, ge=0, lt=1)
    """Share of the run after which p starts to decrease."""
    n_stages: int = Field(default=10, ge=1)
    """Number of evenly spaced decrements of p; the last one reaches the final value."""
    n_remembered: int = Field(default=10, ge=1)
    """Batches over which the penalties of the old and the new p are compared."""


class PAnneal(ReLU):
    """f = relu(x W_enc + b_enc); loss = mean |x - x_hat|^2 + c sqrt(d_in) a_s mean sum_i f_i^p_s.

    In stage s, p_s = 1 + (p_end - 1) s / n_stages, and a_s keeps the penalty's magnitude constant as p decreases:

        a_0 = 1,   a_(s+1) = a_s  sum_t mean sum_i f_i^p_s / sum_t mean sum_i f_i^p_(s+1),   t: the last n_remembered batches.

    Source: Karvonen et al. 2024, Measuring Progress in Dictionary Learning with Board Game Models.
    https://arxiv.org/abs/2408.00113 (section 3.3)
    """

    Config: ClassVar[type[SAEConfig]] = PAnnealConfig
    cfg: PAnnealConfig
    strength: Tensor
    norms: Tensor

    def __init__(self, cfg: PAnnealConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(cfg, generator)
        # Buffers, because a resumed run needs them. strength is a_s, 0 before the stage starts; norms is a ring buffer of
        # (sum f^p of this stage, sum f^p of the next).
        self.register_buffer("strength", torch.zeros(cfg.n_stages + 1).index_fill_(0, torch.tensor(0), 1.0))
        self.register_buffer("norms", torch.zeros(cfg.n_remembered, 2))

    def stage(self, progress: Progress) -> int:
        """Number of decrements of p so far."""
        start = self.cfg.anneal_start * progress.n_steps
        if progress.step < start:
            return 0
        return min(self.cfg.n_stages, 1 + int(self.cfg.n_stages * (progress.step - start) / (progress.n_steps - start)))

    def p(self, stage: int) -> float:
        """The exponent."""
        return 1 + (self.cfg.p_end - 1) * stage / self.cfg.n_stages

    def penalty(self, z: Tensor | Codes, progress: Progress) -> Float[Tensor, ""]:
        stage, n = self.stage(progress), len(z)
        lengths = 1.0 if self.cfg.normalize_w_dec else self.W_dec.norm(dim=1)
        # Only positive values: the derivative of f^p at 0 is infinite.
        value = z.value if isinstance(z, Codes) else (z * lengths)[z > 0]
        norm = (value ** self.p(stage)).sum() / n
        with torch.no_grad():
            if not self.strength[stage]:
                self._enter(stage)
            following = (value ** self.p(min(stage + 1, self.cfg.n_stages))).sum() / n
            self.norms[progress.step % self.cfg.n_remembered] = torch.stack([norm.detach(), following])
        return norm * (self.strength[stage] * self.weight(progress))

    def _enter(self, stage: int) -> None:
        """Compute a_s from the previous batches, only once, so that repeating a step gives the same result."""
        last = int(self.strength.nonzero().max())
        old, new = self.norms.sum(0)
        self.strength[stage] = self.strength[last] * (old / new if new > 0 else 1.0)
        self.norms.zero_()

    def backward(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        codes = None
        if not x.is_cuda and self.cfg.normalize_w_dec:
            codes = encode_above(x, self.W_enc.detach(), self.b_enc.detach(), self.scratch, below=SPARSE_BELOW)
        if codes is None:
            return self.backward_autograd(x, progress)
        with torch.no_grad():
            slope, penalty = self._slope(codes, progress)
            error, x_hat = backward_codes(self, x, codes, slope)
        return Step(error + penalty, x_hat, codes, {"mse": float(error)})
