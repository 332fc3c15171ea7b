"""`TrainingDefaults`: how a variant is best trained where the configuration leaves it open. Training interprets it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingDefaults:
    """What a variant declares as `training_defaults`; the configuration's own values come first."""

    lr: float = 1.0
    """Peak learning rate of Adam over what its width alone suggests (`saev_core.training.schedule.base_lr`)."""
    lr_decay: float = 0.2
    """Share of the run over which the learning rate falls."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the gradient's mean and of its square; beta1 = 0 is Adam without momentum."""
