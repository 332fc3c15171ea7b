"""`record_stage`: record activations of images into a store."""

from __future__ import annotations

import time

from saev_core.activations.recording.record import record
from saev_core.activations.store.shard_writer import MISSING
from saev_core.activations.store.store import ActivationStore
from saev_core.pipeline.stage_context import StageContext
from saev_core.pipeline.summary import MissingImage, Summary


def record_stage(context: StageContext) -> Summary:
    """Record the activations, unless they are complete.

    Returns:
        `n_images` and `n_missing`; `missing` if anything was recorded.

    Raises:
        RunError: the existing store was recorded from another model or data set.
        StoreError, ModelError, DatasetError: as `record`.
    """
    workspace, missing = context.workspace, None
    if workspace.is_recorded():
        context.say(f"record: up to date ({_text(workspace.store())}), skipping.")
    else:
        missing = _record(context)
    store = workspace.store()
    return Summary(
        context.run.path,
        context.stamps.seconds("record"),
        missing=missing,
        n_images=store.n_images,
        n_missing=_n_missing(store),
    )


def _record(context: StageContext) -> list[MissingImage]:
    workspace, run, began = context.workspace, context.run, time.monotonic()
    refs = {"model_ref": workspace.refs["model"], "dataset_ref": workspace.refs["dataset"]}
    done = record(workspace.model(), workspace.dataset(), run.store_url, run.config.record, **refs, track=context.track)
    workspace.replace_store(done.store)
    context.stamps.record("record", "", began)
    context.emit("recorded", store=run.store_url, n_images=done.n_images, n_missing=len(done.missing))
    for index, name, why in done.missing[:20]:
        context.say(f"record: image {index} is missing: {name} ({why})")
    context.say(f"record: {_text(done.store)}")
    return [MissingImage(index=index, name=name, why=why) for index, name, why in done.missing]


def _text(store: ActivationStore) -> str:
    sites, n_missing = ", ".join(map(str, store.sites)), _n_missing(store)
    return f"{store.n_images:,} images at {sites}" + (f", {n_missing:,} missing" if n_missing else "")


def _n_missing(store: ActivationStore) -> int:
    """Images recorded as missing, at the site with the most of them."""
    return max((int((store.done(site) == MISSING).sum()) for site in store.sites), default=0)
