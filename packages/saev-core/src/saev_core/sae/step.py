"""`Progress`, where training stands when a step begins, and `Step`, what the step gave."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Int
from torch import Tensor

from saev_core.sae.codes import Codes
from saev_core.sae.ramp import Shape, ramp


@dataclass(frozen=True)
class Progress:
    """Where training stands when a step begins."""

    step: int
    """Steps already taken."""
    n_steps: int
    """Steps in all."""
    dead: Tensor | None = None
    """bool `[d_sae]`: features that have not fired for `train.dead_after` vectors."""
    generator: torch.Generator | None = None
    """Where a variant that draws numbers draws them: saved with the training state, so that a resumed run repeats them."""

    def warmup(self, n: int, shape: Shape = "linear") -> float:
        """Rises from 0 to 1 over `n` steps; 1 where `n` is 0."""
        return 1.0 if n <= 0 else ramp(self.step / n, shape)


@dataclass(frozen=True)
class Step:
    """What one training batch gave: `loss` a scalar, `x_hat [n, d_out]`, `z` dense codes or `Codes`, plain `metrics`."""

    loss: Tensor
    x_hat: Tensor
    z: Tensor | Codes | None
    """None where the step kept no codes and counted them instead."""
    metrics: dict[str, float] = field(default_factory=dict)
    active: Tensor | None = None
    """How often each feature was active, `[d_sae]`; counted from `z` where it is None."""

    def counts(self) -> Int[Tensor, " d_sae"]:
        """How often each feature was active in the batch."""
        if self.active is not None:
            return self.active
        assert self.z is not None
        if isinstance(self.z, Codes):
            return self.z.counts()
        return self.z.detach().reshape(-1, self.z.shape[-1]).count_nonzero(0)
