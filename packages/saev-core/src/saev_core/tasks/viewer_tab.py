"""`ViewerTab`: a viewer tab added by a plugin; `TabHost`: what the viewer provides to it. Imports neither torch nor gradio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int

    from saev_core.activations.store.store import ActivationStore
    from saev_core.features.index import FeatureIndex
    from saev_core.models.base import VisionModel
    from saev_core.runs.run import Run
    from saev_core.sae.checkpoint import Checkpoint
    from saev_core.types import Box


@runtime_checkable
class ViewerTab(Protocol):
    """A tab of the viewer, as returned by the hook `viewer_tabs`."""

    @property
    def title(self) -> str:
        """Label of the tab; not empty."""
        ...

    def build(self, host: TabHost) -> None:
        """Create the tab's components; called once, inside the tab, while the page is built. If it raises, the tab is omitted."""
        ...


@runtime_checkable
class TabHost(Protocol):
    """What the viewer provides to a tab: the gradio components shared by all tabs, and the SAEs on view.

    Use the shared components as inputs and outputs of callbacks; all tabs stay in sync. To react to a change, listen to
    `.change`. To open another tab, return `gr.Tabs(selected=TITLE.lower())` to `tabs`.
    """

    @property
    def sae(self) -> Any:
        """`gr.Dropdown`: key of the current SAE."""
        ...

    @property
    def feature(self) -> Any:
        """`gr.Number`: the current feature; -1: none yet."""
        ...

    @property
    def picture(self) -> Any:
        """`gr.Number`: the image shown in the Image tab; -1: an uploaded one."""
        ...

    @property
    def tabs(self) -> Any:
        """`gr.Tabs`: all tabs."""
        ...

    @property
    def first(self) -> str:
        """Key of the SAE shown first."""
        ...

    def view(self, key: str) -> SAEView:
        """The SAE with a key.

        Raises:
            RunError: there is none, or its index has another format or was built from another checkpoint.
        """
        ...

    def map_url(self, sae: str, feature: int, image: int) -> str:
        """URL of a feature's heat map on an image of the data set: a PNG with one pixel per patch.

        Args:
            sae: an SAE's key.
        """
        ...


class SAEView(Protocol):
    """One SAE as loaded by the viewer; slow parts are loaded on first use."""

    @property
    def key(self) -> str:
        """Its key in the viewer: its name, or `RUN:NAME` if it belongs to another run than the viewed one."""
        ...

    @property
    def name(self) -> str:
        """Its name in its run."""
        ...

    @property
    def library(self) -> RunLibrary:
        """Its run."""
        ...

    @property
    def index(self) -> FeatureIndex:
        """Its feature index."""
        ...

    @property
    def checkpoint(self) -> Checkpoint:
        """The SAE itself; imports torch.

        Raises:
            CheckpointError: it is damaged.
            RunError: the index was built from another checkpoint.
        """
        ...

    @property
    def names(self) -> Sequence[str]:
        """Proposed name of each feature; empty if it has none."""
        ...

    def common_label(self, feature: int) -> str:
        """Name of the label shared by at least half of a feature's top images; empty if there is none."""
        ...


class RunLibrary(Protocol):
    """A run and its images as loaded by the viewer; slow parts are loaded on first use."""

    @property
    def run(self) -> Run:
        """The run."""
        ...

    @property
    def store(self) -> ActivationStore:
        """Its recorded activations.

        Raises:
            StoreError: they are missing or damaged.
        """
        ...

    @property
    def model(self) -> VisionModel:
        """Its model; imports torch.

        Raises:
            ModelError: it cannot be loaded.
        """
        ...

    @property
    def n_images(self) -> int:
        """Number of images in the run."""
        ...

    @property
    def labels(self) -> Int[np.ndarray, " n_images"]:
        """Label of each image; -1 if unknown."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Names of the labels, by number; empty if there are none."""
        ...

    @property
    def no_pictures(self) -> str:
        """Why the images cannot be shown; empty if they can."""
        ...

    def label(self, index: int) -> str:
        """Name of an image's label; empty if it has none."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of the original image in pixels, each at least 1."""
        ...

    def crop(self, index: int) -> Box:
        """The part of an image that the model saw, in pixels of the original."""
        ...

    def src(self, index: int, px: int) -> str:
        """URL of an image as a JPEG whose longer side is about `px` pixels."""
        ...


__all__ = ["RunLibrary", "SAEView", "TabHost", "ViewerTab"]
