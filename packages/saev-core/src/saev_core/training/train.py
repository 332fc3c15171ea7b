"""`train`: many SAEs on one pass over a source, each with its own optimiser, schedule and seed, independent of each other."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias, overload

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saev_core.activations.sources.array import ArraySource
from saev_core.activations.sources.base import ActivationSource
from saev_core.config.affects import settings_within
from saev_core.config.base import PluginRef
from saev_core.config.stages import ReadConfig, TrainConfig
from saev_core.errors import TrainError
from saev_core.sae.base import SAE, make_sae
from saev_core.sae.checkpoint import Checkpoint, ref_of
from saev_core.sae.norm import Norm
from saev_core.sae.scratch import Scratch
from saev_core.sae.step import Step
from saev_core.support.out_of_memory import enough_memory
from saev_core.support.progress import Track, silent
from saev_core.training.sae_trainer import SAETrainer, TrainSpec
from saev_core.training.saved_state import States, config_of
from saev_core.training.schedule import Schedule

__all__ = ["Group", "SAETrainer", "TrainSpec", "train"]

log = logging.getLogger(__name__)


class Measures(Protocol):
    """Evaluates SAEs on held-out vectors during training; implemented by `saev_core.evaluation.heldout.Heldout`."""

    def card(self, sae: SAE) -> dict[str, Any]:
        """The evaluation card of an SAE in its current state; it contains `nmse`."""


HeldoutOf = Callable[[ActivationSource, TrainConfig, torch.device], Measures]
"""Creates it, once for all SAEs that share a pass; see `train`."""
Emit = Callable[..., object]
"""`emit(hook, **arguments)`: notifies observers; see `hooks.Hooks.stepped` and `checkpointed` (all arguments but `run`)."""


Vectors: TypeAlias = ActivationSource | np.ndarray | Tensor
"""A source, or raw vectors `[n, d_model]` in memory; see `ArraySource`."""


@overload
def train(
    vectors: Vectors,
    sae: SAE | PluginRef | str,
    cfg: TrainConfig | None = None,
    *,
    out: Path | Callable[[str], Path] | None = None,
    emit: Emit | None = None,
    track: Track = silent,
    device: str | torch.device = "cpu",
    heldout_of: HeldoutOf | None = None,
) -> Checkpoint: ...


@overload
def train(
    vectors: Vectors,
    sae: Sequence[TrainSpec],
    cfg: TrainConfig | None = None,
    *,
    out: Path | Callable[[str], Path] | None = None,
    emit: Emit | None = None,
    track: Track = silent,
    device: str | torch.device = "cpu",
    heldout_of: HeldoutOf | None = None,
) -> list[Checkpoint]: ...


def train(
    vectors: Vectors,
    sae: SAE | PluginRef | str | Sequence[TrainSpec],
    cfg: TrainConfig | None = None,
    *,
    out: Path | Callable[[str], Path] | None = None,
    emit: Emit | None = None,
    track: Track = silent,
    device: str | torch.device = "cpu",
    heldout_of: HeldoutOf | None = None,
) -> Checkpoint | list[Checkpoint]:
    """Train one SAE, or many on the same pass, to the end and save each as `out/<name>`; resumes from the training states of an
    interrupted call.

    On the CPU the result is bit-for-bit determined by the source, the configuration and the seeds: it does not depend on
    the other SAEs in the group or on interruptions.

    Args:
        vectors: a source, or an array or tensor `[n, d_model]` of raw vectors.
        sae: an SAE, trained in place; a plugin such as `topk:32`, built for these vectors; or several `TrainSpec`s.
        cfg: the group's configuration; a spec may have its own, except for settings of the batch stream. None: the defaults,
            with stream settings taken from the specs, and batches no larger than the number of vectors.
        out: where to save checkpoints, a folder or a function of the SAE's name; None writes nothing to disk. A single SAE is
            named after its plugin.
        emit: receives steps and checkpoints.
        heldout_of: evaluates the SAEs every `cfg.evaluate_every` steps: `Heldout.of`.

    Returns:
        For a single SAE its checkpoint. For several, the checkpoints of those that finished, in order: an SAE that diverges is
        logged, recorded in `<name>.training/stopped.json` and left out; the others continue.

    Raises:
        TrainError: nothing can be trained, every SAE diverged, or the folder contains states of another configuration.
        ShapeError, StoreError: an array is not a matrix, is empty, has only equal vectors, or contains NaN.
        UnknownPluginError, ConfigError: as `make_sae`.
    """
    one, specs = (sae, []) if isinstance(sae, SAE | PluginRef | str) else (None, list(sae))
    source = vectors if isinstance(vectors, ActivationSource) else ArraySource(vectors, n_sites=_n_sites(sae))
    if cfg is None:
        cfg = _default_config(specs, source.n_vectors)
    if one is not None:
        made = one if isinstance(one, SAE) else make_sae(one, source.d_model, cfg.seed, n_vectors=source.n_vectors, n_sites=source.n_sites)
        specs = [TrainSpec(ref_of(made)["name"], made)]
    schedule = _check(source, specs, cfg)
    with enough_memory("lower train.batch_size or sae.d_sae, or train.memory_gb to split a sweep into more passes.", TrainError):
        group = Group(source, specs, cfg, schedule, out=out, emit=emit or _nobody, device=torch.device(device), heldout_of=heldout_of)
        group.run(track)
        done = group.finish()
    return done if one is None else done[0]


def _n_sites(sae: SAE | PluginRef | str | Sequence[TrainSpec]) -> int:
    """Number of joined sites the SAEs are built for; 1 if not known yet."""
    if isinstance(sae, SAE):
        return sae.cfg.n_sites
    return 1 if isinstance(sae, PluginRef | str) else max((t.sae.cfg.n_sites for t in sae), default=1)


def _default_config(specs: Sequence[TrainSpec], n_vectors: int) -> TrainConfig:
    """The group's configuration if none is given: stream settings from the specs, and a batch no larger than the vectors."""
    own = next((t.cfg for t in specs if t.cfg is not None), TrainConfig())
    stream = {key: getattr(own, key) for key in settings_within(TrainConfig, "pass") if key in own.model_fields_set}
    cfg = TrainConfig.model_validate(stream)
    if n_vectors < cfg.batch_size and "batch_size" not in stream:
        log.info("train.batch_size reduced to %d from %d: there are no more vectors", n_vectors, cfg.batch_size)
        cfg = cfg.model_copy(update={"batch_size": n_vectors})
    return cfg


