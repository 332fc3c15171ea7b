"""`Viewer`: the context passed to each tab; `show_errors`: shows a callback's errors in the page."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import gradio as gr

from saev_core import SaevError
from saev_viz.run_view.addresses import map_url
from saev_viz.run_view.library import Library, View

log = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Viewer:
    """Context passed to each tab: the run, and the components that tabs share. Plugins see it as a `TabHost`, documented there."""

    library: Library
    sae: gr.Dropdown
    """Key of the current SAE."""
    feature: gr.Number
    """Number of the current feature."""
    picture: gr.Number
    """Number of the picture in the Image tab; -1: the uploaded one."""
    upload: gr.Textbox
    """Key in `library.uploads` of the latest upload; empty: none yet."""
    box: gr.JSON
    """Selection on the map of all features, column -> [minimum, maximum]; None: everything."""
    tabs: gr.Tabs
    blocks: gr.Blocks

    @property
    def first(self) -> str:
        """Key of the SAE shown first."""
        return self.library.first

    def view(self, key: str) -> View:
        """The SAE with a key."""
        return self.library[key]

    def map_url(self, sae: str, feature: int, image: int) -> str:
        """URL of a feature's heat map on an image of the data set."""
        return map_url(sae, feature, image)


def show_errors(callback: Callable[P, R]) -> Callable[P, R]:
    """Wrap a callback so that its errors are shown in the page and the application keeps running."""

    @functools.wraps(callback)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return callback(*args, **kwargs)
        except SaevError as error:
            raise gr.Error(str(error), print_exception=False) from None
        except gr.Error:
            raise
        except Exception as error:
            log.exception("the viewer's %s failed", getattr(callback, "__qualname__", callback))
            raise gr.Error(f"{type(error).__name__}: {error}", print_exception=False) from None

    return wrapped
