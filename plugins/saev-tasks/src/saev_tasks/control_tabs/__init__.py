"""Control tabs of the viewer: edit features of a picture and watch a classifier's or segmenter's predictions change."""

from __future__ import annotations

from typing import TYPE_CHECKING

from saev_core import ActivationStore, FeatureIndex, ViewerTab, hookimpl
from saev_core.errors import StoreError
from saev_tasks.control_tabs.page import ControlTab

if TYPE_CHECKING:
    from saev_core import Run


class ControlTabs:
    """Adds the tabs Classification and Segmentation to runs whose images have labels or masks."""

    @hookimpl
    def viewer_tabs(self, run: Run) -> list[ViewerTab]:
        """The tabs that apply to `run`. Opens nothing slow: no images, no weights."""
        tabs: list[ViewerTab] = []
        if _trained(run, "classification") or _labelled(run):
            tabs.append(ControlTab("Classification", "classification"))
        if _trained(run, "semseg") or _masked(run):
            tabs.append(ControlTab("Segmentation", "segmentation"))
        return tabs


def _trained(run: Run, task: str) -> bool:
    return (run.path / "tasks" / task / "probe").exists()


def _labelled(run: Run) -> bool:
    """Whether a feature index has label counts."""
    return any(FeatureIndex.counts_labels(run.features_path(name)) for name in run.sae_names)


def _masked(run: Run) -> bool:
    """Whether the store has a class for every patch."""
    try:
        return ActivationStore.describe(run.store_url).has_mask
    except StoreError:
        return False


__all__ = ["ControlTabs"]
