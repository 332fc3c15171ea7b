"""`TrainingDefaults`: a variant's default training settings, used by training if the configuration does not set them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TrainingDefaults:
    """A variant's `training_defaults`; values in the configuration take precedence."""

    lr: float = 1.0
    """Peak learning rate of Adam as a multiple of the default for its width (`saev_core.training.schedule.base_lr`)."""
    lr_decay: float = 0.2
    """Final fraction of the run over which the learning rate decays."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the gradient mean and squared gradient; beta1 = 0 is Adam without momentum."""
