"""`jumprelu`: a threshold per feature, learned with a straight-through estimator, for a target L0."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from saev_core import SAE, Codes, Progress, SAEConfig, Step, TrainingDefaults
from saev_core.config.words import Auto
from saev_core.errors import ConfigError
from saev_core.sae.initialise import calibrate
from saev_core.sae.kernels import SPARSE_BELOW, encode_above
from saev_core.sae.lean_step import backward_codes, grad
from saev_core.sae.revive import ENCODER_SHARE

START = 4
"""Initial number of active features over the target. On 128-wide activations of synthetic scenes (d_sae 512, l0 16, 390 steps)
1, 4 and 10 ended with a held-out NMSE of .049, .044 and .0435 and 72, 50 and 52 % dead, all three at an L0 of 16.1 to 16.3."""


class JumpReLUConfig(SAEConfig):
    """Options of `jumprelu`. Lengths are in units of sqrt(d_in), the length of a normalised vector; the paper's is 1."""

    main = "l0"
    at_most_width = ("l0",)

    l0: float = Field(default=32.0, gt=0)
    """Target number of active features per vector, for `sparsity` target."""
    sparsity: Literal["target", "l0", "tanh"] = "target"
    """Penalised quantity: the distance to `l0`, the number of active features, or the sum of tanh(c f)."""
    sparsity_coeff: float = Field(default=1.0, ge=0)
    """Coefficient lambda of the penalty, relative to the mean squared distance per dimension."""
    n_sparsity_warmup: int = Field(default=500, ge=0)
    """Steps over which the weight rises linearly from 0, at most a tenth of the run."""
    bandwidth: float = Field(default=0.01, gt=0)
    """Width epsilon of the window around a threshold in which its gradient is estimated. Published: 0.001 for batches of
    4096 vectors on 131,072 features; smaller runs see too few values in so narrow a window."""
    theta: Auto[PositiveFloat] = "auto"
    """Threshold to start with (published: 0.001); `auto`: the one that gives four times `l0` active features on the first vectors."""
    tanh_c: float = Field(default=4.0, gt=0)
    """Steepness c of `sparsity` tanh, for f in units of sqrt(d_in)."""


