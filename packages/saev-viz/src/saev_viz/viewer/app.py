"""The viewer: a gradio application with tabs on a run. `build` creates it, `serve` serves it.

To link between tabs, set `viewer.feature`, `viewer.picture` or `viewer.sae` and return `gr.Tabs(selected=...)` to
`viewer.tabs`; every tab follows. In a `gr.HTML` pane, `panes.js` turns clicks on elements with `data-feature` or
`data-picture` into events that do so. Pictures are fetched only from `/saev/image/{number}?px=`: the page can reach no
other host, no file, and only the routes of `guard.SERVED`.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import os
import shutil
import tempfile
import threading
from html import escape
from pathlib import Path
from typing import Any, cast

import gradio as gr
from fastapi import FastAPI

from saev_core import Run, ViewerTab
from saev_core.runs.hooks import Observers
from saev_viz.run_view.library import Library
from saev_viz.static import read_asset
from saev_viz.viewer.contract import Viewer, show_errors
from saev_viz.viewer.guard import Guard
from saev_viz.viewer.routes import make_app
from saev_viz.viewer.tabs import compare, features, image, overview

log = logging.getLogger(__name__)
TABS = {"overview": overview, "features": features, "image": image, "compare": compare}
"""Built-in tabs by their name in the URL."""
SHEETS = ("viewer.css", "overview.css", "compare.css")
FONT = ["ui-sans-serif", "system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]


def build(library: Library) -> gr.Blocks:
    """The application on a run: the built-in tabs, then those that plugins add through `viewer_tabs`."""
    blocks: gr.Blocks
    # Built-in uploads stay in memory; those of plugin tabs are deleted after an hour.
    with gr.Blocks(
        title=f"{library.run.path.resolve().name} · saev", analytics_enabled=False, fill_width=True, delete_cache=(600, 3600)
    ) as blocks:
        with gr.Row(elem_id="saev-top"):
            gr.HTML(f"<h1>{escape(library.run.path.resolve().name)}</h1>", elem_id="saev-title")
            sae = gr.Dropdown(library.names, value=library.first, label="SAE", elem_id="saev-sae", visible=len(library.names) > 1)
        for i, warning in enumerate(filter(None, (library.no_pictures, library.lost))):
            gr.HTML(f'<p class="warn" role="alert">{escape(warning)}</p>', elem_id=f"saev-warning-{i}")
        # -1: none yet, so that opening feature 0 triggers a change event too.
        feature = gr.Number(-1, precision=0, minimum=-1, label="Feature", elem_id="saev-feature", visible="hidden")
        picture = gr.Number(0, precision=0, minimum=-1, label="Picture", elem_id="saev-picture", visible="hidden")
        upload = gr.Textbox("", label="Upload", elem_id="saev-uploaded", visible="hidden")
        box = gr.JSON(None, visible=False)
        with gr.Tabs(selected="features", elem_id="saev-tabs") as tabs:
            viewer = Viewer(library, sae, feature, picture, upload, box, tabs, blocks)
            for name, tab in TABS.items():
                with gr.Tab(tab.TITLE, id=name):
                    tab.build(viewer)
            for extra in plugin_tabs(library.run):
                add(viewer, extra)

        def opened(request: gr.Request) -> tuple[Any, Any, Any]:
            warm(library)
            asked = request.query_params
            name = asked.get("sae", library.first)
            if name not in library.names:
                gr.Warning(f"There is no indexed SAE {name!r}; showing {library.first}.")
                name = library.first
            text, image = asked.get("feature", ""), asked.get("image", "")
            number = int(text) if text.isdecimal() else library[name].start
            if number >= library[name].index.d_sae or (text and not text.isdecimal()):
                gr.Warning(f"There is no feature {text!r}: this SAE has features 0 to {library[name].index.d_sae - 1}.")
                number = library[name].start
            shown = int(image) if image.isdecimal() else 0
            return gr.Dropdown(value=name), number, shown

        # Client-side and immediate: the response below must not override a tab that the user has since selected.
        blocks.load(None, None, tabs, js="() => saevTab()")
        blocks.load(show_errors(opened), None, [sae, feature, picture])  # through the queue: warnings need it
        feature.change(None, [feature, sae], None, js="(feature, sae) => saevLink(feature, sae)")
    return blocks


def add(viewer: Viewer, tab: ViewerTab) -> None:
    """Add a plugin's tab; if building it fails, log the error and skip it, without affecting the others."""
    blocks, tabs = viewer.blocks, list(viewer.tabs.children)
    known = set(blocks.blocks), set(blocks.fns)
    name = tab.title.lower() if tab.title.lower() not in TABS else f"{tab.title.lower()}-2"
    try:
        with gr.Tab(tab.title, id=name):
            tab.build(viewer)
    except Exception:
        log.exception("the plugin tab %r failed to build and is skipped", tab.title)
        viewer.tabs.children = tabs
        for number in set(blocks.blocks) - known[0]:
            del blocks.blocks[number]
        for number in set(blocks.fns) - known[1]:
            del blocks.fns[number]


def plugin_tabs(run: Run) -> list[ViewerTab]:
    """Tabs of the installed plugins; anything that is not a `ViewerTab` is logged and skipped."""
    found: list[ViewerTab] = []
    for given in Observers().emit("viewer_tabs", run=run):
        for tab in given if isinstance(given, list | tuple) else [given]:
            if isinstance(tab, ViewerTab) and isinstance(tab.title, str) and tab.title:
                found.append(tab)
            else:
                log.error("viewer_tabs returned %r, which is not a ViewerTab with `title` and `build(host)`; skipping it", tab)
    return found


@functools.cache
def private_folder() -> Path:
    """Gradio's upload folder: readable only by this user, deleted when the viewer exits."""
    folder = Path(tempfile.mkdtemp(prefix="saev-view-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def make_server(library: Library, *, auth: str = "", local: bool = False) -> Guard:
    """The complete application, ready for an ASGI server.

    Args:
        auth: `user:password`; empty: no login.
        local: accept only local host names.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(private_folder())
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # a plugin's tab may create its own Blocks

    async def mounted() -> FastAPI:
        return _mounted(library)

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        app = asyncio.run(mounted())  # without a running loop, gradio opens event loops and never closes them
    else:
        app = _mounted(library)
    return Guard(app, auth, files=private_folder(), local=local)


def _mounted(library: Library) -> FastAPI:
    blocks = build(library)
    app = gr.mount_gradio_app(
        make_app(library),
        blocks,
        "/",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        allowed_paths=[],
        blocked_paths=[str(one.run.path.resolve()) for one in (library, *library.others)],
        ssr_mode=False,
        max_file_size="50mb",
        theme=gr.themes.Base(font=FONT, font_mono=MONO),
        css="".join(map(read_asset, SHEETS)),
        head=f"<script>{read_asset('viewer.js')}</script>",
    )
    # Gradio never marks a mounted application as launched; before launch it accepts any path in a call as an upload,
    # copies it, and serves uploaded SVG like its own.
    blocks.has_launched = blocks.is_running = True
    return cast(FastAPI, app)


def warm(library: Library) -> None:
    """Preload what the first click in the Image tab needs, shortly after the first page load."""
    if not library.warmed:
        library.warmed = True
        timer = threading.Timer(1.5, library.warm)
        timer.daemon = True
        timer.start()
