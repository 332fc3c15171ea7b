"""`RunConfig`: the complete configuration of a run, one table per stage."""

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
    """Complete configuration of a run; saved as `config.json` in the run folder."""

    model: PluginRef = PluginRef(name="tiny")
    """Vision model to record activations from."""
    dataset: PluginRef = PluginRef(name="shapes")
    """Data set of images."""
    sae: PluginRef = PluginRef(name="topk")
    """SAE variant to train."""
    record: RecordConfig = RecordConfig()
    read: ReadConfig = ReadConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    index: IndexConfig = IndexConfig()
    names: NamesConfig = NamesConfig()
    report: ReportConfig = ReportConfig()
    trackers: tuple[str, ...] = affects("nothing", default=("jsonl",))
    """Trackers to log metrics to, by name; `metrics.jsonl` is always written."""
    store: str = ""
    """Path or URL of the activation store; empty: inside the run folder."""
    device: str = affects("cost", default="auto")
    """Device: `cuda`, `mps` or `cpu`; `auto` picks the best one available."""
    sweep: dict[str, Any] = Field(default_factory=dict)
    """Contents of `--sweep FILE`: settings whose lists expand to a grid of SAEs; empty: train one SAE."""

    @model_validator(mode="before")
    @classmethod
    def _names_of_their_own(cls, data: Any) -> Any:
        """Move keys that older configurations keep in `index` (`names`, `names_images` to `names_positive`) to `names`."""
        index, names = (data.get("index"), data.get("names", {})) if isinstance(data, dict) else (None, None)
        if not isinstance(index, dict) or not isinstance(names, dict):
            return data
        moved = {_NAMES_IN_INDEX[key]: value for key, value in index.items() if key in _NAMES_IN_INDEX}
        rest = {key: value for key, value in index.items() if key not in _NAMES_IN_INDEX}
        return {**data, "index": rest, "names": {**names, **moved}}
