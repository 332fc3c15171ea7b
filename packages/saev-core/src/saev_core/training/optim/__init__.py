"""Optimisers. Their state is plain named tensors, so that a killed run resumes bit-exactly."""

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
    """What the trainer asks of one."""

    rate: ClassVar[float]
    """Its peak learning rate over `schedule.base_lr`, where none is named."""

    def step(self, lr: float) -> None:
        """Move every parameter by its `.grad`. The SAE then restores what that broke (unit rows)."""

    def average_step(self) -> bool:
        """Called after that: average the restored weights, where it averages.

        True if it moved the weights once more, and the SAE must restore them again.
        """

    def reset_features(self, features: Tensor, axes: FeatureAxes) -> None:
        """Drop the state of features that were started anew.

        Args:
            axes: where each parameter has its features; see `SAE.feature_axes`.
        """

    def averaged_weights(self) -> dict[str, Tensor]:
        """Weights to be used instead of the parameters in a checkpoint and in evaluation; empty if the parameters are."""

    def tensors(self) -> dict[str, Tensor]:
        """The state, to be saved; the tensors themselves, not copies."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave."""


def make_optimizer(
    name: Literal["adam", "muon", "schedule-free"], parameters: Iterable[tuple[str, Parameter]], betas: tuple[float, float]
) -> Optimizer:
    """The optimiser of that name.

    Args:
        betas: decay rates of the gradient's mean and square in Adam; see `TrainingDefaults`.

    Raises:
        TrainError: it does not suit these parameters.
    """
    if name == "muon":
        return Muon(parameters, betas=betas)
    if name == "schedule-free":
        return ScheduleFree(parameters, beta2=betas[1])
    return Adam(parameters, betas=betas)


__all__ = ["Adam", "Average", "Muon", "Optimizer", "ScheduleFree", "make_optimizer"]
