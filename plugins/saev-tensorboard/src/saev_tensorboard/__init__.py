"""`TensorBoard` writes a run's metrics to TensorBoard event files, one TensorBoard run per SAE."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from saev_core import PluginConfig, hookimpl
from saev_core.runs.metrics_log import history, numbers, settings_of

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter

    from saev_core import Run

_FLUSH_S = 10
"""Interval in seconds between flushes to disk: the most that a killed run can lose."""


class TensorBoardConfig(PluginConfig):
    """Options of `tensorboard`."""

    folder: str = ""
    """Folder for several runs, as `<folder>/<run>/<SAE>`; by default `tensorboard` in the run folder, as `<SAE>`."""


class TensorBoard:
    """Writes `train/<metric>` and `heldout/<metric>` by step into one folder per SAE, and its settings as text.

    Resumed training writes another file into the same folder. It first marks its start step, so that
    TensorBoard drops later steps of earlier files and no step appears twice. If there is no earlier file, because the tracker
    was not enabled before, it first writes the history from `metrics.jsonl`.
    """

    Config: ClassVar[type[PluginConfig]] = TensorBoardConfig

    def __init__(self, cfg: TensorBoardConfig | None = None) -> None:
        # Import now, so that a missing library is reported before training instead of dropping the tracker during it.
        import torch.utils.tensorboard  # noqa: F401

        self.cfg = cfg or TensorBoardConfig()
        self._writers: dict[str, SummaryWriter] = {}

    def folder(self, run: Run, name: str) -> Path:
        """Folder of the event files of SAE `name`."""
        return (Path(self.cfg.folder) / run.path.name if self.cfg.folder else run.path / "tensorboard") / name

    @hookimpl
    def stepped(self, run: Run, name: str, step: int, metrics: Mapping[str, float]) -> None:
        self._log(run, name, step, "train", metrics)

    @hookimpl
    def evaluated(self, run: Run, name: str, step: int, card: Mapping[str, Any]) -> None:
        self._log(run, name, step, "heldout", card)

    @hookimpl
    def checkpointed(self, name: str) -> None:
        if name in self._writers:
            self._writers[name].flush()

    @hookimpl
    def run_ended(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _log(self, run: Run, name: str, step: int, group: str, metrics: Mapping[str, Any]) -> None:
        writer = self._writers.get(name) or self._open(run, name, step)
        for key, value in numbers(metrics).items():
            writer.add_scalar(f"{group}/{key}", value, step)

    def _open(self, run: Run, name: str, step: int) -> SummaryWriter:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = self.folder(run, name)
        earlier = [] if list(folder.glob("events.out.tfevents.*")) else history(run, name, step)
        writer = SummaryWriter(str(folder), purge_step=earlier[0][1] if earlier else step, flush_secs=_FLUSH_S)
        self._writers[name] = writer
        settings = json.dumps(settings_of(run, name), indent=1)
        writer.add_text("settings", "".join(f"    {line}\n" for line in settings.splitlines()), step)
        for event, at, metrics in earlier:
            self._log(run, name, at, "train" if event == "stepped" else "heldout", metrics)
        return writer
