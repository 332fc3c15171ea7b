"""`matryoshka`: every prefix of the dictionary reconstructs on its own, so that general features come first."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from saev_core import SAE, Codes, Progress, SAEConfig, Step
from saev_core.errors import ConfigError
from saev_core.sae.auxk import auxk_backward, auxk_loss
from saev_core.sae.kernels import SPARSE_BELOW, encode_above
from saev_core.sae.topk import TopK
from saev_saes.batchtopk import BatchTopK, BatchTopKConfig
from saev_saes.nested import Prefixes, backward_nested, nested_error


class MatryoshkaConfig(BatchTopKConfig):
    """Options of `matryoshka`."""

    activation: Literal["batchtopk", "topk", "relu"] = "batchtopk"
    """Which features are active: the batch's n k largest, each vector's k largest, or all positive ones under L1."""
    groups: Literal["fixed", "sampled"] = "fixed"
    """Prefixes of fixed sizes, each `ratio` times the previous one; or drawn log-uniformly at every step."""
    n_groups: int = Field(default=5, ge=1)
    """Number of prefixes, including the full one."""
    ratio: float = Field(default=2.0, gt=1)
    """Ratio of consecutive prefix sizes; the smallest has d_sae / ratio^(n_groups - 1) features."""
    full_weight: float = Field(default=0.5, gt=0, le=1)
    """Share of the full prefix in the loss; the others share the rest equally. Published: 1 / n_groups."""
    sparsity_coeff: float = Field(default=0.1, ge=0)
    """L1 coefficient with `activation` relu, as in `relu`."""
    n_sparsity_warmup: int = Field(default=500, ge=0)
    """Steps over which that weight rises linearly from 0, at most a tenth of the run."""


class Matryoshka(BatchTopK):
    """f as `batchtopk`, `topk` or `relu`; loss = sum_g w_g mean |x - f_(1..m_g) W_dec(1..m_g) - b_dec|^2 + AuxK or L1.

    m_1 < ... < m_G = d_sae are prefixes of the features. The full prefix is always included with a separate weight, the
    weights sum to 1, and AuxK revives features for the full reconstruction. Prefixes are fixed and geometric, or drawn:
    m = d_sae^u m_1^(1 - u) with u uniform, because the originally published distribution (Pareto) has its median at 4 of
    16,384 features, so that nearly empty prefixes dominate the loss.

    Source: Bussmann et al. 2025, Learning Multi-Level Features with Matryoshka SAEs. https://arxiv.org/abs/2503.17547
    Drawn prefixes: Nabeshima 2024, Matryoshka Sparse Autoencoders. https://www.lesswrong.com/posts/zbebxYCqsryPALh8C
    """

    Config: ClassVar[type[SAEConfig]] = MatryoshkaConfig
    cfg: MatryoshkaConfig

    def __init__(self, cfg: MatryoshkaConfig, generator: torch.Generator | None = None) -> None:
        """Raises ConfigError if the smallest prefix would be empty."""
        super().__init__(cfg, generator)
        if self.smallest < 1:
            raise ConfigError(
                f"sae.n_groups {cfg.n_groups} at ratio {cfg.ratio:g} leaves the first prefix of {self.d_sae} empty; lower n_groups."
            )

    @property
    def smallest(self) -> int:
        """Number of features in the first prefix."""
        return int(self.d_sae / self.cfg.ratio ** (self.cfg.n_groups - 1))

    def prefixes(self, progress: Progress) -> Prefixes:
        """The prefixes of this step."""
        m, first, n = self.d_sae, self.smallest, self.cfg.n_groups - 1
        if self.cfg.groups == "fixed":
            sizes = {round(m / self.cfg.ratio**i) for i in range(1, n + 1)}
        else:
            u = torch.rand(n, generator=progress.generator, dtype=torch.float64)
            sizes = {int(size) for size in (first * (m / first) ** u).long()}
        others = sorted(sizes - {m, 0})
        full = self.cfg.full_weight if others else 1.0
        return Prefixes([*others, m], [*((1 - full) / len(others) for _ in others), full])

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        if self.cfg.activation == "relu":
            return self.pre(x).relu()
        return TopK.encode(self, x) if self.cfg.activation == "topk" else super().encode(x)

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "n d_in"]) -> Codes:
        if self.cfg.activation == "relu":
            self.check_width(x)
            codes = encode_above(x, self.W_enc, self.b_enc, self.scratch)
            assert codes is not None
            return codes
        return TopK.codes(self, x) if self.cfg.activation == "topk" else super().codes(x)

    def penalty(self, z: Tensor | Codes, progress: Progress) -> Float[Tensor, ""]:
        value = z.value if isinstance(z, Codes) else z
        if self.cfg.activation != "relu":
            return value.new_zeros(())
        n = min(self.cfg.n_sparsity_warmup, progress.n_steps // 10)
        weight = self.cfg.sparsity_coeff * math.sqrt(self.d_in) * progress.warmup(n, self.cfg.warmup_shape)
        if not isinstance(z, Codes) and not self.cfg.normalize_w_dec:
            value = value * self.W_dec.norm(dim=1)  # otherwise long rows would evade the penalty
        return value.sum() * (weight / len(z))

    def loss(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        with self.at(progress):
            z = self.encode(x)
        error, x_hat = nested_error(self, x, z, self.prefixes(progress))
        loss = error + self.penalty(z, progress)
        if self._revives(progress):
            assert progress.dead is not None
            loss = loss + self.cfg.auxk * self.d_in * auxk_loss(self, x, x - x_hat, progress.dead, self.k_aux)
        return self._told(Step(loss, x_hat, z), x, progress)

    def backward(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        if x.is_cuda or self.cfg.activation != "relu":
            return super().backward(x, progress)
        # The penalty has a gradient by row lengths, which the lean form omits.
        codes = None
        if self.cfg.normalize_w_dec:
            codes = encode_above(x, self.W_enc.detach(), self.b_enc.detach(), self.scratch, below=SPARSE_BELOW)
        return self.backward_autograd(x, progress) if codes is None else self._backward(x, codes, progress)

    def backward_lean(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        with self.at(progress):
            codes = self.codes(x)
        return self._backward(x, codes, progress)

    @torch.no_grad()
    def _backward(self, x: Float[Tensor, "n d_in"], codes: Codes, progress: Progress) -> Step:
        slope, penalty = self._slope(codes, progress) if self.cfg.activation == "relu" else (None, x.new_zeros(()))
        error, x_hat = backward_nested(self, x, codes, slope, self.prefixes(progress))
        loss = error + penalty
        if self._revives(progress):
            assert progress.dead is not None
            loss = loss + auxk_backward(self, x, x - x_hat, progress.dead, self.k_aux, weight=self.cfg.auxk * self.d_in)
        return self._told(Step(loss, x_hat, codes), x, progress)

    def _revives(self, progress: Progress) -> bool:
        return progress.dead is not None and self.cfg.auxk > 0 and self.cfg.activation != "relu"

    def _told(self, step: Step, x: Tensor, progress: Progress) -> Step:
        """The step with its full error; also updates the threshold."""
        if self.cfg.activation == "batchtopk":
            assert step.z is not None
            self.follow(step.z.value if isinstance(step.z, Codes) else step.z.detach(), progress)
        return replace(step, metrics={"mse": float((x - step.x_hat).square().sum()) / len(x)})

    def frozen(self) -> SAE:
        return super().frozen() if self.cfg.activation == "batchtopk" else self
