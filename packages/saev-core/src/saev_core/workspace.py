"""TODO."""

from __future__ import annotations

import json
from pathlib import Path

from saev_core.activations.recording.identity import dataset_ref, model_ref
from saev_core.activations.store.store import ActivationStore
from saev_core.errors import RunError
from saev_core.runs.run import Run


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
