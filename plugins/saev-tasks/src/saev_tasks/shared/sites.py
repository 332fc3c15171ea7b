"""Resolve a site option against a store, and the store metadata that a probe carries."""

from __future__ import annotations

from typing import Any

from saev_core import ActivationStore, Site, TaskContext
from saev_core.errors import UsageError


def site_of(cx: TaskContext, text: str) -> Site:
    """The recorded site that `text` names; see `TrainConfig.site`.

    Raises:
        UsageError: it is not a site, or not recorded.
    """
    store = cx.store()
    sites = store.sites
    if not text:
        wanted = cx.checkpoint().site if cx.run.best else ""
        return next((site for site in sites if str(site) == wanted), sites[-1])
    if text.lstrip("-").isdecimal():
        layer, n_blocks = int(text), int(store.meta.model.get("n_blocks", 0))
        text = f"{sites[-1].stream}.{layer + n_blocks if layer < 0 else layer}"
    if text not in map(str, sites):
        raise UsageError(f"--site {text}: the store has {', '.join(map(str, sites))}; choose one of these, or record that block too.")
    return Site.parse(text)


def told_of(store: ActivationStore) -> dict[str, Any]:
    """Store metadata for a probe to carry."""
    meta = store.meta
    return {"fingerprint": meta.fingerprint, "model": meta.model, "dataset": meta.dataset, "transform": meta.transform}