class JumpReLU(SAE):
    """f = h H(h - theta), h = x W_enc + b_enc, theta >= 0 one per feature; loss = mean |x - x_hat|^2 + d_in lambda S.

    S is (L0 / target - 1)^2, or L0 = mean sum_i H(h_i - theta_i), or mean sum_i tanh(c f_i / sqrt(d_in)).
    Thresholds get a gradient from a rectangular kernel K of width epsilon, K(u) = 1 for |u| < 1/2:

        df/dtheta = -(theta / epsilon) K((h - theta) / epsilon),   dH/dtheta = -(1 / epsilon) K((h - theta) / epsilon),
        df/dh = H(h - theta),   dH/dh = 0.

    The published loss is on vectors of length 1; ours is d_in times that. Adam runs without momentum (beta1 = 0), as
    published. Thresholds are initialised from data at four times the target L0, instead of at 0.001, from which a short
    run does not reach the target.

    Source: Rajamanoharan et al. 2024, Jumping Ahead. https://arxiv.org/abs/2407.14435 (loss with a target L0: section 6).
    tanh: Conerly et al. 2025, https://transformer-circuits.pub/2025/january-update/index.html, without its pre-activation
    loss.
    """

    Config: ClassVar[type[SAEConfig]] = JumpReLUConfig
    training_defaults = TrainingDefaults(betas=(0.0, 0.999))
    cfg: JumpReLUConfig

    def __init__(self, cfg: JumpReLUConfig, generator: torch.Generator | None = None) -> None:
        """Raises ConfigError if the target exceeds d_sae."""
        super().__init__(cfg, generator)
        if cfg.sparsity == "target" and cfg.l0 > self.d_sae:
            raise ConfigError(f"sae.l0 is {cfg.l0:g}, but there are only {self.d_sae} features; lower l0 or raise sae.d_sae.")
        start = 0.0 if cfg.theta == "auto" else cfg.theta
        self.theta = nn.Parameter(torch.full((self.d_sae,), start * math.sqrt(cfg.d_in)))

    @property
    def epsilon(self) -> float:
        """The window's width in units of pre-activations."""
        return self.cfg.bandwidth * math.sqrt(self.d_in)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        f: Tensor = Jump.apply(self.pre(x), self.theta, self.epsilon)
        return f

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "n d_in"]) -> Codes:
        self.check_width(x)
        codes = encode_above(x, self.W_enc, self.b_enc, self.scratch, floor=self.theta)
        assert codes is not None
        return codes

    def weight(self, progress: Progress) -> float:
        """Coefficient of S, including the warm-up."""
        n = min(self.cfg.n_sparsity_warmup, progress.n_steps // 10)
        return self.cfg.sparsity_coeff * self.d_in * progress.warmup(n, self.cfg.warmup_shape)

    def sparsity(self, l0: Tensor) -> Tensor:
        """S as a function of the mean number of active features."""
        return (l0 / self.cfg.l0 - 1).square() if self.cfg.sparsity == "target" else l0

    def loss(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        h = self.pre(x)
        f: Tensor = Jump.apply(h, self.theta, self.epsilon)
        x_hat = self.decode(f)
        error = (x - x_hat).square().sum(-1).mean()
        if self.cfg.sparsity == "tanh":
            sparsity = (f * (self.cfg.tanh_c / math.sqrt(self.d_in))).tanh().sum(-1).mean()
        else:
            on: Tensor = Heaviside.apply(h.detach(), self.theta, self.epsilon)
            sparsity = self.sparsity(on.sum(-1).mean())
        return Step(error + self.weight(progress) * sparsity, x_hat, f, {"mse": float(error.detach())})

    def backward(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        if x.is_cuda:
            return self.backward_autograd(x, progress)
        with torch.no_grad():
            # Slightly wider than the window; exact membership is checked per value below.
            floor = self.theta - 0.501 * self.epsilon
            near = encode_above(x, self.W_enc, self.b_enc, self.scratch, floor=floor, below=SPARSE_BELOW)
            if near is not None:
                return self._backward(x, near, progress)
        return self.backward_autograd(x, progress)

    def _backward(self, x: Float[Tensor, "n d_in"], near: Codes, progress: Progress) -> Step:
        """The gradient from `near`, the codes that are active or in a window."""
        n, weight = len(x), self.weight(progress)
        theta = self.theta.detach()[near.feature]
        rows, active = near.rows, near.value > theta
        window = (near.value - theta).abs() < self.epsilon / 2
        codes = Codes.from_rows(rows[active], near.feature[active], near.value[active], n, self.d_sae)
        slope: Tensor | None = None
        with torch.enable_grad():
            if self.cfg.sparsity == "tanh":
                c = self.cfg.tanh_c / math.sqrt(self.d_in)
                tanh = (codes.value * c).tanh()
                sparsity = tanh.sum() / n
                slope = (1 - tanh.square()) * (weight * c / n)
                per_active = 0.0
            else:
                l0 = (active.sum().to(x.dtype) / n).requires_grad_()
                sparsity = self.sparsity(l0)
                per_active = float(torch.autograd.grad(sparsity, l0)[0]) * weight / n
        error, x_hat = backward_codes(self, x, codes, slope)
        edge = Codes.from_rows(rows[window], near.feature[window], near.value[window], n, self.d_sae)
        d_f = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            (x_hat - x).mul_(2 / n), self.W_dec.detach(), edge.feature, edge.offsets[:-1], rows[window], 0
        )
        if self.cfg.sparsity == "tanh":
            d_f += (1 - (torch.where(active[window], edge.value, 0) * c).tanh().square()) * (weight * c / n)
        d_theta = (theta[window] * d_f + per_active).div_(-self.epsilon)
        grad(self.theta).zero_().index_add_(0, edge.feature, d_theta)
        return Step(error + weight * sparsity.detach(), x_hat, codes, {"mse": float(error)})

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "n d_in"], generator: torch.Generator) -> None:
        super().initialise(x, generator)
        if self.cfg.theta != "auto":
            return
        sample = x[:2048]
        h = self.pre(sample).reshape(-1)
        n_active = min(len(h), max(1, round(START * self.cfg.l0 * len(sample))))
        # Keep it positive; otherwise thresholds have no effect and receive no gradient.
        self.theta.fill_(max(1e-3 * math.sqrt(self.d_in), float(h.topk(n_active, sorted=False).values.min())))
        self.theta.mul_(calibrate(self, x[-4096:]))

    @torch.no_grad()
    def resample(self, x: Float[Tensor, "n d_in"], step: Step, progress: Progress) -> Int[Tensor, " n_dead"] | None:
        anew = super().resample(x, step, progress)
        if anew is not None:
            # As selective as the live features, scaled to the length of the new encoder columns.
            living = self.theta[step.counts() > 0]
            self.theta[anew] = ENCODER_SHARE * (living.mean() if len(living) else self.theta.mean())
        return anew

    @torch.no_grad()
    def after_step(self) -> None:
        super().after_step()
        self.theta.clamp_min_(0)


@torch.no_grad()
def as_jumprelu(sae: SAE, theta: Float[Tensor, ""] | Float[Tensor, " d_sae"]) -> JumpReLU:
    """`sae` with these thresholds, as a `JumpReLU` that shares its other weights."""
    shared = {key: getattr(sae.cfg, key) for key in SAEConfig.model_fields}
    with torch.device("meta"):
        made = JumpReLU(JumpReLUConfig.model_validate({**shared, "l0": min(32.0, sae.d_sae)}))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        setattr(made, name, getattr(sae, name))
    made.theta = nn.Parameter(theta.detach().expand(sae.d_sae).clone())
    made.share_scratch(sae.scratch)
    return made


class Jump(torch.autograd.Function):
    """h H(h - theta), with the gradients above."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, theta: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(h, theta)
        ctx.epsilon = epsilon
        return h * (h > theta)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None]:
        (slope,) = slopes
        h, theta = ctx.saved_tensors
        window = (h - theta).abs() < ctx.epsilon / 2
        d_theta = -(theta / ctx.epsilon) * (slope * window).sum_to_size(theta.shape)
        return slope * (h > theta), d_theta, None


class Heaviside(torch.autograd.Function):
    """H(h - theta), with a gradient only for theta."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, theta: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(h, theta)
        ctx.epsilon = epsilon
        return (h > theta).to(h.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[None, Tensor, None]:
        (slope,) = slopes
        h, theta = ctx.saved_tensors
        window = (h - theta).abs() < ctx.epsilon / 2
        return None, -(slope * window).sum_to_size(theta.shape) / ctx.epsilon, None


__all__ = ["JumpReLU", "JumpReLUConfig", "as_jumprelu"]
