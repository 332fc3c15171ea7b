"""What identifies the model and data set that a store was recorded from: name, options and content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saev_core.config.base import PluginRef
from saev_core.data.dataset import DatasetConfig
from saev_core.plugins.registry import find, resolve
from saev_core.support.digest import content_digest


def resolved(ref: PluginRef, kind: str) -> dict[str, Any]:
    """A plugin's identity: `name`, `dist`, and all its options, defaults included."""
    plugin = find(kind, ref.name)
    _, cfg = resolve(kind, ref)
    return {"name": plugin.name, "dist": plugin.dist, "options": cfg.model_dump(mode="json")}


def model_ref(ref: PluginRef) -> dict[str, Any]:
    """A model's identity in a store: a local file or folder among its options is identified by its content, not its path."""
    named = resolved(ref, "model")
    options = named["options"]
    for key, value in options.items():
        if isinstance(value, str) and value and Path(value).expanduser().exists():
            options[key] = f"sha256:{content_digest(Path(value).expanduser())}"
    return named


def dataset_ref(ref: PluginRef) -> dict[str, Any]:
    """A data set's identity in a store, without the options that only give its location."""
    named = resolved(ref, "dataset")
    _, cfg = resolve("dataset", ref)
    assert isinstance(cfg, DatasetConfig)
    return {**named, "options": {key: value for key, value in named["options"].items() if key not in cfg.locations}}
