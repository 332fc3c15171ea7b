"""Image: a picture of the data set or an upload, patch by patch: which features fire where."""

from __future__ import annotations

import base64
import json
import random
from functools import partial
from html import escape
from typing import Any

import gradio as gr
import numpy as np

from saev_core import SaevError
from saev_core.errors import RunError
from saev_viz.drawing.heat_maps import colours
from saev_viz.html.comparison import only, selected
from saev_viz.html.feature_page import _top
from saev_viz.run_view.addresses import PREFIX, upload_url
from saev_viz.run_view.choose_features import relative
from saev_viz.run_view.library import Library, View
from saev_viz.run_view.picture_codes import Seen
from saev_viz.static import read_asset
from saev_viz.viewer.contract import Viewer, show_errors

TITLE = "Image"
Box = dict[str, list[float]] | None
"""Selection on the map, see `Viewer.box`."""
N_OTHERS = 12
"""Top pictures of a feature shown below the picture."""

PANE = """<div class=look><div class=left>
<div class=seen><img alt=""><canvas></canvas><div class=grid role=group aria-label="patches; arrow keys move, Enter pins one"></div></div>
<p class=caption role=status></p>
<div class=tools>
<label class=heat title="Opacity of the heat map">Heat map <input type=range min=0 max=100 value=75></label>
<label class=bring title="JPEG, PNG and most other formats, up to 50 MB. Kept in memory, never written to disk.">
<input type=file accept="image/*"><span>Upload a picture…</span></label>
<span class="hint where">or drop or paste it here</span></div>
<p class=trouble role=alert hidden></p></div>
<div class=side><p class=what role=status></p><div class=list></div></div></div>"""
ASK = '<p class="hint">Select a feature beside the picture to see its top pictures here.</p>'


def build(viewer: Viewer) -> None:  # noqa: PLR0915 one line for each control
    """The tab."""
    library = viewer.library
    labels = _labels(library)
    with gr.Row(elem_id="saev-image-choose"):
        number = gr.Number(0, precision=0, label=f"Image (0–{library.n_images - 1})", elem_id="saev-image-number", min_width=150)
        among = gr.Dropdown(
            [("any", -1), *labels],
            value=-1,
            label="Label",
            elem_id="saev-image-label",
            min_width=150,
            visible=bool(labels),
            filterable=True,
        )
        back = gr.Button("← previous", size="sm", min_width=90, elem_id="saev-image-previous")
        on = gr.Button("next →", size="sm", min_width=90, elem_id="saev-image-next")
        chance = gr.Button("random", size="sm", min_width=90, elem_id="saev-image-random")
    pane = gr.HTML(html_template=PANE, js_on_load=read_asset("patches.js"), elem_id="saev-look")
    others = gr.HTML(ASK, elem_id="saev-others", js_on_load=read_asset("panes.js"))
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}

    def choose(name: str, index: int, box: Box) -> str:
        view = viewer.view(name)
        seen = only(view.seen(index), selected(view, box))
        label = view.library.label(index)
        return payload(view, seen, view.library.src(index, 896), f"Image {index}" + (f" · {label}" if label else ""))

    def brought(name: str, key: str, box: Box) -> str:
        view, held = viewer.view(name), library.uploads[key]
        told_of = f"{held.name} · your picture, {held.width} × {held.height} pixels"
        return payload(view, only(view.look(held.image()), selected(view, box)), upload_url(key), told_of)

    def show(name: str, index: int | None, key: str, box: Box) -> str:
        if index == -1 and key:
            return brought(name, key, box)
        return choose(name, max(int(index or 0), 0), box)

    def moved(name: str, index: int | None, box: Box) -> Any:
        return gr.skip() if index == -1 else choose(name, int(index or 0), box)  # -1: already shown by `upload`

    def typed(name: str, index: float | None) -> Any:
        if index is None:
            return gr.skip()  # the field is empty while typing
        n_images = viewer.view(name).library.n_images
        if not 0 <= index < n_images:
            raise RunError(f"image {int(index)}: this run has images 0 to {n_images - 1}.")
        return int(index)

    def step(by: int, name: str, index: int | None, label: int) -> int:
        have = viewer.view(name).library
        # -1, an upload, sorts before the first. Labels are those of the main run, not of `others`.
        found = np.flatnonzero(have.labels == label) if label >= 0 and have is library else np.arange(have.n_images)
        if not len(found):
            raise RunError("no image has this label.")
        if by == 0:
            return int(random.choice(found))
        at = int(np.searchsorted(found, -1 if index is None else int(index), side="right" if by > 0 else "left"))
        return int(found[(at if by > 0 else at - 1) % len(found)])

    def labelled(name: str, index: int | None, label: int) -> Any:
        if label < 0 or (index is not None and 0 <= index < library.n_images and library.labels[int(index)] == label):
            return gr.skip()
        return step(1, name, -1, label)

    def upload(name: str, box: Box, event: gr.EventData) -> tuple[Any, Any, str]:
        key = str(event._data["picture"])
        try:
            return -1, key, brought(name, key, box)
        except SaevError as error:
            return gr.skip(), gr.skip(), json.dumps({"error": str(error)})

    def chosen(name: str, event: gr.EventData) -> tuple[int, str]:
        feature = int(event._data["feature"])
        return feature, top_pictures(viewer.view(name), feature)

    def opened(event: gr.EventData) -> Any:
        if "picture" in event._data:
            return int(event._data["picture"]), gr.skip(), gr.skip()
        if "feature" in event._data:
            return gr.skip(), int(event._data["feature"]), gr.Tabs(selected="features")
        return gr.skip(), gr.skip(), gr.skip()

    what = [viewer.sae, viewer.picture, viewer.upload, viewer.box]
    number.input(show_errors(typed), [viewer.sae, number], viewer.picture, **quiet)
    for button, by in ((back, -1), (on, 1), (chance, 0)):
        button.click(show_errors(partial(step, by)), [viewer.sae, viewer.picture, among], viewer.picture, **quiet)
    among.input(show_errors(labelled), [viewer.sae, viewer.picture, among], viewer.picture, **quiet)
    viewer.picture.change(lambda index: index if index is not None and index >= 0 else None, viewer.picture, number, **quiet)
    # The pane requests its first picture when first shown: until then neither torch nor the SAE is loaded.
    for change in (pane.load, viewer.sae.change, viewer.box.change):
        change(show_errors(show), what, pane, **quiet)
    viewer.picture.change(show_errors(moved), [viewer.sae, viewer.picture, viewer.box], pane, **quiet)
    viewer.sae.change(lambda: ASK, None, others, **quiet)
    pane.upload(show_errors(upload), [viewer.sae, viewer.box], [viewer.picture, viewer.upload, pane], **quiet)
    pane.select(show_errors(chosen), viewer.sae, [viewer.feature, others], **quiet)
    others.input(show_errors(opened), None, [viewer.picture, viewer.feature, viewer.tabs], **quiet)
    others.select(show_errors(opened), None, [viewer.picture, viewer.feature, viewer.tabs], **quiet)


