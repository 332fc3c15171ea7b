"""`index_stage`: build the feature index of every SAE; with many SAEs, of the best one only, or of those selected."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from saev_core.features.build import index_features
from saev_core.pipeline.names_stage import names_stage
from saev_core.pipeline.stage_context import StageContext
from saev_core.pipeline.summary import Summary
from saev_core.sae.checkpoint import Checkpoint


def index_stage(context: StageContext) -> Summary:
    """Index the features of SAEs whose index is not up to date, and propose names for them.

    Returns:
        `names`, as `names_stage`.

    Raises:
        RunError: the run has no SAE, a selected SAE does not exist, or nothing is recorded.
        CheckpointError: an SAE is damaged, or was trained on other activations.
        StoreError: the store is damaged, or the index cannot be written.
    """
    run, only = context.run, context.only
    names, n_saes = run.to_index(only), len(run.sae_names)
    if not only and len(names) < n_saes:
        told = f"of {n_saes} SAEs only {names[0]}, the best, is indexed"
        context.say(f"index: {told}; index others with saev index {run.path} --only NAME.")
    seconds: dict[str, float] = {}
    proposed: dict[str, Mapping[str, Any]] = {}
    for name in names:
        checkpoint = context.checkpoint(name)
        _index(context, name, checkpoint)
        found = names_stage(context, name, checkpoint)
        seconds |= {**context.stamps.seconds(f"index:{name}"), **found.seconds}
        proposed |= found.names or {}
    return Summary(run.path, seconds, names=proposed or None)


def _index(context: StageContext, name: str, checkpoint: Checkpoint) -> None:
    """Index one SAE, unless up to date."""
    run, workspace, stage, path = context.run, context.workspace, f"index:{name}", context.run.features_path(name)
    store = workspace.store()
    key = context.stamps.key(run.config.index, checkpoint.fingerprint, store.meta.fingerprint)
    workspace.forget(name)
    if context.stamps.up_to_date(stage, key, partial(workspace.index, name, checked=False)):
        context.say(f"index: {name} up to date, skipping.")
        return
    began = time.monotonic()
    index_features(checkpoint, store, path, run.config.index, track=context.track)
    workspace.forget(name)
    context.stamps.record(stage, key, began)
    context.emit("indexed", name=name, path=path)
    context.say(f"index: {name} written to {path}")
