"""`WandB` logs a run's metrics to Weights & Biases, one run per SAE, online or offline."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import secrets
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from saev_core import PluginConfig, hookimpl
from saev_core.runs.metrics_log import history, numbers, settings_of
from saev_core.support.files import write_json

if TYPE_CHECKING:
    import wandb

    from saev_core import Run

log = logging.getLogger(__name__)

_LOGIN_S = 60
"""Timeout of wandb's prompt for a key, in seconds."""
_FLUSH_S, _SAFE_S = 0.5, 2.0
"""Seconds after which wandb flushes its buffer, and after which the flush is assumed to be complete."""


class WandBConfig(PluginConfig):
    """Options of `wandb`."""

    project: str = "saev"
    """Project to log to."""
    entity: str = ""
    """User or team; by default your own."""
    mode: Literal["", "online", "offline", "disabled"] = ""
    """By default `WANDB_MODE`, otherwise online; falls back to offline if wandb has no key or is unreachable."""
    system: bool = False
    """Also log CPU, memory and network usage, once per SAE."""


@dataclass
class _Open:
    """An open wandb run."""

    run: wandb.Run
    memory: Path
    """File with its identity and the last safe step, for resuming."""
    identity: dict[str, str]
    last: dict[str, int]
    """Last safely logged step, by group of metrics."""
    fresh: deque[tuple[float, str, int]] = field(default_factory=deque)
    """(time, group, step) of entries that a kill might still lose."""

    def put(self, group: str, step: int, metrics: Mapping[str, float]) -> None:
        """Log metrics, unless they were logged before."""
        if step <= self.last.get(group, 0):
            return
        # Log `step` as a separate metric: wandb's own step must increase with every call, but two groups share steps.
        self.run.log({"step": step, **{f"{group}/{key}": value for key, value in metrics.items()}})
        now = time.monotonic()
        self.fresh.append((now, group, step))
        self.remember(now - _SAFE_S)

    def remember(self, until: float = math.inf) -> None:
        """Mark everything logged up to `until` as safe."""
        before = dict(self.last)
        while self.fresh and self.fresh[0][0] <= until:
            _, group, step = self.fresh.popleft()
            self.last[group] = step
        if self.last != before or not self.memory.exists():
            write_json(self.memory, {**self.identity, "last": self.last})


class WandB:
    """Logs `train/<metric>` and `heldout/<metric>` over `step`, one run per SAE, with its name, grouped by the run folder.

    All files are in the run folder's `wandb`; `<SAE>.json` there stores the run's id and its last safe step. Resumed
    training continues that run: entries that a killed process may have lost are logged again, from `metrics.jsonl`, all
    others only once. Training the same SAE with other settings starts another run.
    """

    Config: ClassVar[type[PluginConfig]] = WandBConfig

    def __init__(self, cfg: WandBConfig | None = None) -> None:
        # Import now, so that a missing library is reported before training instead of dropping the tracker during it.
        import wandb  # noqa: F401

        self.cfg = cfg or WandBConfig()
        self._open: dict[str, _Open] = {}

    @hookimpl
    def stepped(self, run: Run, name: str, step: int, metrics: Mapping[str, float]) -> None:
        self._log(run, name, step, "train", metrics)

    @hookimpl
    def evaluated(self, run: Run, name: str, step: int, card: Mapping[str, Any]) -> None:
        self._log(run, name, step, "heldout", card)

    @hookimpl
    def run_ended(self, error: BaseException | None) -> None:
        for each in self._open.values():
            each.run.finish(exit_code=0 if error is None else 1)
            each.remember()
        self._open.clear()

    def _log(self, run: Run, name: str, step: int, group: str, metrics: Mapping[str, Any]) -> None:
        if name not in self._open:
            here = self._open[name] = self._begin(run, name)
            for event, at, earlier in history(run, name, step):
                here.put("train" if event == "stepped" else "heldout", at, earlier)
        self._open[name].put(group, step, numbers(metrics))

    def _begin(self, run: Run, name: str) -> _Open:
        import wandb

        settings = settings_of(run, name)
        folder = run.path / "wandb"
        memory = folder / f"{name}.json"
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        before = json.loads(memory.read_text(encoding="utf-8")) if memory.exists() else {}
        if before.get("settings") != digest:
            before = {}
        identity = {"id": before.get("id") or secrets.token_hex(4), "settings": digest}
        folder.mkdir(parents=True, exist_ok=True)
        facts: dict[str, Any] = {
            "project": self.cfg.project,
            "entity": self.cfg.entity or None,
            "name": name,
            "group": run.path.resolve().name,
            "job_type": "train",
            "id": identity["id"],
            "dir": str(run.path),
            "config": settings,
            # Several open runs in one process, because a group trains its SAEs together.
            "reinit": "create_new",
            "settings": wandb.Settings(
                console="off", silent=True, x_disable_stats=not self.cfg.system, x_transaction_log_flush_interval=_FLUSH_S
            ),
        }
        mode = self.cfg.mode or os.environ.get("WANDB_MODE") or "online"
        kept = mode in ("offline", "dryrun", "disabled")
        begun = wandb.init(mode=mode, **facts) if kept else self._online(facts)  # type: ignore[arg-type]
        begun.define_metric("*", step_metric="step")
        return _Open(begun, memory, identity, dict(before.get("last", {})))

    def _online(self, facts: dict[str, Any]) -> wandb.Run:
        """An online run; an offline one if wandb is unreachable or there is no key."""
        import wandb

        # Without a key, wandb prompts for one on a terminal: limit the wait.
        wandb.setup(wandb.Settings(login_timeout=_LOGIN_S))
        try:
            return wandb.init(mode="online", resume="allow", **facts)
        except (wandb.errors.Error, TimeoutError) as error:
            why, name = str(error).splitlines()[0], facts["name"]
            log.warning("wandb: %s; %s is kept offline in the run folder, upload it later with wandb sync.", why, name)
            return wandb.init(mode="offline", **facts)
