"""The pages of the control tabs, as viewer components. Imports torch and gradio lazily."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from saev_core import TabHost
from saev_tasks.control_tabs.static import read_asset

log = logging.getLogger(__name__)

SCRIPTS = {
    "classification": ("control.js", "figure.js", "slider.js", "classification.js"),
    "segmentation": ("control.js", "figure.js", "patches.js", "segmentation.js"),
}
"""Scripts of each page, in execution order."""

Ask = Callable[[Mapping[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class ControlTab:
    """A viewer tab: a page whose requests a `Pane` answers. Its value is the key of the SAE, which it follows."""

    title: str
    page: str
    """One of `SCRIPTS`."""

    def build(self, host: TabHost) -> None:
        """Build the page; see `ViewerTab`."""
        build(self.page, host)


def build(name: str, host: TabHost) -> None:
    """The components of a page."""
    import gradio as gr

    shown = gr.HTML(
        host.first,
        html_template=f"<style>{read_asset('control.css')}</style>{read_asset(f'{name}.html')}",
        js_on_load="\n".join(map(read_asset, SCRIPTS[name])),
        elem_id=f"saev-{name}",
        apply_default_css=False,
        server_functions=[answers(name, host)],
    )

    def opened(event: gr.EventData) -> Any:
        """Open a feature or a picture in its own tab."""
        if "feature" in event._data:
            return int(event._data["feature"]), gr.skip(), gr.Tabs(selected="features")
        return gr.skip(), int(event._data["picture"]), gr.Tabs(selected="image")

    opened.__annotations__["event"] = gr.EventData  # gradio looks for this type, but annotations are strings here
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    host.sae.change(lambda sae: sae, host.sae, shown, **quiet)
    shown.select(opened, None, [host.feature, host.picture, host.tabs], **quiet)


def answers(name: str, host: TabHost) -> Ask:
    """The page's server function. The pane, and with it torch, is loaded on the first request."""
    panes: list[Ask] = []
    lock = Lock()

    def ask(asked: Mapping[str, Any]) -> dict[str, Any]:
        try:
            with lock:
                if not panes:
                    panes.append(_pane(name, host))
            return panes[0](asked)
        except Exception as error:
            log.exception("the %s tab failed", name)
            return {"error": f"{type(error).__name__}: {error}"}

    return ask


def _pane(name: str, host: TabHost) -> Ask:
    if name == "classification":
        from saev_tasks.control_tabs.classification import Classification

        return Classification(host)
    from saev_tasks.control_tabs.segmentation import Segmentation

    return Segmentation(host)
