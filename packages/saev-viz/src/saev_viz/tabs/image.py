"""Image."""

from __future__ import annotations

import gradio as gr

from saev_viz.app import Viewer

TITLE = "Image"


def build(viewer: Viewer) -> None:
    """The tab."""
    gr.Markdown("")
