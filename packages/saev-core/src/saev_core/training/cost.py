"""Memory, time and disk needed to train an SAE, measured in a few real steps; and the memory available."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from saev_core.config.affects import settings_within
from saev_core.config.stages import TrainConfig
from saev_core.sae.config import SAEConfig
from saev_core.sae.scratch import Scratch
from saev_core.training.sae_trainer import SAETrainer
from saev_core.training.saved_state import KEEP

SHARE_OF_FREE = 0.8
"""Fraction of free memory that a pass may use: the rest covers allocator fragmentation and other programs."""
TIMED_S = 0.3
"""Minimum seconds of timed steps, unless ten times the requested number takes less."""
INIT_BYTES = 16
"""Bytes per number of the initialisation sample: raw, normalised, and once in float64."""


@dataclass(frozen=True)
class Need:
    """Memory, disk and time one SAE of this configuration needs."""

    own: int
    """Bytes held during the whole pass: weights, gradients, optimiser state, averages."""
    passing: int
    """Temporary bytes: a training step, and writing its state. SAEs take turns, so only the largest of a pass counts."""
    weights: int
    """Bytes of the checkpoint."""
    state: int
    """Bytes of one saved training state."""
    step_s: float = 0.0
    """Seconds of a step; 0: not measured."""


@dataclass(frozen=True)
class Cost:
    """Resources one pass needs."""

    memory: int
    """Peak memory in bytes, on top of what the process already uses."""
    states: int
    """Bytes of disk used by training states during the pass."""


def need_of(trainer: SAETrainer, x: Float[Tensor, "n d_in"], *, n_timed: int = 0) -> Need:
    """Measure `trainer` by running steps with it, after which it must not be used for training.

    Args:
        x: a batch of normalised activations, of the batch size used in training.
        n_timed: minimum number of steps to time, after the two that measure memory.
    """
    with torch.no_grad(), _TensorBytes() as starting:
        trainer.sae.initialise(x, trainer.generator)
    trainer.use_scratch(Scratch())
    with _TensorBytes() as stepping:
        trainer.step(x, 0)
        # Reviving dead features needs memory only once there are some.
        trainer.fired_at[:: max(1, len(trainer.fired_at) // 64)] = -trainer.schedule.dead_after
        trainer.step(x, 1)
    grads = sum(p.grad.nbytes for p in trainer.sae.parameters() if p.grad is not None)
    tensors = trainer.tensors()
    weights = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("sae."))
    state = sum(tensor.nbytes for tensor in tensors.values())
    trained = trainer.trained_sae()
    # Writing a state holds its bytes twice, in parts and joined; memory freed by the step is not returned to the system
    # by then (counting only the larger of the two was measured to be a tenth to a quarter too low).
    passing = max(starting.peak, stepping.peak - grads) + 2 * state
    own = state + grads + (0 if trained is trainer.sae else weights)
    return Need(own, passing, weights, state, _step_seconds(trainer, x, n_timed))


def _step_seconds(trainer: SAETrainer, x: Tensor, n: int) -> float:
    if not n:
        return 0.0
    trainer.fired_at.zero_()
    seconds: list[float] = []
    step = 2
    # Repeat short steps more often: three of them would be distorted by other load on the machine.
    while len(seconds) < n or (sum(seconds) < TIMED_S and len(seconds) < 10 * n):
        began = time.perf_counter()
        trainer.step(x, step).loss.item()  # GPU calls return early; this waits for the result
        seconds.append(time.perf_counter() - began)
        step += 1
    # Other load can only slow a step down, never speed it up.
    return sorted(seconds)[len(seconds) // 4]


def shape_of(options: SAEConfig, train: TrainConfig) -> dict[str, Any]:
    """The SAE options and training settings that determine the memory and time of a step.

    Floating-point settings are weights and rates: only whether they are 0 matters.
    """
    both = {f"sae.{key}": value for key, value in options.model_dump(mode="json").items()}
    both |= {f"train.{key}": getattr(train, key) for key in settings_within(TrainConfig, "step")}
    return {key: bool(value) if isinstance(value, float) else value for key, value in both.items()}


def cost_of(needs: Sequence[Need], shared: int) -> Cost:
    """The cost of a pass of SAEs that share `shared` bytes."""
    memory = shared + sum(need.own for need in needs) + max(need.passing for need in needs)
    # One more is written before the oldest is deleted.
    return Cost(memory, (KEEP + 1) * sum(need.state for need in needs))


def divided(needs: Sequence[Need], shared: int, limit: int) -> list[list[int]]:
    """Divide SAEs, given by position, into as few passes as fit into `limit` bytes, with about equally many in each.

    An SAE that exceeds the limit alone gets its own pass.
    """
    for n_passes in range(1, len(needs) + 1):
        edges = [round(i * len(needs) / n_passes) for i in range(n_passes + 1)]
        parts = [list(range(first, last)) for first, last in pairwise(edges)]
        if all(len(part) == 1 or cost_of([needs[i] for i in part], shared).memory <= limit for part in parts):
            return parts
    raise AssertionError


def available(device: torch.device) -> int:
    """Free memory of a device in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return min([_free_ram(), *_free_in_group()])


def _free_ram() -> int:
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # not Linux
    pages = "SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in os.sysconf_names else "SC_PHYS_PAGES"
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _free_in_group() -> list[int]:
    """Free bytes under a container's memory limit, if there is one."""
    found = []
    for bound, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            texts = [(Path("/sys/fs/cgroup") / name).read_text(encoding="ascii").strip() for name in (bound, used)]
        except OSError:
            continue
        if texts[0].isdigit() and texts[1].isdigit():
            found.append(max(0, int(texts[0]) - int(texts[1])))
    return found


class _TensorBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors created while it is active and still alive; `peak` is the maximum.

    The peak memory of the process is unsuitable: the allocator keeps freed memory, which hides later allocations.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Views and in-place results allocate no new memory.
        given = {a.untyped_storage().data_ptr() for a in args if isinstance(a, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if not isinstance(tensor, Tensor) or (storage := tensor.untyped_storage()).data_ptr() in given:
                continue
            if storage not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._drop, storage.nbytes())
        return out

    def _drop(self, n: int) -> None:
        self.now -= n
