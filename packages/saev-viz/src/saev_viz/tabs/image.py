"""Image: a picture of the data set or a new one, patch by patch: which features fire there, and where each one fires."""

from __future__ import annotations

import base64
import io
import json
import random
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from saev_core.errors import RunError
from saev_core.images import open_rgb
from saev_viz.app import Viewer, told
from saev_viz.gallery import relative
from saev_viz.library import View
from saev_viz.overlay import colours
from saev_viz.seen import Seen
from saev_viz.tabs.features import page

TITLE = "Image"

PANE = """<div class=look><div class=seen><img alt=""><canvas></canvas><div class=grid role=group aria-label="patches"></div></div>
<div class=side><p class=what role=status></p><div class=list></div></div></div>"""


def build(viewer: Viewer) -> None:
    """The tab."""
    with gr.Row(elem_id="saev-image-choose"):
        number = gr.Number(0, precision=0, minimum=0, label="Image number", elem_id="saev-image-number", min_width=140)
        chance = gr.Button("random image", size="sm", min_width=140)
        upload = gr.File(label="or a picture of your own", file_types=["image"], type="filepath", height=90, elem_id="saev-upload")
    told_of = gr.Markdown(elem_id="saev-image-name")
    pane = gr.HTML(html_template=PANE, js_on_load=(files("saev_viz") / "patches.js").read_text(encoding="utf-8"), elem_id="saev-look")
    gr.HTML("<h3>The same feature on its own top pictures</h3>")
    others = gr.HTML("<p>Choose a feature beside the picture.</p>", elem_id="saev-others")
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}

    def choose(name: str, number: int | None) -> tuple[str, str]:
        if number is None:
            raise RunError("type the number of an image.")
        view = viewer.view(name)
        seen = view.seen(int(number))
        label = view.library.label(int(number))
        note = view.library.no_pictures or f"Image {int(number)}" + (f", {label}" if label else "")
        return payload(view, seen, f"/saev/image/{int(number)}?px=896"), note

    def uploaded(name: str, path: str | None) -> tuple[Any, Any]:
        if path is None:
            return gr.skip(), gr.skip()
        image = open_rgb(Path(path), Path(path).name)
        view = viewer.view(name)
        seen = view.look(image)
        small = image.copy()
        small.thumbnail((896, 896))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=90)
        src = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        return payload(view, seen, src), f"Your picture, {image.width} × {image.height} pixels"

    def show(name: str, event: gr.EventData) -> tuple[int, str]:
        feature = int(event._data["feature"])
        return feature, page(viewer.view(name), feature, "inferno", "percentile")

    for change in (number.submit, number.change, viewer.sae.change):
        change(told(choose), [viewer.sae, number], [pane, told_of], **quiet)
    chance.click(told(lambda: random.randrange(max(1, viewer.library.store.n_images))), None, number, **quiet)
    upload.change(told(uploaded), [viewer.sae, upload], [pane, told_of], show_progress="minimal")
    pane.select(told(show), viewer.sae, [viewer.feature, others], **quiet)
    viewer.picture.change(lambda index: index, viewer.picture, number, **quiet)
    viewer.blocks.load(told(choose), [viewer.sae, number], [pane, told_of], **quiet)


def payload(view: View, seen: Seen, src: str) -> str:
    """A picture and its codes, packed for `patches.js`: everything that pointing at patches needs."""
    known = np.unique(seen.feature)
    names = view.table.names
    return json.dumps(
        {
            "src": src,
            "size": seen.size,
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