def _nobody(hook: str, **arguments: Any) -> None:
    """Ignore all events."""


def _check(source: ActivationSource, specs: Sequence[TrainSpec], cfg: TrainConfig) -> Schedule:
    names = [t.name for t in specs]
    if not names:
        raise TrainError("there is no SAE to train; pass at least one.")
    if twice := {name for name in names if names.count(name) > 1}:
        raise TrainError(f"duplicate SAE names {', '.join(sorted(twice))}; give each SAE its own name.")
    for t in specs:
        if t.sae.d_in != source.d_model:
            raise TrainError(f"{t.name} takes activations of width {t.sae.d_in}, the source has {source.d_model}; leave sae.d_in out.")
        if t.sae.cfg.n_sites not in (1, source.n_sites):
            raise TrainError(f"{t.name} takes {t.sae.cfg.n_sites} joined sites, the source has {source.n_sites}; leave sae.n_sites out.")
    return Schedule.of(cfg, source.n_vectors)


class Group:
    """SAEs that share one batch stream."""

    def __init__(
        self,
        source: ActivationSource,
        specs: Sequence[TrainSpec],
        cfg: TrainConfig,
        schedule: Schedule,
        *,
        out: Path | Callable[[str], Path] | None,
        emit: Emit,
        device: torch.device,
        heldout_of: HeldoutOf | None,
    ) -> None:
        self.heldout_of = heldout_of
        self.source, self.cfg, self.schedule, self.emit, self.device = source, cfg, schedule, emit, device
        self.norm: Norm = source.norm.to(device)
        self.heldout: Measures | None = None
        own = [t.settled(cfg) for t in specs]
        scratch = Scratch()  # SAEs take turns, so they share buffers
        schedules = [Schedule.of(c, source.n_vectors, t.sae.training_defaults.lr_decay) for t, c in zip(specs, own, strict=True)]
        self.jobs = [SAETrainer(t, c, s, device, scratch) for t, c, s in zip(specs, own, schedules, strict=True)]
        folder = out if callable(out) else None if out is None else out.__truediv__
        self.folders = {job.name: Path(folder(job.name)) for job in self.jobs} if folder else {}
        self.states = {name: States(path) for name, path in self.folders.items()}

    @property
    def running(self) -> list[SAETrainer]:
        return [job for job in self.jobs if not job.stopped]

    def run(self, track: Track) -> None:
        """Run all remaining steps."""
        start, state = self._resume()
        if self.cfg.evaluate_every is not None:
            if self.heldout_of is None:
                raise TrainError("train.evaluate_every needs an evaluator; pass heldout_of=Heldout.of, or set it to none.")
            self.heldout = self.heldout_of(self.source, self.cfg, self.device)
        if start == 0:
            self._initialise()
        size, n_steps, every = self.cfg.batch_size, self.schedule.n_steps, self.cfg.evaluate_every
        stream = self.source.batches(size, self.cfg.seed, state)
        x, factor = torch.empty(size, self.source.d_model, device=self.device), self.norm.factor
        clock, since = time.perf_counter(), start
        try:
            with track("train", n_steps * size, "vectors") as meter:
                meter.skip(start * size)
                for step in range(start, n_steps):
                    raw = next(stream).to(self.device, non_blocking=True)
                    torch.sub(raw, self.norm.mean, out=x).mul_(factor)
                    steps = [(job, job.step(x, step)) for job in self.running]
                    done, last = step + 1, step + 1 == n_steps
                    facts: dict[str, float] = {}
                    report = done % self.cfg.log_every == 0 or last
                    keep = done % self.cfg.checkpoint_every == 0 and not last
                    if report or keep or self.device.type == "cpu":
                        self._stop_diverged(x, steps, done)
                    if report:
                        now = time.perf_counter()
                        rate = (done - since) * size / max(now - clock, 1e-9)
                        clock, since = now, done
                        facts = self._report(x, steps, done, rate)
                    if self.heldout is not None and every is not None and (done % every == 0 or last):
                        began = time.perf_counter()
                        facts |= self._evaluate(self.heldout, done)
                        clock += time.perf_counter() - began  # exclude from the rate
                    if keep and self.states:
                        self._keep(done, stream.state())
                    meter.update(size, **facts)
        finally:
            stream.close()

    def finish(self) -> list[Checkpoint]:
        """Save and return the checkpoints of the SAEs that finished, then delete the training states."""
        done = [(job, self._checkpoint(job)) for job in self.running]
        for job, checkpoint in done:
            if self.folders:
                path = checkpoint.save(self.folders[job.name])
                self.emit("checkpointed", name=job.name, step=self.schedule.n_steps, path=path)
        for job in self.running:
            if self.states:
                self.states[job.name].clear()
        return [checkpoint for _, checkpoint in done]

    def _initialise(self) -> None:
        n = min(self.cfg.n_init, self.source.n_vectors)
        x = self.norm(self.source.sample(n, self.cfg.seed).to(self.device))
        if not bool(torch.isfinite(x).all()):
            raise TrainError("the activations contain NaN or infinity; check the model's weights and record again.")
        for job in self.jobs:
            job.sae.initialise(x, job.generator)

    def _configs(self) -> dict[str, dict[str, Any]]:
        described = self.source.describe()
        return {
            job.name: config_of(
                job.cfg, job.sae.describe(), described, sae_name=job.ref["name"], lr=job.lr, seed=job.seed, schedule=job.schedule
            )
            for job in self.jobs
        }

    def _resume(self) -> tuple[int, dict[str, Any] | None]:
        """The step to resume from and the source's state there: the latest step that every SAE of the group has."""
        if not self.states:
            return 0, None
        for name, config in self._configs().items():
            self.states[name].begin(config)
        for job in self.jobs:
            job.stopped = self.states[job.name].stopped()
        if not self.running:
            self._none_left()
        common = set.intersection(*(self.states[job.name].steps() for job in self.running))
        for step in sorted(common, reverse=True):
            found = {job.name: self.states[job.name].load(step) for job in self.running}
            if all(found.values()):
                for job in self.running:
                    entry = found[job.name]
                    assert entry is not None
                    job.restore(entry[0])
                    stream: dict[str, Any] = entry[1]
                log.info("resuming at step %d of %d", step, self.schedule.n_steps)
                return step, stream
        # Nothing to resume from: an SAE that stopped before may stop again in the same way.
        for job in self.jobs:
            job.stopped = ""
        return 0, None

    def _keep(self, step: int, stream: dict[str, Any]) -> None:
        for job in self.running:
            path = self.states[job.name].save(step, job.tensors(), stream)
            self.emit("checkpointed", name=job.name, step=step, path=path)

    def _stop_diverged(self, x: Tensor, steps: list[tuple[SAETrainer, Step]], done: int) -> None:
        for job, step in steps:
            if bool(torch.isfinite(step.loss)):
                continue
            if not bool(torch.isfinite(x).all()):
                raise TrainError(f"the activations contain NaN or infinity (batch {done}); check the model's weights and record again.")
            job.stopped = f"{job.name} diverged at step {done} (loss {float(step.loss)}); lower its learning rate of {job.lr:g}."
            log.warning("%s The other SAEs in this pass continue.", job.stopped)
            if self.states:
                self.states[job.name].stop(job.stopped)
        if not self.running:
            self._none_left()

    def _none_left(self) -> None:
        raise TrainError("every SAE diverged: " + " ".join(job.stopped for job in self.jobs))

    def _evaluate(self, heldout: Measures, done: int) -> dict[str, float]:
        """Evaluate every SAE on held-out images and notify observers; returns the group's mean error."""
        cards = {job.name: heldout.card(job.trained_sae()) for job in self.running}
        for name, card in cards.items():
            self.emit("evaluated", name=name, step=done, card=card)
        return {"heldout_nmse": sum(card["nmse"] for card in cards.values()) / len(cards)}

    @torch.no_grad()
    def _report(self, x: Tensor, steps: list[tuple[SAETrainer, Step]], done: int, rate: float) -> dict[str, float]:
        """Notify observers; returns the group's mean metrics."""
        whole = _spread(x)
        rows = []
        for job, step in steps:
            if job.stopped:
                continue
            _, target = job.sae.split(x)
            spread = whole if target is x else _spread(target)
            metrics = {
                "loss": float(step.loss),
                "nmse": float((target - step.x_hat).square().sum(dtype=torch.float64)) / max(spread, 1e-30),
                "l0": float(step.counts().sum()) / len(x),
                "dead": float(job.dead(done * len(x)).double().mean()),
                "lr": job.lr_at(done - 1),
                "vectors_per_s": rate,
                **step.metrics,
            }
            rows.append(metrics)
            self.emit("stepped", name=job.name, step=done, metrics=metrics)
        return {key: sum(row[key] for row in rows) / len(rows) for key in ("nmse", "l0", "dead")}

    def _checkpoint(self, job: SAETrainer) -> Checkpoint:
        described = self.source.describe()
        return Checkpoint(
            sae=job.trained_sae(),
            norm=self.norm.to("cpu") if self.device.type == "cpu" else self.norm,
            ref=job.ref,
            site=self.source.site,
            read=ReadConfig.model_validate(described.get("read", {})),
            store=described.get("store", {}),
            train={
                "config": job.cfg.model_dump(mode="json"),
                "lr": job.lr,
                "seed": job.seed,
                "n_steps": self.schedule.n_steps,
                "n_vectors": self.schedule.n_steps * self.cfg.batch_size,
                "dead_after": job.schedule.dead_after,
                "source": {key: described[key] for key in ("kind", "n_vectors", "n_images", "n_norm") if key in described},
            },
        )


def _spread(x: Float[Tensor, "n d"]) -> float:
    """Summed squared distance from the mean vector."""
    return float((x - x.mean(0)).square().sum(dtype=torch.float64))
