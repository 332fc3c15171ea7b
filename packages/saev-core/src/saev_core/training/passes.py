"""`Pass`: SAEs trained together on one pass over the data, as many as fit into memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from saev_core.activations.sources.base import ActivationSource
from saev_core.config.stages import ReadConfig
from saev_core.errors import ConfigError, TrainError
from saev_core.plugins.registry import resolve
from saev_core.runs.sweep import Point, grouped
from saev_core.sae.base import SAE, make_sae
from saev_core.training.cost import INIT_BYTES, SHARE_OF_FREE, Cost, Need, available, cost_of, divided, need_of, shape_of
from saev_core.training.sae_trainer import SAETrainer, TrainSpec
from saev_core.training.saved_state import States
from saev_core.training.schedule import Schedule
from saev_core.training.train import train

Folder = Callable[[str], Path]
"""The output folder of an SAE, by name."""


@dataclass(frozen=True)
class Pass:
    """One pass over the data and the SAEs that share it."""

    points: tuple[Point, ...]
    source: ActivationSource
    needs: tuple[Need, ...] = ()
    """What each SAE needs; empty if nothing had to be divided."""
    cost: Cost | None = None
    part: tuple[int, int] = (1, 1)
    """Number of this pass and how many read the same data, if memory limits divide them."""
    resumes: bool = False
    """Whether there are training states to resume from."""

    @property
    def names(self) -> list[str]:
        return [point.name for point in self.points]

    @property
    def schedule(self) -> Schedule:
        return Schedule.of(self.points[0].config.train, self.source.n_vectors)

    @property
    def seconds(self) -> float:
        """Estimated duration, from timed steps; reading data overlaps with them."""
        return self.schedule.n_steps * sum(need.step_s for need in self.needs)

    def train(self, folder: Folder, **how: Any) -> dict[str, str]:
        """Train the SAEs to the end, resuming from the states of an interrupted call.

        Args:
            how: `emit`, `track`, `device` and `heldout_of` of `train`.

        Returns:
            SAEs that diverged: name -> reason.

        Raises:
            TrainError: as `train`, except that all SAEs may diverge.
        """
        cfg = self.points[0].config.train
        specs = [TrainSpec(point.name, build(point, self.source), point.config.train, point.seed) for point in self.points]
        try:
            train(self.source, specs, cfg, out=folder, **how)
        except TrainError:
            if len(stopped := _stopped(folder, self.names)) < len(self.points):
                raise
            return stopped
        return _stopped(folder, self.names)

    def to_json(self) -> dict[str, Any]:
        """The pass as JSON."""
        config, n_steps = self.points[0].config, self.schedule.n_steps
        return {
            "site": self.source.site,
            "tokens": config.read.tokens,
            "read": config.read.model_dump(mode="json", exclude_defaults=True),
            "d_in": self.source.d_model,
            "batch_size": config.train.batch_size,
            "n_steps": n_steps,
            "resumes": self.resumes,
            "part": list(self.part),
            "saes": [
                {"name": point.name, "memory": need.own, "step_s": need.step_s, "settings": point.settings}
                for point, need in zip(self.points, self.needs, strict=True)
            ],
            "memory": self.cost.memory if self.cost else None,
            "disk_states": self.cost.states if self.cost else None,
            "disk": sum(need.weights for need in self.needs),
            "seconds": self.seconds,
        }


def build(point: Point, source: ActivationSource) -> SAE:
    """Build a point's SAE for the vectors of `source`.

    Raises:
        ConfigError: its options are invalid; names the point.
    """
    try:
        return make_sae(point.config.sae, source.d_model, point.seed, n_vectors=source.n_vectors, n_sites=source.n_sites)
    except ConfigError as error:
        raise ConfigError(f"{point.name}: {error}") from None


def make_passes(
    points: Sequence[Point],
    source_of: Callable[[ReadConfig], ActivationSource],
    folder: Folder,
    device: torch.device,
    *,
    limit: int,
    n_timed: int = 0,
) -> list[Pass]:
    """Group points into passes: different data in separate passes, interrupted SAEs first, and each pass within memory.

    Args:
        limit: memory limit of a pass in bytes; see `limit_of`.
        n_timed: steps to time for each shape of SAE.

    Raises:
        ConfigError, TrainError: a point cannot be trained on this data.
    """
    measured = _Measured(device, n_timed)
    made: list[Pass] = []
    for group in grouped(points):
        source = source_of(group[0].config.read)
        begun = {point.name: bool(States(folder(point.name)).steps()) for point in group}
        for resumes in (True, False):
            # Separate, since a pass resumes from the last state that all its SAEs have.
            some = [point for point in group if begun[point.name] == resumes]
            if len(points) == 1 and not n_timed:
                made += [Pass((point,), source, resumes=resumes) for point in some]
            elif some:
                needs, shared = [measured.need(point, source) for point in some], shared_bytes(source, some[0], device)
                parts = divided(needs, shared, limit)
                for number, part in enumerate(parts, 1):
                    mine = tuple(needs[i] for i in part)
                    made.append(
                        Pass(tuple(some[i] for i in part), source, mine, cost_of(mine, shared), (number, len(parts)), resumes=resumes)
                    )
    return made


def limit_of(memory_gb: float | Literal["auto"], device: torch.device) -> int:
    """Memory limit of a pass in bytes: the configured one, or four fifths of free memory."""
    return int(SHARE_OF_FREE * available(device)) if memory_gb == "auto" else int(memory_gb * 1e9)


def shared_bytes(source: ActivationSource, point: Point, device: torch.device) -> int:
    """Bytes a pass holds on `device` besides its SAEs: the shuffle buffer (in main memory), batches, and initially a sample."""
    cfg, read, width = point.config.train, point.config.read, source.d_model
    sample = INIT_BYTES * min(cfg.n_init, source.n_vectors) * width
    batches = 3 * 4 * cfg.batch_size * width
    if device.type == "cuda":
        return max(sample, batches)
    itemsize = 2 if source.describe().get("store", {}).get("dtype") == "float16" else 4
    # The buffer holds whole images, held-out ones too, and the order of its rows, twice while it is being drawn.
    rows = min(read.buffer_mb * 2**20 // (width * itemsize), int(source.n_vectors / (1 - read.heldout)))
    return max(sample, batches + rows * (width * itemsize + 16))


def plan_of(passes: Sequence[Pass], n_points: int, limit: int) -> dict[str, Any]:
    """Passes as JSON for display before training, with their combined needs."""
    told = [one.to_json() for one in passes]
    return {
        "points": n_points,
        "passes": told,
        "memory_limit": limit,
        "seconds": sum(one["seconds"] for one in told),
        "disk": sum(one["disk"] for one in told),
    }


class _Measured:
    """Needs by shape: SAEs that differ only in seeds and rates are measured once."""

    def __init__(self, device: torch.device, n_timed: int) -> None:
        self.device, self.n_timed = device, n_timed
        self._needs: dict[str, Need] = {}
        self._batch: tuple[str, Tensor] = "", torch.empty(0)

    def need(self, point: Point, source: ActivationSource) -> Need:
        cfg = point.config.train
        _, options = resolve("sae", point.config.sae)
        try:
            sized = options.model_copy(update={"n_sites": source.n_sites}).sized(source.d_model, source.n_vectors)
        except ConfigError as error:
            raise ConfigError(f"{point.name}: {error}") from None
        shape = json.dumps([point.config.sae.name, shape_of(sized, cfg)], sort_keys=True)
        if shape not in self._needs:
            spec = TrainSpec(point.name, build(point, source), cfg, point.seed)
            trainer = SAETrainer(spec, cfg, Schedule.of(cfg, source.n_vectors), self.device)
            self._needs[shape] = need_of(trainer, self._vectors(point, source), n_timed=self.n_timed)
        return self._needs[shape]

    def _vectors(self, point: Point, source: ActivationSource) -> Tensor:
        """A batch of real vectors, since the number of features that fire determines the cost of a step."""
        cfg = point.config.train
        key = json.dumps([point.config.read.model_dump(mode="json"), cfg.batch_size])
        if self._batch[0] != key:
            x = source.norm(source.sample(cfg.batch_size, cfg.seed)).to(self.device)
            self._batch = key, x.repeat(-(-cfg.batch_size // max(1, len(x))), 1)[: cfg.batch_size]
        return self._batch[1]


def _stopped(folder: Folder, names: Sequence[str]) -> dict[str, str]:
    """The SAEs that diverged: name -> reason."""
    return {name: why for name in names if (why := States(folder(name)).stopped())}
