"""`SAE`: base class of every variant. A dense `encode` is sufficient; a variant that returns `Codes` gets the fast step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from saev_core.config.base import PluginRef
from saev_core.config.words import settled
from saev_core.errors import ConfigError, ShapeError
from saev_core.plugins.registry import resolve
from saev_core.sae.codes import Codes
from saev_core.sae.config import SAEConfig
from saev_core.sae.initialise import calibrate, initialise_from_data
from saev_core.sae.lean_step import backward_codes
from saev_core.sae.revive import ghost_backward, resample
from saev_core.sae.scratch import Scratch
from saev_core.sae.step import Progress, Step
from saev_core.sae.training_defaults import TrainingDefaults
from saev_core.support.out_of_memory import enough_memory


class SAE(nn.Module):
    """A sparse autoencoder on normalised activations (see `Norm`): f = encode(x), x_hat = f W_dec + b_dec.

    Parameters: `W_enc [d_in, d_sae]`, `b_enc [d_sae]`, `W_dec [d_sae, d_in]` with rows of length 1, `b_dec [d_in]`.
    The encoder does not subtract `b_dec`. A variant overrides `encode`, and `penalty` or `loss`.

    A variant whose target differs from its input (a transcoder) overrides `split` and `d_out`: encoding still takes the
    whole vectors of the source, and decoded vectors are compared with the target.
    """

    Config: ClassVar[type[SAEConfig]] = SAEConfig

    selects: ClassVar[bool] = False
    """True where an active value IS its pre-activation (ReLU, TopK, BatchTopK) and `penalty` takes `Codes`: training
    then runs on `codes`, several times faster than in dense form."""

    tied: ClassVar[bool] = False
    """True if the dictionary alone encodes: there is then no `W_enc` and no `b_enc`."""

    W_dec: Tensor
    """A parameter, or a buffer if a variant computes its rows from other parameters."""
    b_dec: Tensor

    training_defaults: ClassVar[TrainingDefaults] = TrainingDefaults()
    """Training settings used if the configuration does not set them."""

    def __init__(self, cfg: SAEConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if cfg.d_in < 1 or cfg.d_sae == "auto":
            raise ConfigError("an SAE needs d_in and d_sae; use cfg.sized(d_in) or make_sae.")
        if cfg.ghost and self.tied:
            raise ConfigError("ghost gradients need an encoder, and this SAE has none; leave sae.ghost out.")
        self.cfg = cfg
        self.scratch = Scratch()
        """Buffers reused by training steps."""
        W_dec = F.normalize(torch.randn(cfg.d_sae, self.d_out, generator=generator), dim=1)
        self.W_dec = nn.Parameter(W_dec)
        if not self.tied:
            # clone: a transposed view would share memory with W_dec, so that loading would overwrite both.
            self.W_enc = nn.Parameter(W_dec.T.clone(memory_format=torch.contiguous_format))
            self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))

    @property
    def d_in(self) -> int:
        return self.cfg.d_in

    @property
    def d_sae(self) -> int:
        return settled(self.cfg.d_sae)

    @property
    def d_out(self) -> int:
        """Width of decoded vectors and of the encoder's input: `d_in` unless a variant splits its vectors."""
        return self.cfg.d_in

    def split(self, x: Float[Tensor, "*batch d_in"]) -> tuple[Float[Tensor, "*batch d_out"], Float[Tensor, "*batch d_out"]]:
        """Encoder input and decoding target of `x`: both are `x` itself unless a variant splits it."""
        return x, x

    def bypass(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"] | None:
        """Output of a skip connection past the features; None: no skip connection."""
        return None

    def pre(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Pre-activations x W_enc + b_enc.

        Raises:
            ShapeError: the last axis is not `d_in`.
        """
        self.check_width(x)
        return self.split(x)[0] @ self.W_enc + self.b_enc

    def check_width(self, x: Tensor) -> None:
        """Raises ShapeError if the last axis is not `d_in`."""
        if x.shape[-1] != self.d_in:
            raise ShapeError(f"activations have width {x.shape[-1]}, this SAE takes {self.d_in}.")

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations, mostly zero, never negative."""
        raise NotImplementedError

    def codes(self, x: Float[Tensor, "n d_in"]) -> Codes:
        """`encode`, sparse. Override it to avoid creating the dense form."""
        return Codes.from_dense(self.encode(x))

    def decode(self, z: Tensor | Codes) -> Float[Tensor, "*batch d_out"]:
        """Reconstruct from dense codes or `Codes`."""
        if isinstance(z, Codes):
            return z.decode(self.W_dec, self.b_dec)
        return z @ self.W_dec + self.b_dec

    def reconstruct(self, x: Float[Tensor, "*batch d_in"], z: Tensor | Codes) -> Float[Tensor, "*batch d_out"]:
        """x_hat of `x` with codes `z`: the decoded vector plus the skip connection, if any."""
        past, decoded = self.bypass(x), self.decode(z)
        return decoded if past is None else decoded + past

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        return self.reconstruct(x, self.encode(x))

    def penalty(self, z: Tensor | Codes, progress: Progress) -> Float[Tensor, ""]:
        """Sparsity penalty added to the reconstruction error, differentiable in the values; 0 by default."""
        return (z.value if isinstance(z, Codes) else z).new_zeros(())

    def loss(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        """Mean squared distance per vector plus `penalty`, differentiable."""
        z = self.encode(x)
        x_hat = self.reconstruct(x, z)
        error = (self.split(x)[1] - x_hat).square().sum(-1).mean()
        return Step(error + self.penalty(z, progress), x_hat, z, {"mse": float(error.detach())})

    def backward(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        """Fill every parameter's `.grad` for one batch, overwriting previous values.

        Differentiates `loss`, or uses the lean step if the variant `selects` (CPU). A variant with a hand-written
        gradient overrides it; it must agree with autograd, which `SAEContract` checks.
        """
        if self.selects and not x.is_cuda:
            return self.backward_lean(x, progress)
        return self.backward_autograd(x, progress)

    def backward_autograd(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        """`backward` by differentiating `loss`."""
        self.zero_grad(set_to_none=True)
        with torch.enable_grad():
            step = self.loss(x, progress)
            step.loss.backward()  # type: ignore[no-untyped-call]
        z = step.z.detach() if isinstance(step.z, Tensor) else step.z
        return replace(step, loss=step.loss.detach(), x_hat=step.x_hat.detach(), z=z)

    @torch.no_grad()
    def backward_lean(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        """`backward` from sparse codes; see `lean_step`."""
        codes = self.codes(x)
        slope, penalty = self._slope(codes, progress)
        error, x_hat = backward_codes(self, x, codes, slope)
        return Step(error + penalty, x_hat, codes, {"mse": float(error)})

    def _slope(self, codes: Codes, progress: Progress) -> tuple[Tensor | None, Tensor]:
        """The derivative of the penalty with respect to each value, and the penalty."""
        if type(self).penalty is SAE.penalty:
            return None, codes.value.new_zeros(())
        with torch.enable_grad():
            value = codes.value.detach().requires_grad_()
            penalty = self.penalty(replace(codes, value=value), progress)
            (slope,) = torch.autograd.grad(penalty, value)
        return slope, penalty.detach()

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "n d_in"], generator: torch.Generator) -> None:
        """Set weights from a sample of normalised activations before training, if `cfg.data_init`; see `sae.initialise`.

        Otherwise only the encoder's scale is fitted.
        """
        if self.cfg.data_init:
            initialise_from_data(self, x, generator)
        elif not self.tied:
            calibrate(self, x)

    def revive(self, x: Float[Tensor, "n d_in"], step: Step, progress: Progress) -> None:
        """Add ghost gradients of dead features to the gradients from `backward`, if `cfg.ghost`; see `sae.revive`."""
        if self.cfg.ghost and progress.dead is not None:
            ghost_backward(self, x, self.split(x)[1] - step.x_hat, progress.dead)

    def resample(self, x: Float[Tensor, "n d_in"], step: Step, progress: Progress) -> Int[Tensor, " n_dead"] | None:
        """Reinitialise dead features after a step, every `cfg.resample_every` steps; returns them for the optimiser to reset."""
        every, done = self.cfg.resample_every, progress.step + 1
        # A feature reinitialised in the last fifth, when the learning rate decays, would not have time to learn.
        if every is None or done % every or done > 0.8 * progress.n_steps or progress.dead is None:
            return None
        dead = progress.dead & (step.counts() == 0)
        if not bool(dead.any()):
            return None
        return resample(self, x, self.split(x)[1] - step.x_hat, dead, progress.generator)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Remove the component of the decoder's gradient that only changes the norms of its rows."""
        grad = self.W_dec.grad
        if grad is not None and self.cfg.remove_parallel_grads and self.cfg.normalize_w_dec:
            along = torch.linalg.vecdot(grad, self.W_dec)
            grad.addcmul_(self.W_dec, along[:, None], value=-1)

    @torch.no_grad()
    def after_step(self) -> None:
        """Restore constraints after an optimiser step: decoder rows of length 1."""
        if self.cfg.normalize_w_dec:
            self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min_(1e-8))

    def feature_axes(self) -> dict[str, int | None]:
        """The feature axis of each parameter; None if it has none.

        By default the last axis of `W_enc`, and otherwise the first axis if its length is `d_sae`. A variant overrides this
        for a parameter without a feature axis whose first axis may happen to have that length.
        """
        axes: dict[str, int | None] = {}
        for name, p in self.named_parameters():
            axis = p.ndim - 1 if name == "W_enc" else 0
            axes[name] = axis if name != "b_dec" and p.ndim and p.shape[axis] == self.d_sae else None
        return axes

    def share_scratch(self, scratch: Scratch) -> None:
        """Use these buffers from now on; SAEs that take turns may share them."""
        self.scratch = scratch

    def frozen(self) -> SAE:
        """The inference form, with the same outputs for one vector at a time; the SAE itself unless a variant needs another."""
        return self

    def facts(self) -> dict[str, Any]:
        """Facts about the dictionary for the evaluation card, as JSON; empty by default."""
        return {}

    def describe(self) -> dict[str, Any]:
        """The configuration as saved in a checkpoint."""
        return self.cfg.model_dump(mode="json")


def make_sae(ref: PluginRef | str, d_in: int, seed: int = 0, *, n_vectors: int = 0, n_sites: int = 1) -> SAE:
    """Build an SAE plugin for activations of width `d_in`, with weights drawn from `seed`.

    Args:
        n_vectors: training vectors of one epoch, which limit an automatic width; see `SAEConfig.sized`.
        n_sites: number of sites joined in the activations (`ActivationSource.n_sites`).

    Raises:
        UnknownPluginError, PluginError, ConfigError: as `plugins.resolve`.
    """
    cls, cfg = resolve("sae", ref)
    if cfg.n_sites not in (1, n_sites):
        raise ConfigError(f"sae.n_sites is {cfg.n_sites}, but read.layer joins {n_sites}; leave sae.n_sites out.")
    cfg = cfg.model_copy(update={"n_sites": n_sites})
    generator = torch.Generator().manual_seed(seed)
    cfg = cfg.sized(d_in, n_vectors)
    with enough_memory(f"lower sae.d_sae ({cfg.d_sae:,}).", ConfigError):
        sae = cls(cfg, generator)
    if not isinstance(sae, SAE):
        raise ConfigError(f"sae plugin {cls.__module__}.{cls.__qualname__} is not an SAE.")
    return sae
