"""`SAE`: what every variant is. A dense `encode` is enough; a variant that yields `Codes` gets the fast step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from saev_core.codes import Codes
from saev_core.config import PluginRef, SAEConfig
from saev_core.errors import ConfigError, ShapeError
from saev_core.plugins import resolve


@dataclass(frozen=True)
class Progress:
    """Where training stands when a step begins."""

    step: int
    """Steps already taken."""
    n_steps: int
    """Steps in all."""
    dead: Tensor | None = None
    """bool `[d_sae]`: features that have not fired for `train.dead_after` vectors."""

    def warmup(self, n: int) -> float:
        """Rises linearly from 0 to 1 over `n` steps; 1 where `n` is 0."""
        return 1.0 if n <= 0 else min(1.0, self.step / n)


@dataclass(frozen=True)
class Step:
    """What one training batch gave: `loss` a scalar, `x_hat [n, d_in]`, `z` dense codes or `Codes`, plain `metrics`."""

    loss: Tensor
    x_hat: Tensor
    z: Tensor | Codes
    metrics: dict[str, float] = field(default_factory=dict)


class SAE(nn.Module):
    """A sparse autoencoder on normalised activations (see `Norm`): f = encode(x), x_hat = f W_dec + b_dec.

    Parameters: `W_enc [d_in, d_sae]`, `b_enc [d_sae]`, `W_dec [d_sae, d_in]` with rows of length 1, `b_dec [d_in]`.
    The encoder does not subtract `b_dec`. A variant overrides `encode`, and `penalty` or `loss`.
    """

    Config: ClassVar[type[SAEConfig]] = SAEConfig

    def __init__(self, cfg: SAEConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if cfg.d_in < 1 or cfg.d_sae < 1:
            raise ConfigError("an SAE needs d_in and d_sae; use cfg.sized(d_in) or make_sae.")
        self.cfg = cfg
        W_dec = F.normalize(torch.randn(cfg.d_sae, cfg.d_in, generator=generator), dim=1)
        self.W_dec = nn.Parameter(W_dec)
        # clone: a transposed view would share memory with W_dec, and loading would then write both.
        self.W_enc = nn.Parameter(W_dec.T.clone(memory_format=torch.contiguous_format))
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))

    @property
    def d_in(self) -> int:
        return self.cfg.d_in

    @property
    def d_sae(self) -> int:
        return self.cfg.d_sae

    def pre(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Pre-activations x W_enc + b_enc.

        Raises:
            ShapeError: the last axis is not `d_in`.
        """
        if x.shape[-1] != self.d_in:
            raise ShapeError(f"activations are {x.shape[-1]} wide, this SAE takes {self.d_in}.")
        return x @ self.W_enc + self.b_enc

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations, mostly zero, never negative."""
        raise NotImplementedError

    def codes(self, x: Float[Tensor, "n d_in"]) -> Codes:
        """`encode`, sparse. Override it where the dense form need never exist."""
        return Codes.from_dense(self.encode(x))

    def decode(self, z: Tensor | Codes) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from dense codes or `Codes`."""
        if isinstance(z, Codes):
            return z.decode(self.W_dec, self.b_dec)
        return z @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        return self.decode(self.encode(x))

    def penalty(self, z: Float[Tensor, "n d_sae"], progress: Progress) -> Float[Tensor, ""]:
        """What is added to the reconstruction error; nothing by default."""
        return z.new_zeros(())

    def loss(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        """Mean squared distance per vector plus `penalty`, differentiable."""
        z = self.encode(x)
        x_hat = self.decode(z)
        error = (x - x_hat).pow(2).sum(-1).mean()
        return Step(error + self.penalty(z, progress), x_hat, z, {"mse": float(error.detach())})

    def backward(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        """Fill every parameter's `.grad` for one batch. The default differentiates `loss`; a variant with a
        hand-written gradient overrides it and must agree with autograd (`SAEContract` checks)."""
        self.zero_grad(set_to_none=True)
        step = self.loss(x, progress)
        step.loss.backward()  # type: ignore[no-untyped-call]
        return step

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "n d_in"], generator: torch.Generator) -> None:
        """Set weights from a sample of normalised activations before training; see `saes.init`."""

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Take out the part of the decoder's gradient that would only change its rows' lengths."""
        grad = self.W_dec.grad
        if grad is not None:
            grad.sub_(self.W_dec * (grad * self.W_dec).sum(1, keepdim=True))

    @torch.no_grad()
    def after_step(self) -> None:
        """Restore what an optimiser step breaks: decoder rows of length 1."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min_(1e-8))

    def default_lr(self) -> float:
        """Peak learning rate of Adam where the configuration names none."""
        return 1e-3

    def frozen(self) -> SAE:
        """The form used for inference, with equal outputs on one vector at a time; itself, unless a variant needs another."""
        return self

    def describe(self) -> dict[str, Any]:
        """The configuration, as it goes into a checkpoint."""
        return self.cfg.model_dump(mode="json")


def make_sae(ref: PluginRef | str, d_in: int, seed: int = 0) -> SAE:
    """An SAE plugin, built for activations `d_in` wide with weights drawn from `seed`.

    Raises:
        UnknownPluginError, PluginError, ConfigError: as `plugins.resolve`.
    """
    cls, cfg = resolve("sae", ref)
    generator = torch.Generator().manual_seed(seed)
    sae = cls(cfg.sized(d_in), generator)
    if not isinstance(sae, SAE):
        raise ConfigError(f"sae plugin {cls.__module__}.{cls.__qualname__} is not an SAE.")
    return sae
