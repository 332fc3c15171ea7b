"""`Progress`, the state of training at the start of a step, and `Step`, the result of a step."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from saev_core.sae.codes import Codes
from saev_core.sae.ramp import Shape, ramp


@dataclass(frozen=True)
class Progress:
    """State of training at the start of a step."""

    step: int
    """Number of completed steps."""
    n_steps: int
    """Total number of steps."""
    dead: Tensor | None = None
    """bool `[d_sae]`: features that have not fired for `train.dead_after` vectors."""
    generator: torch.Generator | None = None
    """Random generator for variants that need one: saved with the training state, so that a resumed run repeats its draws."""

    def warmup(self, n: int, shape: Shape = "linear") -> float:
        """Rise from 0 to 1 over `n` steps; 1 if `n` is 0."""
        return 1.0 if n <= 0 else ramp(self.step / n, shape)


@dataclass(frozen=True)
class Step:
    """Result of one training batch: `loss` a scalar, `x_hat [n, d_out]`, `z` dense codes or `Codes`, plain `metrics`."""

    loss: Tensor
    x_hat: Tensor
    z: Tensor | Codes | None
    """None if the step kept no codes and only counted them."""
    metrics: dict[str, float] = field(default_factory=dict)
    active: Tensor | None = None
    """Number of vectors on which each feature was active, `[d_sae]`; None: count from `z`."""

    def counts(self) -> Int[Tensor, " d_sae"]:
        """Number of vectors of the batch on which each feature was active."""
        if self.active is not None:
            return self.active
        assert self.z is not None
        if isinstance(self.z, Codes):
            return self.z.counts()
        return self.z.detach().reshape(-1, self.z.shape[-1]).count_nonzero(0)
