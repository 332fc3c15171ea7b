"""`Fitted`: baselines that are fitted by a rule of their own, not by gradients, under the interface of every SAE."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from saev_core.errors import ConfigError
from saev_core.sae.base import SAE
from saev_core.sae.config import SAEConfig
from saev_core.sae.step import Progress, Step


def as_buffers(sae: SAE, *names: str) -> None:
    """Make parameters plain tensors, which no optimiser moves; a checkpoint holds them as before.

    Raises:
        ConfigError: dead features are to be revived in weights that are no parameters.
    """
    if sae.cfg.ghost or sae.cfg.resample_every:
        raise ConfigError(f"{type(sae).__name__} cannot revive dead features; leave sae.ghost and sae.resample_every out.")
    for name in names:
        value: Tensor = getattr(sae, name).detach()
        delattr(sae, name)
        sae.register_buffer(name, value)


class Fitted(SAE):
    """Learns from a batch in `learn`, which runs after the step; the trainer's optimiser finds no parameter.

    So sweeps, parallel groups, resuming and evaluation work as for any SAE. Learning rates mean nothing here.
    """

    tied = True

    def __init__(self, cfg: SAEConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(cfg, generator)
        as_buffers(self, "W_dec", "b_dec")
        self._batch: tuple[Tensor, Progress] | None = None

    def learn(self, x: Float[Tensor, "n d_in"], progress: Progress) -> None:
        """Take in one batch."""
        raise NotImplementedError

    @torch.no_grad()
    def backward_autograd(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        """The loss alone: there is no gradient to fill."""
        codes = self.codes(x)
        x_hat = self.decode(codes)
        error = (x - x_hat).square().sum(-1).mean()
        return Step(error + self.penalty(codes, progress), x_hat, codes, {"mse": float(error)})

    def backward(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        # The trainer reuses its batch, but not before after_step.
        self._batch = (x, replace(progress, dead=None, generator=None))
        return self.backward_autograd(x, progress)

    @torch.no_grad()
    def after_step(self) -> None:
        if self._batch is not None:
            self.learn(*self._batch)
            self._batch = None
