"""Which recorded site an option names, and what a store says of itself for a probe to carry."""

from __future__ import annotations

from typing import Any

from saev_core import ActivationStore, Site, TaskContext
from saev_core.errors import UsageError


def site_of(cx: TaskContext, text: str) -> Site:
    """The recorded site that `text` names; see `TrainConfig.site`.

    Raises:
        UsageError: it names none, or one that is not recorded.
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
        raise UsageError(f"--site {text}: recorded are {', '.join(map(str, sites))}; choose one, or record that block too.")
    return Site.parse(text)


def told_of(store: ActivationStore) -> dict[str, Any]:
    """What a store says of itself, for a probe to carry."""
    meta = store.meta
    return {"fingerprint": meta.fingerprint, "model": meta.model, "dataset": meta.dataset, "transform": meta.transform}
