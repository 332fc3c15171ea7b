"""One feature as HTML: its numbers, its pictures from strongest to weakest, and related features. Does not import gradio."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from saev_core.errors import RunError
from saev_core.features.index import Sample, TopImage
from saev_viz.drawing.charts import number, percent
from saev_viz.drawing.heat_maps import COLOUR_MAPS, map_pixels
from saev_viz.run_view.addresses import map_url
from saev_viz.run_view.choose_features import relative
from saev_viz.run_view.library import View

TENTHS = 10
"""Rows of samples, from the strongest to the weakest."""
SHARES = ("frequency", "image_frequency", "purity")
"""Columns shown in percent."""
FEW = 12
"""Minimum number of firing pictures for a statement about position."""


def shown(column: str, value: float) -> str:
    """A column's value, formatted; a dash if there is none."""
    if not math.isfinite(value):
        return "–"
    if column in SHARES:
        return percent(value)
    return f"{number(value)} ×" if column == "lift" else number(value)


def missing(view: View, feature: int) -> str:
    """Why there is no such feature; empty if there is."""
    if 0 <= feature < view.index.d_sae:
        return ""
    return f"There is no feature {feature}: {view.name} has features 0 to {view.index.d_sae - 1}. Search, or press r for a random one."


def head(view: View, feature: int) -> str:
    """The feature's name and numbers, each with an explanatory tooltip."""
    if why := missing(view, feature):
        return f'<p class="empty">{escape(why)}</p>'
    table = view.table
    told = []
    if table.names[feature]:
        score = table.scores.get(feature, math.nan)
        told.append(f'proposed name <b title="{escape(table.columns["name_score"].help)}">score {score:.2f}</b>')
    for what, f1 in table.truth.get(feature, ())[:3]:
        told.append(
            f'detects <b>{escape(what)}</b> <span title="F1 of the feature as a classifier for this, on held-out pictures; 1 is perfect">'
            f"(F1 {f1:.2f})</span>"
        )
    if not table.names[feature] and feature not in table.truth and (label := table.label(int(table.common[feature]))):
        told.append(f"at least half of its top pictures are labelled <b>{escape(label)}</b>")
    facts = "".join(
        f'<div title="{escape(column.help)}" tabindex="0"><dt>{escape(column.title)}</dt><dd>{shown(key, column.at(feature))}</dd></div>'
        for key, column in table.columns.items()
        if key != "name_score"
    )
    name = escape(table.names[feature]) or '<i title="No name scored high enough, or none were proposed.">unnamed</i>'
    address = f"?sae={quote(view.key)}&amp;feature={feature}"
    return (
        f'<div class="title"><h2>Feature {feature} <span>{name}</span></h2>'
        f'<button class="small" data-copy="{address}">Copy link</button></div>'
        f'<p class="told">{" · ".join(told)}</p><dl class="numbers">{facts}</dl>'
    )


def page(view: View, feature: int, colours: str = "inferno", end: str = "percentile") -> str:
    """Everything below the numbers.

    Args:
        colours: colour map of the heat maps.
        end: the value at which their colour is full, `percentile` or `max`.
    """
    if missing(view, feature):
        return ""
    if not view.table.alive[feature]:
        return (
            '<p class="empty">This feature never fires on the indexed pictures, so only its nearest features are shown. '
            "Press n for the next live feature.</p>" + f'<div class="cards">{_nearest(view, feature)}</div>'
        )
    samples = view.index.samples(feature)
    note = f'<p class="empty">{escape(view.library.no_pictures)}</p>' if view.library.no_pictures else ""
    cards = (_values(view, feature), _labels(view, feature), _place(view, feature), _together(view, feature), _nearest(view, feature))
    below = f"<div class=cards>{''.join(cards)}</div>{_tenths(view, feature, samples, colours, end)}"
    return f"{note}{strongest(view, feature, colours, end)}{below}"


def strongest(view: View, feature: int, colours: str = "inferno", end: str = "percentile", n: int | None = None) -> str:
    """The feature's top pictures with their heat maps."""
    upper = view.upper(feature, end)
    top = view.index.top(feature, n)
    if not top:
        return '<p class="empty">This feature never fires on the indexed pictures.</p>'
    what = (
        f"Bright where the feature fires; full colour at {number(upper)}."
        if view.index.grid.n_patches > 1
        else "This SAE reads one vector for a whole picture, so there are no heat maps."
    )
    pictures = "".join(_top(view, found, upper, colours) for found in top)
    return (
        f"<h3>Top pictures</h3><p class=hint>Strongest first. {what} Click a picture to open it in the Image tab.</p>"
        f"<div class=shots>{pictures}</div>"
    )


