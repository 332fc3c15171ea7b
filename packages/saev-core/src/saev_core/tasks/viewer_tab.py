"""`ViewerTab`: a tab that a plugin adds to the viewer; `TabHost`: what the viewer offers it. Imports neither torch nor gradio."""

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
    """A tab of the viewer, as the hook `viewer_tabs` gives it."""

    @property
    def title(self) -> str:
        """What is written on the tab; not empty."""
        ...

    def build(self, host: TabHost) -> None:
        """Make the tab's components; called once, inside the tab, while the page is built. Where it raises, the tab is left out."""
        ...


@runtime_checkable
class TabHost(Protocol):
    """What the viewer offers a tab: the gradio components that all tabs share, and the SAEs that can be shown.

    A callback takes the shared components as inputs and sets them as outputs; every tab follows. To follow a change, listen to
    its `.change`. Another tab is opened by returning `gr.Tabs(selected=TITLE.lower())` to `tabs`.
    """

    @property
    def sae(self) -> Any:
        """`gr.Dropdown`: key of the SAE that is shown."""
        ...

    @property
    def feature(self) -> Any:
        """`gr.Number`: the feature that is shown; -1: none yet."""
        ...

    @property
    def picture(self) -> Any:
        """`gr.Number`: the image that the Image tab shows; -1: an uploaded one."""
        ...

    @property
    def tabs(self) -> Any:
        """`gr.Tabs`: all tabs."""
        ...

    @property
    def first(self) -> str:
        """Key of the SAE that is shown first."""
        ...

    def view(self, key: str) -> SAEView:
        """The SAE with a key.

        Raises:
            RunError: there is none, or its index is of another checkpoint or format.
        """
        ...

    def map_url(self, sae: str, feature: int, image: int) -> str:
        """Address of a feature's heat map on an image of the data set: a PNG, one pixel a patch.

        Args:
            sae: an SAE's key.
        """
        ...


class SAEView(Protocol):
    """One SAE as the viewer holds it; what is slow is loaded when it is first asked for."""

    @property
    def key(self) -> str:
        """What the viewer calls it: its name, or `RUN:NAME` where it belongs to a run beside the viewed one."""
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
        """The SAE itself; loads torch.

        Raises:
            CheckpointError: it is damaged.
            RunError: the index is of another checkpoint.
        """
        ...

    @property
    def names(self) -> Sequence[str]:
        """Proposed name of each feature; empty where it has none."""
        ...

    def common_label(self, feature: int) -> str:
        """Name of the label that at least half of a feature's top images have; empty where there is none."""
        ...


class RunLibrary(Protocol):
    """A run and its images as the viewer holds them; what is slow is loaded when it is first asked for."""

    @property
    def run(self) -> Run:
        """The run."""
        ...

    @property
    def store(self) -> ActivationStore:
        """Its recorded activations.

        Raises:
            StoreError: they are gone or damaged.
        """
        ...

    @property
    def model(self) -> VisionModel:
        """Its model; loads torch.

        Raises:
            ModelError: it cannot be loaded.
        """
        ...

    @property
    def n_images(self) -> int:
        """Images of the run."""
        ...

    @property
    def labels(self) -> Int[np.ndarray, " n_images"]:
        """Label of each image; -1 where unknown."""
        ...

    @property
    def classes(self) -> Sequence[str]:
        """Names of the labels, by number; empty where there are none."""
        ...

    @property
    def no_pictures(self) -> str:
        """Why the images cannot be shown; empty where they can."""
        ...

    def label(self, index: int) -> str:
        """Name of an image's label; empty where it has none."""
        ...

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of an original in pixels, each at least 1."""
        ...

    def crop(self, index: int) -> Box:
        """What of an image the model saw, in pixels of the original."""
        ...

    def src(self, index: int, px: int) -> str:
        """Address of an image as a JPEG, its longer side about `px` pixels."""
        ...


__all__ = ["RunLibrary", "SAEView", "TabHost", "ViewerTab"]
