"""Features: search, filter and sort; one feature with its pictures, numbers and notes."""

from __future__ import annotations

import base64
import io
import random
from functools import partial
from html import escape
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from saev_core.features import TopImage
from saev_viz.app import Viewer, told
from saev_viz.gallery import relative
from saev_viz.library import View
from saev_viz.overlay import COLOUR_MAPS, map_pixels
from saev_viz.table import Query

TITLE = "Features"
PAGE = 40
"""Features listed at once."""

CLICKS = """element.addEventListener('click', event => {
  const button = event.target.closest('[data-feature]');
  if (button) trigger('select', {feature: +button.dataset.feature});
});"""
"""A pane in which everything that carries `data-feature` opens that feature."""
OPACITY = """<label>Opacity <input type=range min=0 max=100 value=75
  oninput="document.body.style.setProperty('--heat', this.value / 100)"></label>"""


def build(viewer: Viewer) -> None:
    """A list on the left, the feature on the right."""
    columns = viewer.view(viewer.library.first).table.columns
    with gr.Row(elem_id="saev-features"):
        with gr.Column(scale=1, min_width=280):
            text = gr.Textbox(label="Search", placeholder="wing   #123   frequency<0.01", elem_id="saev-search")
            with gr.Row():
                sort = gr.Dropdown([(column.title, key) for key, column in columns.items()], value="max", label="Sort by")
                ascending = gr.Checkbox(False, label="smallest first")
            listed = gr.HTML(js_on_load=CLICKS, elem_id="saev-list")
        with gr.Column(scale=3, min_width=320):
            with gr.Row(elem_id="saev-walk"):
                previous = gr.Button("← previous (p)", elem_id="saev-previous", size="sm")
                following = gr.Button("next (n) →", elem_id="saev-next", size="sm")
                chance = gr.Button("random (r)", elem_id="saev-random", size="sm")
            with gr.Row():
                colours = gr.Dropdown(list(COLOUR_MAPS), value="inferno", label="Colours")
                end = gr.Dropdown([("99th percentile", "percentile"), ("largest value", "max")], value="percentile", label="Full colour at")
                gr.HTML(OPACITY)
            card = gr.HTML(js_on_load=CLICKS, elem_id="saev-card")

    def search(name: str, text: str, sort: str, ascending: bool, box: dict[str, Any] | None) -> str:
        view = viewer.view(name)
        try:
            found = view.table.find(Query(text or "", ranges=box or {}, sort=sort, ascending=ascending))
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None
        return rows(view, found, sort)

    def step(by: int, name: str, text: str, sort: str, ascending: bool, box: dict[str, Any] | None, feature: int) -> int:
        found = viewer.view(name).table.find(Query(text or "", ranges=box or {}, sort=sort, ascending=ascending))
        if not len(found):
            return feature
        if by == 0:
            return int(random.choice(found))
        at = np.flatnonzero(found == feature)
        return int(found[(int(at[0]) + by) % len(found)]) if len(at) else int(found[0])

    def show(name: str, feature: int, colours: str, end: str) -> str:
        return page(viewer.view(name), int(feature), colours, end)

    what = [viewer.sae, text, sort, ascending, viewer.box]
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}
    for change in (viewer.sae.change, text.submit, text.change, sort.change, ascending.change, viewer.box.change, viewer.blocks.load):
        change(told(search), what, listed, **quiet)
    for button, by in ((previous, -1), (following, 1), (chance, 0)):
        button.click(told(partial(step, by)), [*what, viewer.feature], viewer.feature, **quiet)

    def chosen(event: gr.EventData) -> int:
        return int(event._data["feature"])

    for pane in (listed, card):
        pane.select(told(chosen), None, viewer.feature, **quiet)
    for change in (viewer.feature.change, viewer.sae.change, colours.change, end.change):
        change(told(show), [viewer.sae, viewer.feature, colours, end], card, **quiet)


def rows(view: View, found: np.ndarray[Any, Any], sort: str) -> str:
    """The first of the found features, a line each."""
    values = view.table.columns[sort].values
    lines = "".join(f"<button data-feature={i}><b>{i}</b><span>{values[i]:.3g}</span></button>" for i in found[:PAGE])
    return f"<p>{len(found):,} features</p><div class=list>{lines}</div>"


def page(view: View, feature: int, colours: str, end: str) -> str:
    """A feature: its numbers and its top pictures."""
    index = view.index
    often = f"fires on {index.frequency[feature]:.3%} of patches, {index.image_frequency[feature]:.2%} of images"
    facts = f"{often}; largest value {index.max[feature]:.3g}"
    pictures = "".join(figure(view, top, view.upper(feature, end), colours) for top in index.top(feature))
    return f"<h2>Feature {feature}</h2><p>{facts}</p><div class=pictures>{pictures}</div>"


def figure(view: View, top: TopImage, upper: float, colours: str) -> str:
    """One picture with its heat map laid over what the model saw of it."""
    width, height = (int(side) for side in view.library.sizes[top.index])
    left, above, wide, high = relative(view.library.crop(top.index), (width, height))
    heat = uri(map_pixels(view.index.grid.to_map(top.map.astype(float)), upper=upper, opacity=1, colour_map=colours))
    label = escape(view.library.label(top.index))
    return (
        f'<figure><div class=frame style="aspect-ratio:{width}/{height}"><img src="/saev/image/{top.index}?px=224" loading=lazy alt="">'
        f'<img class=heat src="{heat}" style="left:{left:.2f}%;top:{above:.2f}%;width:{wide:.2f}%;height:{high:.2f}%" alt=""></div>'
        f"<figcaption>{label}<span>{top.value:.3g}</span></figcaption></figure>"
    )


def uri(pixels: np.ndarray[Any, Any]) -> str:
    """RGBA pixels as a PNG address."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
