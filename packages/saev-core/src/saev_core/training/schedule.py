"""Length and learning rate schedule of a run: pure functions of the step, so there is no state to save."""

from __future__ import annotations

import math
from dataclasses import dataclass

from saev_core.config.stages import TrainConfig
from saev_core.errors import TrainError
from saev_core.sae.ramp import Shape, ramp
from saev_core.sae.training_defaults import TrainingDefaults

PASSES, MOST_VECTORS = 20, 100_000_000

SOONEST_DEAD = 100
"""A feature counts as dead after at most this fraction of the run. On DINOv2 patches, d_sae 3072, k 32, 1,000 steps, a twentieth
left .4 % dead at the end at an NMSE of .1162, and a hundredth none at .1156 (docs/quality.md): AuxK needs time to revive them."""


@dataclass(frozen=True)
class Schedule:
    """Lengths of a run in steps and vectors, resolved for one source."""

    n_steps: int
    n_warmup: int
    """Steps of learning rate warm-up."""
    n_decay: int
    """Final steps over which the learning rate decays."""
    dead_after: int
    """A feature is dead if it has not fired for this many vectors."""
    decay: Shape = "linear"
    """Shape of the decay."""

    @classmethod
    def of(cls, cfg: TrainConfig, n_vectors: int, lr_decay: float = TrainingDefaults.lr_decay) -> Schedule:
        """The schedule for a source of `n_vectors` training vectors.

        Args:
            lr_decay: the variant's default, used if the configuration has none.

        Raises:
            TrainError: the source, or the run, is shorter than one batch.
        """
        if n_vectors < cfg.batch_size:
            raise TrainError(
                f"the source has {n_vectors} training vectors, fewer than one batch of {cfg.batch_size}; lower train.batch_size."
            )
        n_tokens = min(PASSES * n_vectors, MOST_VECTORS) if cfg.n_tokens == "auto" else cfg.n_tokens
        n_steps = n_tokens // cfg.batch_size
        if n_steps == 0:
            raise TrainError(f"train.n_tokens {n_tokens} is less than one batch of {cfg.batch_size}; raise it or lower train.batch_size.")
        share = lr_decay if cfg.lr_decay is None else cfg.lr_decay
        return cls(
            n_steps,
            n_warmup=min(cfg.n_lr_warmup, n_steps // 10),
            # Averaging steps replaces learning rate decay.
            n_decay=0 if cfg.optimizer == "schedule-free" else int(share * n_steps),
            dead_after=max(1, min(cfg.dead_after, n_steps * cfg.batch_size // SOONEST_DEAD)),
            decay=cfg.decay,
        )

    def lr_factor(self, step: int) -> float:
        """Fraction of the peak learning rate at step number `step` (from 0): linear warm-up, constant, decay."""
        rise = (step + 1) / self.n_warmup if self.n_warmup else 1.0
        fall = ramp((self.n_steps - step) / (self.n_decay + 1), self.decay)
        return min(1.0, rise, fall)


def base_lr(d_sae: int) -> float:
    """The default learning rate as a function of width, before any other factor: 1e-3 / sqrt(d_sae / 2^14), at most 2e-3.

    The law of TopK ports following Gao et al. 2024, with five times their factor: on DINOv2 patches, d_sae 3072, k 32,
    data init, 1,000 steps gave a held-out NMSE of .113 with 1e-3 and .110 with 2e-3.
    """
    return min(2e-3, 1e-3 * math.sqrt(2**14 / d_sae))