def _labels(library: Library) -> list[tuple[str, int]]:
    """Labels in use, with their numbers, sorted by name."""
    found, counts = np.unique(library.labels[library.labels >= 0], return_counts=True)
    names = {int(number): library.classes[number] if number < len(library.classes) else f"label {number}" for number in found}
    return sorted((f"{names[int(number)]} ({count})", int(number)) for number, count in zip(found, counts, strict=True))


def top_pictures(view: View, feature: int) -> str:
    """A feature's top pictures with heat maps, and a link to its page."""
    name = escape(view.table.names[feature] or "")
    upper = view.upper(feature)
    top = view.index.top(feature, N_OTHERS)
    pictures = "".join(_top(view, one, upper, "inferno") for one in top)
    return (
        f'<div class="title"><h3>Feature {feature} {name}</h3>'
        f'<button class="small" data-feature="{feature}">Open in Features tab</button></div>'
        f'<p class="hint">Its top pictures, strongest first. Click one to open it here.</p>'
        f'<div class="shots">{pictures}</div>'
    )


def payload(view: View, seen: Seen, src: str, caption: str) -> str:
    """A picture and its codes, packed for `patches.js`: all it needs to explore patches."""
    known = np.unique(seen.feature)
    names = view.table.names
    missing = view.library.no_pictures if src.startswith(f"{PREFIX}/image/") else ""
    return json.dumps(
        {
            "src": src,
            "caption": caption,
            "about": " ".join(part for part in (seen.about, missing) if part),
            "size": [max(int(side), 1) for side in seen.size],
            "box": relative(seen.crop, seen.size),
            "rows": seen.grid.rows,
            "cols": seen.grid.cols,
            "offsets": _pack(seen.offsets.astype("<i4")),
            "feature": _pack(seen.feature.astype("<i4")),
            "value": _pack(seen.value.astype("<f4")),
            "known": _pack(known.astype("<i4")),
            "upper": _pack(view.uppers[known].astype("<f4")),
            "names": {int(feature): names[feature] for feature in known if names[feature]},
            "colours": _pack(colours("inferno")),
        }
    )


def _pack(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()
