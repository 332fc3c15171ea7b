"""`Fitted`: base class of baselines with the SAE interface that are fitted by an update rule instead of gradients."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from saev_core import SAE, Progress, SAEConfig, Step
from saev_core.errors import ConfigError


def as_buffers(sae: SAE, *names: str) -> None:
    """Turn parameters into buffers, which no optimiser updates; checkpoints still contain them.

    Raises:
        ConfigError: reviving dead features is configured, which needs parameters.
    """
    if sae.cfg.ghost or sae.cfg.resample_every:
        raise ConfigError(f"{type(sae).__name__} cannot revive dead features; remove sae.ghost and sae.resample_every.")
    for name in names:
        value: Tensor = getattr(sae, name).detach()
        delattr(sae, name)
        sae.register_buffer(name, value)


class Fitted(SAE):
    """Learns from a batch in `learn`, which runs after the step; it has no parameters for the trainer's optimiser.

    Sweeps, groups, resuming and evaluation work as for any SAE. Learning rates have no effect.
    """

    tied = True

    def __init__(self, cfg: SAEConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(cfg, generator)
        as_buffers(self, "W_dec", "b_dec")
        self._batch: tuple[Tensor, Progress] | None = None

    def learn(self, x: Float[Tensor, "n d_in"], progress: Progress) -> None:
        """Update the weights from one batch."""
        raise NotImplementedError

    @torch.no_grad()
    def backward_autograd(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        """The loss only: there are no gradients."""
        codes = self.codes(x)
        x_hat = self.decode(codes)
        error = (x - x_hat).square().sum(-1).mean()
        return Step(error + self.penalty(codes, progress), x_hat, codes, {"mse": float(error)})

    def backward(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        # Keep a reference: the trainer reuses the batch's memory only after after_step.
        self._batch = (x, replace(progress, dead=None, generator=None))
        return self.backward_autograd(x, progress)

    @torch.no_grad()
    def after_step(self) -> None:
        if self._batch is not None:
            self.learn(*self._batch)
            self._batch = None
