"""Optimisers of SAE weights. Their state is plain tensors by name, so that a killed run resumes bit for bit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal, Protocol

from torch import Tensor
from torch.nn import Parameter

from saev_core.training.optim.adam import Adam
from saev_core.training.optim.ema import Average
from saev_core.training.optim.feature_axis import FeatureAxes
from saev_core.training.optim.muon import Muon
from saev_core.training.optim.schedule_free import ScheduleFree


class Optimizer(Protocol):
    """The optimiser interface the trainer uses."""

    rate: ClassVar[float]
    """Its default peak learning rate, as a multiple of `schedule.base_lr`."""

    def step(self, lr: float) -> None:
        """Update every parameter by its `.grad`. The SAE then restores its constraints (unit rows)."""

    def average_step(self) -> bool:
        """Called after that: average the restored weights, if the optimiser averages.

        Returns True if it changed the weights, so that the SAE must restore its constraints again.
        """

    def reset_features(self, features: Tensor, axes: FeatureAxes) -> None:
        """Reset the state of features that were reinitialised.

        Args:
            axes: the feature axis of each parameter; see `SAE.feature_axes`.
        """

    def averaged_weights(self) -> dict[str, Tensor]:
        """Weights to use in checkpoints and evaluation instead of the parameters; empty to use the parameters."""

    def tensors(self) -> dict[str, Tensor]:
        """The state to save; the tensors themselves, not copies."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the state returned by `tensors`."""


def make_optimizer(
    name: Literal["adam", "muon", "schedule-free"], parameters: Iterable[tuple[str, Parameter]], betas: tuple[float, float]
) -> Optimizer:
    """Create the optimiser with this name.

    Args:
        betas: decay rates of the gradient's mean and square in Adam; see `TrainingDefaults`.

    Raises:
        TrainError: the optimiser cannot train these parameters.
    """
    if name == "muon":
        return Muon(parameters, betas=betas)
    if name == "schedule-free":
        return ScheduleFree(parameters, beta2=betas[1])
    return Adam(parameters, betas=betas)


__all__ = ["Adam", "Average", "Muon", "Optimizer", "ScheduleFree", "make_optimizer"]
