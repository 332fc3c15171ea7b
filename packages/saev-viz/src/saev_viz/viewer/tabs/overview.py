"""Overview: training facts, metrics, and the map of all features, where a box selects some of them."""

from __future__ import annotations

from typing import Any

import gradio as gr

from saev_core.errors import RunError
from saev_viz.html.overview import points, spread, sweep, trained
from saev_viz.static import read_asset
from saev_viz.viewer.contract import Viewer, show_errors

TITLE = "Overview"

MAP = """<h3>All features</h3>
<p class=hint>Each point is a feature: further right it fires on more patches, further up it fires more strongly. Rare, strong ones,
at the upper left, are often the most interpretable. Click a point to open it; drag a box, or type ranges below, to restrict
all tabs to the features inside it.</p>
<p class=empty hidden>No feature of this SAE fires on the indexed images, so there is no map. Train longer,
or choose another SAE.</p>
<div class=map><canvas tabindex=0 role=application aria-label="Map of all features. Arrow keys move between features, Enter opens one;
to select several, type ranges below."></canvas><div class=tip role=status hidden></div></div>
<form class=ranges><fieldset><legend>Fires on</legend><label>from
<input name=x0 inputmode=decimal aria-label="minimum percentage of patches"></label>
<label>to <input name=x1 inputmode=decimal aria-label="maximum percentage of patches"></label> % of patches</fieldset>
<fieldset><legend>Mean value</legend><label>from <input name=y0 inputmode=decimal aria-label="minimum mean value"></label>
<label>to <input name=y1 inputmode=decimal aria-label="maximum mean value"></label></fieldset>
<button class=small>Select</button><button class=small type=button data-touch aria-pressed=false>Draw a box by touch</button>
<span class=chosen role=status></span><button class="small go" type=button data-go hidden>List them</button>
<button class=small type=button data-clear hidden>Clear selection</button></form>"""
CHOOSE = """element.addEventListener("click", (e) => {
  const chosen = e.target.closest("[data-sae]");
  if (chosen) trigger("select", { sae: chosen.dataset.sae });
});"""


def build(viewer: Viewer) -> None:
    """The tab."""
    facts = gr.HTML(elem_id="saev-facts")
    plane = gr.HTML(js_on_load=CHOOSE, elem_id="saev-sweep", visible=False)
    chart = gr.HTML(html_template=MAP, js_on_load=read_asset("map.js"), elem_id="saev-map")
    spreads = gr.HTML(elem_id="saev-spread")
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}

    def describe(name: str, box: dict[str, list[float]] | None) -> tuple[str, Any, str, str]:
        view = viewer.view(name)
        compared = sweep(view)
        return trained(view), gr.HTML(compared, visible=bool(compared)), points(view, box), spread(view)

    def boxed(event: gr.EventData) -> dict[str, list[float]]:
        x0, x1, y0, y1 = (10 ** float(edge) for edge in event._data["box"])
        return {"frequency": [x0, x1], "mean": [y0, y1]}

    def opened(event: gr.EventData) -> tuple[int, Any]:
        return int(event._data["feature"]), gr.Tabs(selected="features")

    def switched(event: gr.EventData, shown: str) -> Any:
        library = viewer.view(shown).library
        name = str(event._data["sae"])
        if name not in library.own:
            raise RunError(
                f"{name} has no feature index yet; build one with saev index {library.run.path} --only {name}, then restart the viewer."
            )
        return viewer.view(f"{library.title}:{name}" if library.number else name).key

    for change in (viewer.blocks.load, viewer.sae.change):
        change(show_errors(describe), [viewer.sae, viewer.box], [facts, plane, chart, spreads], **quiet)
    # Send only the box to the map, which already has the points.
    viewer.box.change(
        None, viewer.box, None, js='(box) => { document.dispatchEvent(new CustomEvent("saev-box", { detail: box })); return []; }'
    )
    chart.input(show_errors(boxed), None, viewer.box, **quiet)
    chart.clear(lambda: None, None, viewer.box, **quiet)
    chart.submit(lambda: gr.Tabs(selected="features"), None, viewer.tabs, **quiet)
    chart.select(show_errors(opened), None, [viewer.feature, viewer.tabs], **quiet)
    plane.select(show_errors(switched), viewer.sae, viewer.sae, **quiet)
