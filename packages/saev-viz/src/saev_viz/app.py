"""The viewer: a gradio application of tabs on a run. `build` makes it, `serve` serves it."""

from __future__ import annotations

import functools
import importlib
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, ParamSpec, TypeVar

import gradio as gr
import uvicorn

from saev_core.errors import RunError, SaevError
from saev_core.hooks import Observers
from saev_core.run import Run
from saev_viz.library import Library, View
from saev_viz.server import Guard, make_app

log = logging.getLogger(__name__)

TABS = ("overview", "features", "image", "compare")
"""Our own tabs, modules of `saev_viz.tabs` with a `TITLE` and a `build(viewer)`."""
FONT = ["ui-sans-serif", "system-ui", "sans-serif"]
MONO = ["ui-monospace", "monospace"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Viewer:
    """What a tab is built with: the run, and the components that tabs share.

    A tab reads `sae` and `feature` in its callbacks and may set them; to follow a change it listens to `.change`. Another
    tab is opened by returning `gr.Tabs(selected=TITLE.lower())` to `tabs`.
    """

    library: Library
    sae: gr.Dropdown
    """Name of the SAE that is shown."""
    feature: gr.Number
    """Number of the feature that is shown."""
    picture: gr.Number
    """Number of the picture that the image tab shows; -1: an uploaded one."""
    box: gr.JSON
    """What is selected on the map of all features, column -> [least, largest]; None: everything."""
    tabs: gr.Tabs
    blocks: gr.Blocks

    def view(self, name: str) -> View:
        """The SAE called `name`."""
        return self.library[name]


def told(callback: Callable[P, R]) -> Callable[P, R]:
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


def build(library: Library) -> gr.Blocks:
    """The application on a run: our tabs, then those that plugins add through `viewer_tabs`."""
    blocks: gr.Blocks
    with gr.Blocks(title=f"{library.run.path.resolve().name} · saev", analytics_enabled=False, fill_width=True) as blocks:
        with gr.Row(elem_id="saev-top"):
            gr.HTML(f"<h1>{library.run.path.resolve().name}</h1>", elem_id="saev-title")
            sae = gr.Dropdown(library.names, value=library.first, label="SAE", elem_id="saev-sae", visible=len(library.names) > 1)
        feature = gr.Number(0, precision=0, minimum=0, label="Feature", elem_id="saev-feature", visible="hidden")
        picture = gr.Number(0, precision=0, minimum=-1, label="Picture", elem_id="saev-picture", visible="hidden")
        box = gr.JSON(None, visible=False)
        with gr.Tabs(selected="features", elem_id="saev-tabs") as tabs:
            viewer = Viewer(library, sae, feature, picture, box, tabs, blocks)
            for name in TABS:
                module = importlib.import_module(f"saev_viz.tabs.{name}")
                with gr.Tab(module.TITLE, id=name):
                    module.build(viewer)
            for title, make in plugin_tabs(library.run):
                with gr.Tab(title, id=title.lower()):
                    make(viewer)

        def opened(request: gr.Request) -> tuple[Any, Any, Any]:
            asked = request.query_params
            name = asked.get("sae", library.first)
            name = name if name in library.names else library.first
            text = asked.get("feature", "")
            number = int(text) if text.isdigit() else library[name].start
            if number >= library[name].index.d_sae:
                gr.Warning(f"Feature {number}: this SAE has features 0 to {library[name].index.d_sae - 1}.")
                number = library[name].start
            where = "features" if text else "overview"
            return gr.Dropdown(value=name), number, gr.Tabs(selected=asked.get("tab", where))

        blocks.load(told(opened), None, [sae, feature, tabs], queue=False)
        feature.change(None, [feature, sae], None, js="(feature, sae) => saevLink(feature, sae)")
    return blocks


def plugin_tabs(run: Run) -> list[tuple[str, Callable[[Viewer], None]]]:
    """Tabs of the installed plugins; one that fails is logged and left out."""
    found: list[tuple[str, Callable[[Viewer], None]]] = []
    for tabs in Observers().emit("viewer_tabs", run=run):
        found += tabs
    return found


def make_server(library: Library, *, auth: str = "") -> Guard:
    """The whole application, ready for an ASGI server."""
    here = files("saev_viz")
    app = gr.mount_gradio_app(
        make_app(library),
        build(library),
        "/",
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        max_file_size="50mb",
        theme=gr.themes.Base(font=FONT, font_mono=MONO),
        css=(here / "viewer.css").read_text(encoding="utf-8"),
        head=f"<script>{(here / 'viewer.js').read_text(encoding='utf-8')}</script>",
    )
    return Guard(app, auth)


def serve(
    run: Run, *, host: str = "127.0.0.1", port: int = 7860, auth: str = "", dataset: str = "", say: Callable[[str], None] = log.info
) -> None:
    """Serve the viewer until it is interrupted.

    Raises:
        RunError: nothing is indexed yet, or the port is taken.
    """
    library = Library(run, dataset)
    library[library.first]
    try:
        taken = socket.create_server((host, port))
    except OSError as error:
        raise RunError(f"port {port} of {host} cannot be used ({error.strerror}); choose another --port.") from None
    if host not in ("127.0.0.1", "localhost", "::1"):
        say(f"anyone who reaches {host}:{port} can see this run" + ("" if auth else "; set --auth USER:PASSWORD"))
    server = uvicorn.Server(uvicorn.Config(make_server(library, auth=auth), log_level="warning"))
    say(f"viewer: http://{host}:{taken.getsockname()[1]}  (Ctrl-C ends it)")
    server.run(sockets=[taken])


def link(sae: str, feature: int) -> str:
    """The address of a feature, relative to the viewer."""
    return f"?sae={sae}&feature={feature}"
