"""Training facts and metrics, all SAEs of a sweep, and feature distributions, as HTML. Does not import gradio."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Int

from saev_core.sae.checkpoint_card import CheckpointCard
from saev_viz.drawing.charts import frame, log_ticks, number, percent
from saev_viz.html.pareto import chart
from saev_viz.run_view.library import View

BINS = 48
"""Bars of a histogram."""
METRICS = (
    (
        "nmse",
        "Reconstruction error (NMSE)",
        "Fraction of the activations' variance that the SAE does not reconstruct, on held-out images. "
        "0: perfect; 1: no better than predicting the mean.",
    ),
    ("l0", "Active features (L0)", "Mean number of active features per patch, on held-out images."),
    ("dead", "Dead", "Fraction of features that never fire on those images."),
    (
        "almost_dead",
        "Almost dead",
        "Fraction of features that fire there, but on fewer than one patch in {almost_dead}.",
    ),
    ("dense", "Dense", "Fraction of features that fire there on more than {dense} of all patches; they rarely have a single meaning."),
)
"""Key in the evaluation card, title and explanation."""
COLUMNS = {"l0": "L0", "nmse": "NMSE", "dead": "Dead", "almost_dead": "Almost dead", "dense": "Dense"}
"""Columns of the sweep table."""


def trained(view: View) -> str:
    """Model, data, training facts and evaluation card of the SAE."""
    run, saved = view.library.run, view.saved
    rows = [
        ("Model", _named(saved.store.get("model", run.config.model.model_dump(mode="json"))), "The vision model under analysis."),
        ("Pictures", _named(saved.store.get("dataset", run.config.dataset.model_dump(mode="json"))), "The data set it was run on."),
        (
            "Site",
            f"{saved.site}, {saved.read.tokens}",
            "Block (counted from 0) and stream, and which tokens were read.",
        ),
        ("SAE", f"{saved.ref['name']}, {view.index.d_sae:,} features", "SAE variant and number of features."),
        (
            "Trained on",
            _training(saved.train),
            "Training vectors (one per patch), learning rate and random seed.",
        ),
        (
            "Indexed",
            f"{view.index.n_images:,} images, {view.index.n_vectors:,} vectors",
            "Source of every feature's numbers and top pictures.",
        ),
    ]
    facts = "".join(f'<div title="{escape(why)}"><dt>{key}</dt><dd>{escape(value)}</dd></div>' for key, value, why in rows)
    return f"<dl class=facts>{facts}</dl>{_metrics(view)}"


def _training(train: Mapping[str, Any]) -> str:
    if "consensus" in train:
        return "not trained: consensus of the features that several seeds agree on"
    parts = [f"{train['n_vectors']:,} vectors"] if "n_vectors" in train else []
    parts += [f"learning rate {train['lr']:g}"] if train.get("lr") is not None else []
    parts += [f"seed {train['seed']}"] if train.get("seed") is not None else []
    return ", ".join(parts) or "unknown"


def _named(ref: Mapping[str, Any]) -> str:
    options = {key: value for key, value in ref.get("options", {}).items() if value not in ("", None, True)}
    return str(ref.get("name", "")) + (f" ({', '.join(f'{key} {value}' for key, value in options.items())})" if options else "")


def _metrics(view: View) -> str:
    card = view.card
    if not card:
        return f'<p class="hint">Not evaluated yet; run saev evaluate {escape(str(view.library.run.path))}</p>'
    bounds = card.get("thresholds", {})
    rare = bounds.get("almost_dead", 1e-7)
    said = {"almost_dead": f"{1 / rare:,.0f}" if rare else "any number", "dense": percent(bounds.get("dense", 0.01))}
    tiles = "".join(
        f'<div title="{escape(why.format(**said))}" tabindex="0"><dt>{title}</dt><dd>{_number(key, card)}</dd></div>'
        for key, title, why in METRICS
        if key in card
    )
    return f"<dl class=tiles>{tiles}</dl>"


def _number(key: str, card: Mapping[str, Any]) -> str:
    if key not in card:
        return "–"
    if key in ("dead", "almost_dead", "dense"):
        count = f" <small>{card[f'n_{key}']:,} of {card['d_sae']:,}</small>" if f"n_{key}" in card and "d_sae" in card else ""
        return percent(card[key]) + count
    return number(card[key])


def sweep(view: View) -> str:
    """All SAEs of the run as a plot of error against L0 and as a table, sparsest first; empty if there is only one."""
    library = view.library
    run, names = library.run, library.run.sae_names
    if len(names) < 2:
        return ""
    ranked = run.result("pareto")
    points = {point["name"]: point for point in ranked.get("points", ())}
    charts = f'<p class="hint">Not compared yet; run saev evaluate {escape(str(run.path))}</p>'
    if len(points) > 1:
        wide, small = chart(ranked, 900, 460).svg("broad"), chart(ranked, 380, 400, by_number=True).svg("narrow")
        mark = f'data-sae="{escape(view.name)}"'
        charts = f'<div class="pareto">{wide + small}</div>'.replace(mark, f"{mark} data-on")
    cards = {name: CheckpointCard.load(run.sae_dir(name)).card for name in names}
    order = sorted(names, key=lambda name: (cards[name].get("l0", math.inf), cards[name].get("nmse", math.inf), name))
    heads = "".join(f"<th>{head}</th>" for head in (*COLUMNS.values(), "Features", "Learning rate", "Seed"))
    rows = "".join(_row(i, view, name, cards[name], points.get(name, {})) for i, name in enumerate(order, 1))
    n_missing = len(names) - len(library.own)
    how = ""
    if n_missing:
        how = (
            f" {n_missing} of them (grey in the table) have no feature index yet, so their features cannot be shown; build one with "
            f"<code>saev index {escape(str(run.path))} --only NAME</code> and restart the viewer."
        )
    return (
        f"<h3>The {len(names)} SAEs of this run</h3><p class=hint>Each point is one SAE: further left is sparser (fewer features per "
        "patch), further down is a lower reconstruction error. The line is the Pareto front. Click a "
        f"point, or a name in the table, to open that SAE.{how}</p>{charts}"
        f'<div class="cards" tabindex="0" role="region" aria-label="All SAEs of this run"><table><thead><tr><th>#</th><th>SAE</th>{heads}'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(i: int, view: View, name: str, card: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    indexed = name in view.library.own
    mark = "best" if point.get("best") else "front" if point.get("on_front") else ""
    why = {"best": "lowest error within the L0 limit", "front": "on the Pareto front (L0, NMSE)"}.get(mark, "")
    badge = f' <span class="badge" title="{why}">{mark}</span>' if mark else ""
    lr, seed = point.get("lr"), point.get("seed")
    d_sae = card.get("d_sae", point.get("d_sae"))
    cells = [_number(key, {key: card[key]} if key in card else {}) for key in COLUMNS]
    cells += [f"{d_sae:,}" if d_sae else "–", "–" if lr is None else number(lr), "–" if seed is None else str(seed)]
    classes = " ".join(kind for kind, so in (("on", name == view.name), ("bare", not indexed)) if so)
    current = ' aria-current="true"' if name == view.name else ""
    return (
        f'<tr class="{classes}"{current}><td>{i}</td><th scope="row"><button data-sae="{escape(name)}">{escape(name)}</button>{badge}</th>'
        f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    )


def points(view: View, box: Mapping[str, Sequence[float]] | None) -> str:
    """log10 frequency and log10 mean value of every live feature, packed for `map.js`; empty if there is none."""
    index = view.index
    alive = np.flatnonzero((index.frequency > 0) & (index.mean > 0))
    if len(alive) == 0:
        return ""
    x, y = np.log10(index.frequency[alive]), np.log10(index.mean[alive].astype(float))
    fx, fy = frame(x), frame(y)
    return json.dumps(
        {
            "x": _pack(x.astype("<f4")),
            "y": _pack(y.astype("<f4")),
            "id": _pack(alive.astype("<i4")),
            "fx": fx,
            "fy": fy,
            "tx": [[tick, percent(10**tick)] for tick in log_ticks(*fx)],
            "ty": [[tick, number(10**tick)] for tick in log_ticks(*fy)],
            "box": box,
        }
    )


def _pack(array: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(array.tobytes()).decode()


def spread(view: View) -> str:
    """Histograms over features and images, and the number of dead, almost dead and dense features."""
    index = view.index
    alive = index.frequency > 0
    charts = []
    for values, title, ends, what in (
        (
            index.frequency[alive],
            "Feature frequency",
            percent,
            "fraction of patches (log scale), over features",
        ),
        (index.mean[alive & (index.mean > 0)], "Feature strength", number, "mean value where it fires (log scale)"),
    ):
        if len(values):
            logs = np.log10(values.astype(float))
            counts, edges = np.histogram(logs, BINS, None if np.ptp(logs) > 1e-6 else (logs[0] - 0.5, logs[0] + 0.5))
            middle = float(np.median(logs))
            share = (middle - edges[0]) / (edges[-1] - edges[0])
            told = f"half of the features above {ends(10**middle)}"
            charts.append(histogram(counts, title, ends(float(10 ** edges[0])), ends(float(10 ** edges[-1])), what, told, share))
    charts += [
        active(index.patch_active, "Features active on a patch (L0)", "patch", "patches"),
        active(index.image_active, "Different features on an image (L0 per image)", "image", "images"),
    ]
    return f"<h3>Feature distributions</h3><div class=histograms>{''.join(charts)}</div>{_counted(view)}"


def active(counts: Int[np.ndarray, " n"], title: str, one: str, many: str) -> str:
    """Histogram of the number of simultaneously active features; a sentence if it is constant."""
    total, numbers = int(counts.sum()), np.arange(len(counts))
    found = np.flatnonzero(counts)
    if total == 0:
        return ""
    mean, middle = float((counts * numbers).sum() / total), int(np.searchsorted(np.cumsum(counts), total / 2))
    if len(found) == 1:
        return f"<figure><figcaption>{title}</figcaption><p>Exactly {found[0]:,} on every {one}, fixed by this SAE variant.</p></figure>"
    low, high = int(found[0]), int(found[-1])
    wide = max(1, -(-(high - low + 1) // BINS))
    shown = np.bincount((found - low) // wide, weights=counts[found], minlength=-(-(high - low + 1) // wide))
    told = f"mean {number(mean)}, half of the {many} at most {middle:,}"
    share = (middle - low + 0.5) / (len(shown) * wide)
    return histogram(
        shown, title, f"{low:,}", f"{low + len(shown) * wide - 1:,}", f"number of features, over {total:,} {many}", told, share
    )


def _counted(view: View) -> str:
    frequency = view.index.frequency
    bounds = view.card.get("thresholds", {})
    rare, dense = float(bounds.get("almost_dead", 1e-7)), float(bounds.get("dense", 0.01))
    dead, almost, often = frequency == 0, (frequency > 0) & (frequency < rare), frequency > dense
    return (
        f"<p>Over all {view.index.n_images:,} indexed images, of {len(frequency):,} features <b>{int(dead.sum()):,}</b> never fire (dead), "
        f"<b>{int(almost.sum()):,}</b> fire on fewer than one patch in {1 / rare if rare else math.inf:,.0f} (almost dead), and "
        f"<b>{int(often.sum()):,}</b> fire on more than {percent(dense)} of patches (dense).</p>"
    )


def histogram(counts: np.ndarray[Any, Any], title: str, low: str, high: str, what: str, told: str, mark: float) -> str:
    """A histogram with labelled ends and a line at the median.

    Args:
        what: axis label.
        told: meaning of the line.
        mark: position of the line, as a fraction of the width.
    """
    width, height = 360, 110
    step, top = width / len(counts), max(float(counts.max()), 1)
    bars = "".join(
        f"M{i * step:.1f} {height}v-{max(c / top * (height - 4), 0.8):.1f}h{step * 0.86:.1f}V{height}z" for i, c in enumerate(counts) if c
    )
    return (
        f'<figure><figcaption>{title}</figcaption><svg viewBox="0 0 {width} {height + 34}" role="img" aria-label="{title}: from {low} to '
        f'{high}, {told}"><path d="{bars}"/><path class="axis" d="M0 {height}H{width}"/>'
        f'<path class="mark" d="M{mark * width:.1f} 0V{height}"/>'
        f'<text x="0" y="{height + 14}">{low}</text><text x="{width}" y="{height + 14}" text-anchor="end">{high}</text>'
        f'<text x="{width / 2}" y="{height + 30}" text-anchor="middle">{what}</text></svg><p class="hint">Line: {told}.</p></figure>'
    )
