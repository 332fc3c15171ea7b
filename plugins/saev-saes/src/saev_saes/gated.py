"""`gated`: one path decides which features are active, another by how much, so that L1 does not shrink active features."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from saev_core import SAE, Codes, Progress, SAEConfig, Step, TrainingDefaults
from saev_core.sae.initialise import calibrate
from saev_core.sae.kernels import ROWS, SPARSE_BELOW, encode_above
from saev_core.sae.lean_step import grad


class GatedConfig(SAEConfig):
    """Options of `gated`."""

    main = "sparsity_coeff"

    sparsity_coeff: float = Field(default=0.2, ge=0)
    """Sparsity coefficient c: c sqrt(d_in) times the mean L1 norm of the gates, relative to the mean squared distance."""
    n_sparsity_warmup: int = Field(default=500, ge=0)
    """Steps over which the weight rises linearly from 0, at most a tenth of the run."""


class Gated(SAE):
    """f = H(g) relu(exp(r_mag) (x W_enc) + b_mag), g = x W_enc + b_enc.

    loss = mean |x - x_hat|^2 + c sqrt(d_in) mean |relu(g)|_1 + mean |x - relu(g) W_dec' - b_dec'|^2, where ' marks
    weights that this term does not train. H has no gradient: only the last two terms train the gate. As in all variants here, the
    encoder does not subtract b_dec; its biases absorb it. Adam runs without momentum, as published.

    Source: Rajamanoharan et al. 2024, Improving Dictionary Learning with Gated SAEs. https://arxiv.org/abs/2404.16014
    """

    Config: ClassVar[type[SAEConfig]] = GatedConfig
    training_defaults = TrainingDefaults(betas=(0.0, 0.999))
    cfg: GatedConfig

    def __init__(self, cfg: GatedConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(cfg, generator)
        self.r_mag = nn.Parameter(torch.zeros(self.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(self.d_sae))

    def magnitude(self, gate: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Activations of features with these gates g."""
        size = ((gate - self.b_enc) * self.r_mag.exp() + self.b_mag).relu()
        return size * (gate > 0)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        return self.magnitude(self.pre(x))

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "n d_in"]) -> Codes:
        self.check_width(x)
        gates = encode_above(x, self.W_enc, self.b_enc, self.scratch)
        assert gates is not None
        return replace(gates, value=self._sizes(gates)[1])

    def _sizes(self, gates: Codes) -> tuple[Tensor, Tensor]:
        """x W_enc and the value of each open gate."""
        at = gates.feature
        inner = gates.value - self.b_enc.detach()[at]
        return inner, (inner * self.r_mag.detach().exp()[at] + self.b_mag.detach()[at]).relu()

    def weight(self, progress: Progress) -> float:
        """Coefficient of the L1 norm, including the warm-up."""
        n = min(self.cfg.n_sparsity_warmup, progress.n_steps // 10)
        return self.cfg.sparsity_coeff * math.sqrt(self.d_in) * progress.warmup(n, self.cfg.warmup_shape)

    def loss(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        gate = self.pre(x)
        z, open_ = self.magnitude(gate), gate.relu()
        x_hat = self.decode(z)
        error = (x - x_hat).square().sum(-1).mean()
        by_gate = (x - open_ @ self.W_dec.detach() - self.b_dec.detach()).square().sum(-1).mean()
        return Step(error + by_gate + open_.sum(-1).mean() * self.weight(progress), x_hat, z, {"mse": float(error.detach())})

    def backward(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        if x.is_cuda:
            return self.backward_autograd(x, progress)
        gates = encode_above(x, self.W_enc.detach(), self.b_enc.detach(), self.scratch, below=SPARSE_BELOW)
        weight = self.weight(progress)
        return self._backward_dense(x, weight) if gates is None else self._backward(x, gates, weight)

    @torch.no_grad()
    def _backward(self, x: Float[Tensor, "n d_in"], gates: Codes, weight: float) -> Step:
        """The gradient from open gates only."""
        n, m, at, rows = len(x), self.d_sae, gates.feature, gates.rows
        W_dec, b_dec, scale = self.W_dec.detach(), self.b_dec.detach(), self.r_mag.detach().exp()[at]
        inner, value = self._sizes(gates)
        codes = replace(gates, value=value)
        x_hat = codes.decode(W_dec, b_dec)
        residual, by_gate = x_hat - x, gates.decode(W_dec, b_dec).sub_(x)
        error, error_gate = residual.square().sum() / n, by_gate.square().sum() / n

        def slope(by_x_hat: Tensor) -> Tensor:
            found: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                by_x_hat.mul_(2 / n), W_dec, at, gates.offsets[:-1], rows, 0
            )
            return found

        d_value = slope(residual).mul_(value > 0)
        d_gate = slope(by_gate).add_(weight / n)
        d_inner = d_value * scale
        feature, order = at.sort(stable=True)
        start = torch.searchsorted(feature, torch.arange(m, device=x.device))
        member = rows[order]
        self.W_dec.grad = F.embedding_bag(member, residual, start, mode="sum", per_sample_weights=value[order])
        d_enc = F.embedding_bag(member, x, start, mode="sum", per_sample_weights=(d_inner + d_gate)[order])
        grad(self.W_enc).copy_(d_enc.T)
        grad(self.b_enc).zero_().index_add_(0, at, d_gate)
        grad(self.r_mag).zero_().index_add_(0, at, d_inner * inner)
        grad(self.b_mag).zero_().index_add_(0, at, d_value)
        torch.sum(residual, 0, out=grad(self.b_dec))
        loss = error + error_gate + gates.value.sum() * (weight / n)
        return Step(loss, x_hat, codes, {"mse": float(error)})

    @torch.no_grad()
    def _backward_dense(self, x: Float[Tensor, "n d_in"], weight: float) -> Step:
        """The gradient with seven dense matmuls in reused buffers, chunk by chunk."""
        n, m = len(x), self.d_sae
        W_enc, W_dec, b_enc, b_dec, b_mag = (p.detach() for p in (self.W_enc, self.W_dec, self.b_enc, self.b_dec, self.b_mag))
        scale, bias = self.r_mag.detach().exp(), x.new_full((1,), weight / n)
        x_hat, error, loss = torch.empty_like(x), x.new_zeros((), dtype=torch.float64), x.new_zeros((), dtype=torch.float64)
        active = x.new_zeros(m)
        grads = {name: grad(p).zero_() for name, p in self.named_parameters()}
        only_where = torch.ops.aten.threshold_backward.grad_input
        for a in range(0, n, ROWS):
            rows = x[a : a + ROWS]
            h, open_, z, d_z = (self.scratch.get(name, (len(rows), m), x) for name in ("pre", "open", "size", "slope"))
            torch.mm(rows, W_enc, out=h)
            torch.add(h, b_enc, out=open_).clamp_min_(0)
            torch.addcmul(b_mag, h, scale, out=z).clamp_min_(0)
            only_where(z, open_, 0, grad_input=z)
            residual = torch.addmm(b_dec, z, W_dec, out=x_hat[a : a + len(rows)]) - rows
            by_gate = torch.addmm(b_dec, open_, W_dec).sub_(rows)
            error += residual.square().sum()
            loss += by_gate.square().sum() + weight * open_.sum()
            residual.mul_(2 / n)
            by_gate.mul_(2 / n)
            active += torch.sign(z, out=d_z).sum(0)
            torch.mm(residual, W_dec.T, out=d_z)
            only_where(d_z, z, 0, grad_input=d_z)
            grads["W_dec"].addmm_(z.T, residual)
            grads["b_dec"].add_(residual.sum(0))
            grads["b_mag"].add_(d_z.sum(0))
            grads["r_mag"].addcmul_(h.mul_(d_z).sum(0), scale)
            d_gate = torch.addmm(bias, by_gate, W_dec.T, out=h)
            only_where(d_gate, open_, 0, grad_input=d_gate)
            grads["b_enc"].add_(d_gate.sum(0))
            grads["W_enc"].addmm_(rows.T, d_gate.addcmul_(d_z, scale))
        return Step(((error + loss) / n).to(x.dtype), x_hat, None, {"mse": float(error / n)}, active.long())

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "n d_in"], generator: torch.Generator) -> None:
        super().initialise(x, generator)
        # Magnitudes start equal to the gates; then the encoder's scale is fitted.
        self.b_mag.copy_(self.b_enc)
        self.b_mag.mul_(calibrate(self, x[-4096:]))

    @torch.no_grad()
    def resample(self, x: Float[Tensor, "n d_in"], step: Step, progress: Progress) -> Int[Tensor, " n_dead"] | None:
        anew = super().resample(x, step, progress)
        if anew is not None:
            self.b_mag[anew] = self.b_enc[anew]
            self.r_mag[anew] = 0.0
        return anew
