"""`TrainSpec`, one SAE to train, and `SAETrainer`, its training state: optimiser, schedule, dead features, random numbers."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from saev_core.config.affects import settings_within
from saev_core.config.stages import TrainConfig
from saev_core.errors import TrainError
from saev_core.sae.base import SAE
from saev_core.sae.checkpoint import ref_of
from saev_core.sae.scratch import Scratch
from saev_core.sae.step import Progress, Step
from saev_core.training.optim import Average, Optimizer, make_optimizer
from saev_core.training.precision import compile_loss, differentiating, precision
from saev_core.training.schedule import Schedule, base_lr

log = logging.getLogger(__name__)


@dataclass
class TrainSpec:
    """One SAE to train and its individual settings in a group."""

    name: str
    """Name of its folder."""
    sae: SAE
    cfg: TrainConfig | None = None
    """Its training configuration, if it differs from the group's. Settings of the batch stream are shared by the group:
    leave them out, or repeat the same values."""
    seed: int | None = None
    """Seed of its initialisation and random draws; None: `train.seed`."""
    ref: dict[str, str] = field(default_factory=dict)
    """Its plugin (`name`, `dist`, `version`); if empty, found by its class."""

    def settled(self, group: TrainConfig) -> TrainConfig:
        """Its configuration within a group.

        Raises:
            TrainError: it conflicts with the group in a setting of the batch stream; names the settings.
        """
        cfg = self.cfg or group
        differ = {key: getattr(group, key) for key in settings_within(TrainConfig, "pass") if getattr(cfg, key) != getattr(group, key)}
        if asked := [key for key in differ if key in cfg.model_fields_set]:
            told = ", ".join(f"train.{key} {getattr(cfg, key)} (the group's is {differ[key]})" for key in asked)
            raise TrainError(f"{self.name} needs {told}; SAEs on one pass share these settings: train it in a separate run.")
        return cfg.model_copy(update=differ) if differ else cfg


class SAETrainer:
    """An SAE being trained."""

    def __init__(self, spec: TrainSpec, cfg: TrainConfig, schedule: Schedule, device: torch.device, scratch: Scratch | None = None) -> None:
        """
        Args:
            cfg: the SAE's configuration, as returned by `TrainSpec.settled`.
            schedule: the schedule of that configuration.
            scratch: buffers for steps, shared by trainers that take turns; None: allocate its own.
        """
        self.name, self.sae, self.cfg = spec.name, spec.sae.to(device), cfg
        self.ref = spec.ref or ref_of(spec.sae)
        self.seed = cfg.seed if spec.seed is None else spec.seed
        self.generator = torch.Generator().manual_seed(self.seed)
        self.schedule = schedule
        self.stopped = ""
        self.fired_at = torch.zeros(self.sae.d_sae, dtype=torch.long, device=device)
        """Number of vectors seen when each feature last fired."""
        try:
            self.optimizer = make_optimizer(cfg.optimizer, self.sae.named_parameters(), self.sae.training_defaults.betas)
        except TrainError as error:
            raise TrainError(f"{self.name}: {error}") from None
        # A variant's default learning rate was measured with Adam; other optimisers scale the law of width by their own factor.
        rate = self.sae.training_defaults.lr if cfg.optimizer == "adam" else self.optimizer.rate
        self.lr = rate * base_lr(self.sae.d_sae) if cfg.lr == "auto" else cfg.lr
        self.average = None if cfg.ema is None else Average(self.sae.named_parameters(), cfg.ema)
        if cfg.precision == "tf32" and device.type != "cuda":
            log.info("%s: train.precision tf32 needs CUDA; using float32 on %s", self.name, device.type)
        self.loss = compile_loss(self.sae, device) if cfg.compile else None
        """The compiled loss that replaces `sae.loss` under `train.compile`."""
        self.use_scratch(scratch or Scratch())

    def use_scratch(self, scratch: Scratch) -> None:
        """Use these buffers for all further steps."""
        self.scratch = scratch
        self.sae.share_scratch(scratch)

    def dead(self, seen: int) -> Tensor:
        return seen - self.fired_at >= self.schedule.dead_after

    def lr_at(self, step: int) -> float:
        """The learning rate of step number `step` (from 0)."""
        return self.lr * self.schedule.lr_factor(step)

    def step(self, x: Float[Tensor, "n d_in"], step: int) -> Step:
        """Run training step number `step` (from 0) on normalised activations."""
        seen = step * len(x)
        dead = self.dead(seen)
        progress = Progress(step, self.schedule.n_steps, dead if bool(dead.any()) else None, self.generator)
        with precision(self.cfg.precision, x.device, self.scratch), differentiating(self.sae, self.loss):
            done = self.sae.backward(x, progress)
        self.sae.revive(x, done, progress)
        self.sae.project_gradient()
        # A baseline fitted by its own rule has no parameters, which would make torch warn.
        if self.cfg.clip_grad is not None and (parameters := list(self.sae.parameters())):
            torch.nn.utils.clip_grad_norm_(parameters, self.cfg.clip_grad)
        self.optimizer.step(self.lr_at(step))
        self.sae.after_step()
        if self.optimizer.average_step():
            self.sae.after_step()
        self.fired_at.masked_fill_(done.counts() > 0, seen + len(x))
        if (anew := self.sae.resample(x, done, progress)) is not None:
            self.optimizer.reset_features(anew, self.sae.feature_axes())
            self.fired_at[anew] = seen + len(x)
        if self.average:
            self.average.update()
            if anew is not None:
                self.average.reset_features(anew, self.sae.feature_axes())
        return done

    @torch.no_grad()
    def trained_sae(self) -> SAE:
        """The SAE a checkpoint would contain now: the SAE itself, or a copy with averaged weights and rows of length 1."""
        weights = (self.average or self.optimizer).averaged_weights()
        if not weights:
            return self.sae
        sae = deepcopy(self.sae)
        for name, p in sae.named_parameters():
            p.copy_(weights[name])
        sae.after_step()
        return sae

    def tensors(self) -> dict[str, Tensor]:
        """All tensors that training changes, by name."""
        state = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for kind, part in self._parts().items():
            state |= {f"{kind}.{name}": tensor for name, tensor in part.tensors().items()}
        return {**state, "fired_at": self.fired_at, "generator": self.generator.get_state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore the state returned by `tensors`."""
        self.sae.load_state_dict(_under(state, "sae"))
        for kind, part in self._parts().items():
            part.restore(_under(state, kind))
        self.fired_at.copy_(state["fired_at"])
        self.generator.set_state(state["generator"])

    def _parts(self) -> dict[str, Optimizer | Average]:
        return {"optimizer": self.optimizer, **({"average": self.average} if self.average else {})}


def _under(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in state.items() if name.startswith(f"{prefix}.")}
