"""TODO."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from saev_core.config.base import Config, PluginRef
from saev_core.config.stages import EvaluateConfig, IndexConfig, ReadConfig, RecordConfig, ReportConfig, TrainConfig


class RunConfig(Config):
    """Everything that decides what a run does; saved as `config.json` in the run folder."""

    model: PluginRef = PluginRef(name="tiny")
    """The vision model."""
    dataset: PluginRef = PluginRef(name="shapes")
    """The images."""
    sae: PluginRef = PluginRef(name="topk")
    """The SAE variant."""
    record: RecordConfig = RecordConfig()
    read: ReadConfig = ReadConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    index: IndexConfig = IndexConfig()
    report: ReportConfig = ReportConfig()
    trackers: tuple[str, ...] = ("jsonl",)
    """Trackers by name; JSON lines are always written."""
    store: str = ""
    """Where the activations lie, if not in the run folder."""
    device: str = "auto"
    """`auto` picks cuda, mps or cpu; or one of these."""
    sweep: dict[str, Any] = Field(default_factory=dict)
    """What `--sweep FILE` held: settings whose lists expand to a grid of SAEs; empty: one SAE."""
