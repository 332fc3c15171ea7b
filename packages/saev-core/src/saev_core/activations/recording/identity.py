"""What a store was recorded from, as it is told apart from others: a model or data set by name, options and content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from saev_core.config import DatasetConfig, PluginRef
from saev_core.errors import RunError
from saev_core.plugins import find, resolve
from saev_core.run import Run
from saev_core.store import ActivationStore


def open_store(run: Run) -> ActivationStore:
    """The store of a run.

    Raises:
        RunError: nothing is recorded yet.
        StoreError: it is damaged, or holds another model or data set than the run's.
    """
    url = run.store_url
    if "://" not in url and not Path(url).exists():
        raise RunError(f"{run.path} has no activations yet; record them with saev record {run.path}.")
    store = ActivationStore.open(url)
    for what, want in (("model", model_ref(run.config.model)), ("dataset", dataset_ref(run.config.dataset))):
        have = getattr(store.meta, what)
        if changed := [key for key in want if have.get(key) != want[key]]:
            key = changed[0]
            raise RunError(
                f"{url} was recorded with another {what}: its {key} is {json.dumps(have.get(key))}, not {json.dumps(want[key])}; "
                "record into another folder (--out or --store)."
            )
    return store


def resolved(ref: PluginRef, kind: str) -> dict[str, Any]:
    """A plugin as it is identified: `name`, `dist`, and all its options, defaults included."""
    plugin = find(kind, ref.name)
    _, cfg = resolve(kind, ref)
    return {"name": plugin.name, "dist": plugin.dist, "options": cfg.model_dump(mode="json")}


def model_ref(ref: PluginRef) -> dict[str, Any]:
    """A model as a store names it: an option that is a local file or folder is named by what is in it, not by where it lies."""
    named = resolved(ref, "model")
    options = named["options"]
    for key, value in options.items():
        if isinstance(value, str) and value and Path(value).expanduser().exists():
            options[key] = f"sha256:{content_digest(Path(value).expanduser())}"
    return named


def dataset_ref(ref: PluginRef) -> dict[str, Any]:
    """A data set as a store names it, without the options that only say where it lies."""
    named = resolved(ref, "dataset")
    _, cfg = resolve("dataset", ref)
    assert isinstance(cfg, DatasetConfig)
    return {**named, "options": {key: value for key, value in named["options"].items() if key not in cfg.locations}}


def content_digest(path: Path) -> str:
    """sha256 of a file, or of the names and contents of a folder's files, 16 hex digits."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            total.update(f"{file.relative_to(path)}:{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()[:16]
