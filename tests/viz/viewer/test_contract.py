"""The viewer keeps what the core promises to the tabs of plugins; mypy checks the same where `app.add` builds a tab."""

from __future__ import annotations

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import gradio as gr

from saev_core.runs.run import Run
from saev_core.tasks.viewer_tab import RunLibrary, SAEView, TabHost
from saev_viz.run_view.library import Library
from saev_viz.viewer.contract import Viewer


def viewer(library: Library) -> Viewer:
    async def made() -> Viewer:  # without a running loop, gradio opens event loops and never closes them
        with gr.Blocks() as blocks:
            shared = gr.Dropdown(), gr.Number(), gr.Number(), gr.Textbox(), gr.JSON()
            with gr.Tabs() as tabs:
                pass
        return Viewer(library, *shared, tabs, blocks)

    with ThreadPoolExecutor(1) as thread:  # this one may have a running loop: the browser's
        return thread.submit(asyncio.run, made()).result()


def members(protocol: type) -> dict[str, Any]:
    return {name: found for name, found in vars(protocol).items() if not name.startswith("_")}


def test_the_viewer_is_a_host_of_tabs_and_what_it_gives_is_what_is_promised(run_of_pictures: Run) -> None:
    host: TabHost = viewer(Library(run_of_pictures))
    assert isinstance(host, TabHost)
    view: SAEView = host.view(host.first)
    library: RunLibrary = view.library
    for protocol, made in ((TabHost, host), (SAEView, view), (RunLibrary, library)):
        for name, promised in members(protocol).items():
            assert name in vars(made) or hasattr(type(made), name), f"{type(made).__name__} has no {name}"
            if inspect.isfunction(promised):
                have = list(inspect.signature(getattr(type(made), name)).parameters)
                assert have == list(inspect.signature(promised).parameters), name


def test_what_a_tab_is_told_of_images_and_features(run_of_pictures: Run) -> None:
    library = Library(run_of_pictures)
    host = viewer(library)
    view = host.view(host.first)
    assert host.map_url("other:topk", 3, 7) == "/saev/map/other%3Atopk/3/7"
    assert view.library.src(2, 96) == "/saev/image/2?px=96"
    for image in range(library.n_images):
        assert view.library.size(image) == tuple(max(int(side), 1) for side in library.sizes[image])
    assert len(view.names) == view.index.d_sae
    assert view.library.classes == ["dots", "stripes"]
    assert {view.common_label(feature) for feature in range(view.index.d_sae)} <= {"", "dots", "stripes"}