def _top(view: View, top: TopImage, upper: float, colours: str) -> str:
    heat = ""
    if view.index.grid.n_patches > 1:
        pixels = map_pixels(view.index.grid.to_map(top.map.astype(float)), upper=upper, opacity=1, colour_map=colours)
        heat = f'<img class="heat" src="{uri(pixels)}" style="{_box(view, top.index)}" alt="">'
    return _shot(view, top.index, heat, number(top.value))


def _shot(view: View, index: int, over: str, value: str, *, px: int = 224, more: str = "", data: str = "") -> str:
    """One picture with its overlay and caption; clicking it opens it in the Image tab."""
    width, height = (max(int(side), 1) for side in view.library.sizes[index])
    label = view.library.label(index)
    says = f"picture {index}" + (f", {label}" if label else "")
    there = view.library.dataset is not None
    image = (
        f'<img src="{escape(view.library.src(index, px))}" loading="lazy" alt="{escape(says)}">'
        if there
        else f"<span>{escape(says)}</span>"
    )
    return (
        f'<figure{data}><button class="frame" data-picture="{index}" style="--r:{width / height:.3f}" title="{escape(says)}">{image}{over}'
        f"</button><figcaption><span>{escape(label) or f'picture {index}'}</span><b>{value}</b></figcaption>{more}</figure>"
    )


def _box(view: View, index: int, token: int | None = None) -> str:
    """CSS position of the model's crop, or of one patch of it, on the picture."""
    width, height = (max(int(side), 1) for side in view.library.sizes[index])
    left, top, wide, high = relative(view.library.crop(index), (width, height))
    if token is not None:
        grid = view.index.grid
        row, col = divmod(token, grid.cols)
        wide, high = wide / grid.cols, high / grid.rows
        left, top = left + col * wide, top + row * high
    return f"left:{left:.2f}%;top:{top:.2f}%;width:{wide:.2f}%;height:{high:.2f}%"


