"""`Viewer`: what a tab is built with; `show_errors`: callbacks whose errors are messages in the page."""

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
    """What a tab is built with: the run, and the components that tabs share. To plugins it is a `TabHost`, which says how to use it."""

    library: Library
    sae: gr.Dropdown
    """Name of the SAE that is shown."""
    feature: gr.Number
    """Number of the feature that is shown."""
    picture: gr.Number
    """Number of the picture that the image tab shows; -1: the uploaded one."""
    upload: gr.Textbox
    """Key in `library.uploads` of the picture that a person brought last; empty: none yet."""
    box: gr.JSON
    """What is selected on the map of all features, column -> [least, largest]; None: everything."""
    tabs: gr.Tabs
    blocks: gr.Blocks

    @property
    def first(self) -> str:
        """Key of the SAE that is shown first."""
        return self.library.first

    def view(self, key: str) -> View:
        """The SAE with a key."""
        return self.library[key]

    def map_url(self, sae: str, feature: int, image: int) -> str:
        """Address of a feature's heat map on an image of the data set."""
        return map_url(sae, feature, image)


def show_errors(callback: Callable[P, R]) -> Callable[P, R]:
    """A callback whose errors are messages in the page; the application lives on."""

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
