"""`RunConfig`: everything that decides what a run does, one table for each stage."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from saev_core.config.affects import affects
from saev_core.config.base import Config, PluginRef
from saev_core.config.stages import EvaluateConfig, IndexConfig, NamesConfig, ReadConfig, RecordConfig, ReportConfig, TrainConfig

_NAMES_IN_INDEX = {
    "names": "source",
    "names_images": "n_images",
    "names_fires": "fires",
    "names_threshold": "threshold",
    "names_positive": "n_positive",
}


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
    names: NamesConfig = NamesConfig()
    report: ReportConfig = ReportConfig()
    trackers: tuple[str, ...] = affects("nothing", default=("jsonl",))
    """Trackers by name; JSON lines are always written."""
    store: str = ""
    """Where the activations lie, if not in the run folder."""
    device: str = affects("cost", default="auto")
    """`auto` picks cuda, mps or cpu; or one of these."""
    sweep: dict[str, Any] = Field(default_factory=dict)
    """What `--sweep FILE` held: settings whose lists expand to a grid of SAEs; empty: one SAE."""

    @model_validator(mode="before")
    @classmethod
    def _names_of_their_own(cls, data: Any) -> Any:
        """Older configurations hold the keys of `names` in `index`, as `names` and `names_images` to `names_positive`."""
        index, names = (data.get("index"), data.get("names", {})) if isinstance(data, dict) else (None, None)
        if not isinstance(index, dict) or not isinstance(names, dict):
            return data
        moved = {_NAMES_IN_INDEX[key]: value for key, value in index.items() if key in _NAMES_IN_INDEX}
        rest = {key: value for key, value in index.items() if key not in _NAMES_IN_INDEX}
        return {**data, "index": rest, "names": {**names, **moved}}