def _tenths(view: View, feature: int, samples: Sequence[Sample], colours: str, end: str) -> str:
    """Samples of all strengths, one row per decile; heat maps are loaded on demand."""
    title = "<h3>Samples from strongest to weakest</h3>"
    if not samples:
        return f'{title}<p class="empty">The index has no samples: set index.n_samples to 40 and rebuild it to see weaker pictures too.</p>'
    patches = view.index.grid.n_patches > 1
    n_rows = min(TENTHS, len(samples))
    rows = []
    for part in reversed(range(n_rows)):
        some = samples[part * len(samples) // n_rows : (part + 1) * len(samples) // n_rows]
        low, high = f"{100 * part // n_rows}", f"{100 * (part + 1) // n_rows}"
        span = number(some[0].value) if some[0].value == some[-1].value else f"{number(some[0].value)} to {number(some[-1].value)}"
        shots = "".join(_sample(view, feature, sample, colours, end, patches) for sample in reversed(some))
        rows.append(f'<div class="tenth"><p><b>{low}–{high} %</b><span>{span}</span></p><div class="shots">{shots}</div></div>')
    n_firing = round(float(view.index.image_frequency[feature]) * view.index.n_images)
    drawn = "all of them" if len(samples) >= n_firing else f"{len(samples)} of them, sampled at random"
    mark = " The square marks the patch with the largest value." if patches else ""
    button = '<button class="small" data-heats aria-pressed="false">Show heat maps</button>' if patches else ""
    return (
        f'{title}<p class="hint">{n_firing:,} pictures fire this feature; shown are {drawn}, in rows of equal size from strongest '
        f"to weakest, to show what its weak values mean.{mark} {button}</p><div class=tenths>{''.join(rows)}</div>"
    )


def _sample(view: View, feature: int, sample: Sample, colours: str, end: str, patches: bool) -> str:
    over = ""
    if patches:
        source = f"{map_url(view.key, feature, sample.index)}?colours={colours}&amp;end={end}"
        over = (
            f'<img class="heat" data-src="{source}" style="{_box(view, sample.index)}" alt="" hidden>'
            f'<i class="patch" style="{_box(view, sample.index, sample.token)}"></i>'
        )
    beside = "".join(f"<button data-feature={other} title='{_says(view, other)}'>{other}</button>" for other in sample.coactive[:3])
    more = f'<p class="beside" title="The strongest other features on this patch">with {beside}</p>' if beside else ""
    return _shot(view, sample.index, over, number(sample.value), px=160, more=more)


def heat(view: View, feature: int, index: int, colours: str, end: str) -> bytes:
    """The heat map of any picture as a PNG file, one pixel per patch; encodes the picture's vectors.

    Raises:
        RunError: there is no such feature, picture or colour map.
    """
    if why := missing(view, feature):
        raise RunError(why)
    if colours not in COLOUR_MAPS:
        raise RunError(f"unknown colour map {colours!r}; choose one of {', '.join(COLOUR_MAPS)}.")
    return png(map_pixels(view.seen(index).map(feature), upper=view.upper(feature, end), opacity=1, colour_map=colours))


def _says(view: View, feature: int) -> str:
    name = view.table.title(feature)
    return escape(f"feature {feature}" + (f", {name}" if name else ""))


def _values(view: View, feature: int) -> str:
    level = float(view.index.attributes["percentile"])
    mark = float(view.index.percentile(level)[feature])
    chart = value_chart(view.index.values(feature), view.index.histogram_edges, mark, f"{level:g}th percentile: {number(mark)}")
    return _card(
        "Activation values",
        f"{chart}<p class=hint>Number of patches by feature value; bar heights are square roots, so that rare strong values stay "
        "visible.</p>",
    )


def value_chart(counts: Int[np.ndarray, " n_bins"], edges: Float[np.ndarray, " n_bins_plus_1"], mark: float, says: str) -> str:
    """A histogram over bins that widen with the value, with an axis and one marked value."""
    used = np.flatnonzero(counts)
    if len(used) == 0:
        return ""
    first, last = int(used[0]), int(used[-1]) + 1
    width, height, bottom, top = 420, 150, 20, 20
    step = width / (last - first)
    tall = np.sqrt(counts[first:last] / counts.max()) * (height - bottom - top)
    base = height - bottom
    bars = "".join(f"M{i * step:.1f} {base}v-{h:.1f}h{step * 0.9:.1f}V{base}z" for i, h in enumerate(tall) if h > 0)
    bins = range(first, last + 1)
    ticks = [i for i in bins if math.frexp(float(edges[i]))[0] == 0.5] or [first, last]  # powers of two
    ticks = ticks[:: max(1, -(-len(ticks) // 6))]
    places = [(min(max((i - first) * step, 10), width - 12), number(float(edges[i]))) for i in ticks]
    axis = "".join(f'<text x="{x:.1f}" y="{height - 4}" text-anchor="middle">{text}</text>' for x, text in places)
    at = float(np.interp(mark, edges[first : last + 1], np.arange(last - first + 1))) * step
    anchor = "end" if at > width / 2 else "start"
    return (
        f'<svg class="values" viewBox="0 0 {width} {height}" role="img" aria-label="Histogram of the values; {escape(says)}">'
        f'<path d="{bars}"/><path class="axis" d="M0 {base}H{width}"/><path class="mark" d="M{at:.1f} 16V{base}"/>'
        f'<text class="mark" x="{at:.1f}" y="12" text-anchor="{anchor}">{escape(says)}</text>{axis}</svg>'
    )


def _place(view: View, feature: int) -> str:
    grid = view.index.grid
    if grid.n_patches == 1:
        return ""
    place = view.index.place(feature).astype(float)
    n_firing = round(float(view.index.image_frequency[feature]) * view.index.n_images)
    pixels = map_pixels(place, upper=float(place.max()), opacity=1)
    return _card(
        "Position in the picture",
        f'<div class="place"><img src="{uri(pixels)}" style="--r:{grid.cols / grid.rows:.3f}" '
        f'alt="Map of the positions where it fires"><p>{escape(where(place, n_firing))}</p></div>',
    )


def where(place: Float[np.ndarray, "rows cols"], n_images: int) -> str:
    """Describe a mean map: tied to one position, the border, the centre, or none.

    Args:
        place: each position's share of the feature's summed value.
        n_images: number of pictures that fire it; too few allow no statement.
    """
    if n_images < FEW:
        return f"Only {n_images} pictures fire it: too few to tell whether position matters."
    share = place.reshape(-1)
    share = share / max(share.sum(), 1e-30)
    # Effective number of positions: the exponential of the entropy.
    effective = float(np.exp(-(share * np.log(np.maximum(share, 1e-30))).sum()))
    rows, cols = place.shape
    if effective < 0.12 * min(len(share), n_images):
        row, col = divmod(int(share.argmax()), cols)
        return (
            f"Nearly always at the same position, around row {row + 1} of {rows}, column {col + 1} of {cols}: "
            "it may encode position rather than content."
        )
    ring = np.ones((rows, cols), bool)
    ring[1:-1, 1:-1] = False
    if 0 < ring.sum() < ring.size:
        of_ring, chance = float(share[ring.reshape(-1)].sum()), float(ring.mean())
        told = f"{percent(of_ring)} of its strength is on the outermost patches, which are {percent(chance)} of all"
        if of_ring > min(2 * chance, (1 + chance) / 2):
            return f"Mostly along the border: {told}. It may encode the picture's edge rather than content."
        if of_ring < chance / 4:
            return f"Away from the border: {told}."
    return "All over the picture: where it fires depends on content."


def _labels(view: View, feature: int) -> str:
    found = view.index.labels(feature, 8)
    if not found:
        return _card("Labels", '<p class="hint">This data set has no labels.</p>') if not view.index.has_labels else ""
    commonest = view.index.labels(feature, 1, by="count")
    rows = "".join(
        f"<tr><th>{escape(view.table.label(one.label))}</th><td class=bar><i style='width:{100 * one.share:.0f}%'></i>"
        f"<span>{percent(one.share)}</span></td><td>{one.n_images:,}</td><td>{number(one.lift, 2)} ×</td></tr>"
        for one in found + [one for one in commonest if one not in found]
    )
    return _card(
        "Labels of the pictures that fire it",
        "<table class=labels><thead><tr><th>label</th><th title='Fraction of the pictures that fire the feature with this label'>share</th>"
        "<th title='Pictures with this label that fire the feature'>pictures</th>"
        "<th title='How many times more often than by chance'>lift</th></tr></thead>"
        f"<tbody>{rows}</tbody></table><p class=hint>Lift: how many times more often than by chance. Near 1: uninformative.</p>",
    )


def _together(view: View, feature: int) -> str:
    found = [(other, percent(share)) for other, share in view.index.together(feature) if other != feature]
    why = "Fraction of its sampled patches on which each is among the strongest features; the most surprising ones come first."
    return _card(
        "Fires together with", _features(view, found, "No other feature fires with it more than once.") + f"<p class=hint>{why}</p>"
    )


def _nearest(view: View, feature: int) -> str:
    found = [(other, f"{cosine:.2f}") for other, cosine in view.nearest(feature)]
    why = "Cosine similarity of decoder directions: 1 is the same direction, 0 unrelated."
    return _card("Nearest features", _features(view, found, "No other feature is live.") + f"<p class=hint>{why}</p>")


def _features(view: View, found: Sequence[tuple[int, str]], none: str) -> str:
    if not found:
        return f"<p>{none}</p>"
    return f"<div class=list>{''.join(line(view, other, said) for other, said in found)}</div>"


def line(view: View, feature: int, said: str) -> str:
    """A feature in a list: its top picture, number, name and a remark; clicking it opens it."""
    top = int(view.index.top_index[feature, 0])
    there = top >= 0 and view.library.dataset is not None
    image = f'<img src="{escape(view.library.src(top, 96))}" loading="lazy" alt="" width="40" height="40">' if there else "<i></i>"
    return f"<button data-feature={feature}>{image}<b>{feature}</b><em>{escape(view.table.title(feature))}</em><span>{said}</span></button>"


def _card(title: str, inside: str) -> str:
    return f'<section class="card"><h3>{title}</h3>{inside}</section>'


def uri(pixels: np.ndarray[Any, Any]) -> str:
    """RGBA pixels as a PNG data URI."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """RGBA pixels as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
