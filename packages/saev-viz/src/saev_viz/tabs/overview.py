"""Overview."""

from __future__ import annotations

import gradio as gr

from saev_viz.app import Viewer

TITLE = "Overview"


def build(viewer: Viewer) -> None:
    """The tab."""
    gr.Markdown("")
