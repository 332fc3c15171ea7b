"""Overview: what was trained on what, how good it is, and the map of all features, on which a box selects some of them."""

from __future__ import annotations

import base64
import json
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr
import numpy as np

from saev_viz.app import Viewer, told
from saev_viz.charts import frame, log_ticks, number, percent
from saev_viz.library import View, card_of

TITLE = "Overview"

CARD = (
    ("nmse", "NMSE", "reconstruction error over the variance of the activations, on held-out images"),
    ("l0", "L0", "features active on a patch"),
    ("dead", "dead", "share of features that never fire on held-out images"),
    ("almost_dead", "almost dead", "share of features that fire on next to none"),
    ("dense", "dense", "share of features that fire on more than one patch in a hundred"),
)


def build(viewer: Viewer) -> None:
    """The tab."""
    facts = gr.HTML(elem_id="saev-facts")
    with gr.Row():
        gr.HTML("<h3>All features</h3><p>Drag a box to look only at the features inside; click a point to open it.</p>")
        clear = gr.Button("show all features", size="sm", visible=False, elem_id="saev-clear", scale=0, min_width=180)
    chart = gr.HTML(
        html_template="<div class=map><canvas></canvas><div class=tip hidden></div></div>",
        js_on_load=(files("saev_viz") / "map.js").read_text(encoding="utf-8"),
        elem_id="saev-map",
    )
    spread = gr.HTML(elem_id="saev-spread")
    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden"}

    def describe(name: str) -> tuple[str, str]:
        view = viewer.view(name)
        return trained(view), histograms(view)

    def place(name: str, box: dict[str, Any] | None) -> str:
        return points(viewer.view(name), box)

    def boxed(event: gr.EventData) -> tuple[dict[str, Any], Any, Any]:
        x0, x1, y0, y1 = (10 ** float(edge) for edge in event._data["box"])
        return {"frequency": [x0, x1], "mean": [y0, y1]}, gr.Tabs(selected="features"), gr.Button(visible=True)

    def unboxed() -> tuple[None, Any]:
        return None, gr.Button(visible=False)

    def opened(event: gr.EventData) -> tuple[int, Any]:
        return int(event._data["feature"]), gr.Tabs(selected="features")

    for change in (viewer.blocks.load, viewer.sae.change):
        change(told(describe), viewer.sae, [facts, spread], **quiet)
        change(told(place), [viewer.sae, viewer.box], chart, **quiet)
    viewer.box.change(told(place), [viewer.sae, viewer.box], chart, **quiet)
    chart.input(told(boxed), None, [viewer.box, viewer.tabs, clear], **quiet)
    clear.click(told(unboxed), None, [viewer.box, clear], **quiet)
    chart.select(told(opened), None, [viewer.feature, viewer.tabs], **quiet)


def trained(view: View) -> str:
    """What was trained on what, and the evaluation cards of all the run's SAEs, the shown one marked."""
    run, meta = view.library.run, view.meta
    train = meta.get("train", {})
    rows = [
        ("model", _named(meta["store"].get("model", run.config.model.model_dump(mode="json")))),
        ("data set", _named(meta["store"].get("dataset", run.config.dataset.model_dump(mode="json")))),
        ("where", f"{meta['site']}, {meta['read']['tokens']}"),
        ("SAE", f"{meta['ref']['name']}, {view.index.d_sae:,} features"),
        ("trained on", f"{train.get('n_vectors', 0):,} vectors, learning rate {train.get('lr', 0):g}, seed {train.get('seed', 0)}"),
        ("indexed", f"{view.index.n_images:,} images, {view.index.n_vectors:,} vectors"),
    ]
    facts = "".join(f"<tr><th>{key}</th><td>{escape(value)}</td></tr>" for key, value in rows)
    heads = "".join(f'<th title="{why}">{title}</th>' for _, title, why in CARD)
    lines = []
    for name in view.library.run.sae_names:
        card = card_of(run, name)
        cells = "".join(f"<td>{_number(key, card[key]) if key in card else '–'}</td>" for key, _, _ in CARD)
        lines.append(f"<tr{' class=on' if name == view.name else ''}><th>{escape(name)}</th>{cells}</tr>")
    table = f"<table class=cards><thead><tr><th></th>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<div class=facts><table>{facts}</table>{table}</div>"


def _named(ref: dict[str, Any]) -> str:
    options = {key: value for key, value in ref.get("options", {}).items() if value not in ("", None, True)}
    return str(ref.get("name", "")) + (f" ({', '.join(f'{key} {value}' for key, value in options.items())})" if options else "")


def _number(key: str, value: float) -> str:
    return percent(value) if key in ("dead", "almost_dead", "dense") else number(value)


def points(view: View, box: dict[str, Any] | None) -> str:
    """log10 frequency and log10 mean value of every living feature, packed for `map.js`."""
    index = view.index
    alive = np.flatnonzero((index.frequency > 0) & (index.mean > 0))
    if len(alive) == 0:
        raise gr.Error("no feature of this SAE fires: there is no map to draw.", print_exception=False)
    x, y = np.log10(index.frequency[alive]), np.log10(index.mean[alive].astype(float))
    fx, fy = frame(x), frame(y)
    return json.dumps(
        {
            "x": _pack(x.astype("<f4")),
            "y": _pack(y.astype("<f4")),
            "id": _pack(alive.astype("<i4")),
            "fx": fx,
            "fy": fy,
            "tx": [[tick, f"{10**tick:.0e}" if tick < -3 else f"{10**tick:g}"] for tick in log_ticks(*fx)],
            "ty": [[tick, f"{10**tick:g}"] for tick in log_ticks(*fy)],
            "box": [float(np.log10(edge)) for key in ("frequency", "mean") for edge in box[key]] if box else None,
        }
    )


def _pack(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def histograms(view: View) -> str:
    """Histograms of frequency and of mean value over the features, and how many are dead, almost dead or dense."""
    alive = view.index.frequency > 0
    charts = []
    for values, title, ends in (
        (view.index.frequency[alive], "How often features fire", percent),
        (view.index.mean[alive & (view.index.mean > 0)], "How strongly", number),
    ):
        if not len(values):
            continue
        counts, edges = np.histogram(np.log10(values.astype(float)), 48)
        charts.append(histogram(counts, title, ends(float(10 ** edges[0])), ends(float(10 ** edges[-1]))))
    frequency = view.index.frequency
    counted = (
        f"{int((frequency == 0).sum()):,} of {len(frequency):,} features never fire on the indexed images, "
        f"{int((frequency > 0.01).sum()):,} fire on more than 1 % of patches."
    )
    return f"<div class=histograms>{''.join(charts)}</div><p>{counted}</p>"


def histogram(counts: np.ndarray[Any, Any], title: str, low: str, high: str) -> str:
    """A histogram with its two ends named."""
    width, height = 360, 110
    step, top = width / len(counts), max(int(counts.max()), 1)
    bars = "".join(f"M{i * step:.1f} {height}v-{c / top * (height - 4):.1f}h{step * 0.86:.1f}V{height}z" for i, c in enumerate(counts) if c)
    return (
        f'<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {width} {height + 18}" role="img" aria-label="{title}">'
        f'<path d="{bars}"/><text x="0" y="{height + 14}">{low}</text>'
        f'<text x="{width}" y="{height + 14}" text-anchor="end">{high}</text></svg></figure>'
    )
