"""Control tabs of the viewer: change features of a picture and watch a classifier or a segmenter change its mind."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saev_core.runs.hooks import hookimpl
from saev_tasks.control_tabs.page import build

if TYPE_CHECKING:
    from saev_core.runs.run import Run

Tab = tuple[str, Callable[[Any], None]]


class ControlTabs:
    """Adds the tabs Classification and Segmentation to a run whose pictures have labels, or masks."""

    @hookimpl
    def viewer_tabs(self, run: Run) -> list[Tab]:
        """The tabs that make sense on `run`. Opens nothing that is slow: no pictures, no weights."""
        tabs: list[Tab] = []
        if _trained(run, "classification") or _labelled(run):
            tabs.append(("Classification", partial(build, "classification")))
        if _trained(run, "semseg") or _masked(run):
            tabs.append(("Segmentation", partial(build, "segmentation")))
        return tabs


def _trained(run: Run, task: str) -> bool:
    return (run.path / "tasks" / task / "probe").exists()


def _labelled(run: Run) -> bool:
    """Whether a feature index counts labels."""
    return any((run.features_path(name) / "label_count").exists() for name in run.sae_names)


def _masked(run: Run) -> bool:
    """Whether the store, where it lies on this machine, says that it has a class for every patch."""
    try:
        return bool(json.loads((Path(run.store_url) / "zarr.json").read_text(encoding="utf-8"))["attributes"]["saev"]["has_mask"])
    except (OSError, ValueError, KeyError):
        return False


__all__ = ["ControlTabs"]
