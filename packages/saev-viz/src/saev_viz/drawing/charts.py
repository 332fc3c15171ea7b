"""Charts as inline SVG text, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from jaxtyping import Float

POINTS = 8
"""Number of paths that the scatter's points are split into: within one path, overlapping points do not darken."""


def number(value: float, digits: int = 3) -> str:
    """A formatted number: `0.0042`, `12.3`, `1,234`, `2.1e-07`."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    size = abs(value)
    if size >= 10**digits - 0.5:  # where `g` would round up to an exponent
        return f"{value:,.0f}"
    if size < 1e-4:
        return f"{value:.1e}"
    return f"{value:.{digits}g}"


def percent(share: float) -> str:
    """A fraction as a percentage: `12 %`, `0.042 %`."""
    return f"{number(100 * share, 2)} %"


def bars(
    counts: Sequence[float] | Float[np.ndarray, " n"], *, width: int = 120, height: int = 34, label: str, mark: float | None = None
) -> str:
    """A small histogram without axes.

    Args:
        mark: position of a line, as a fraction of the width.
    """
    top = max(float(np.max(counts)), 1e-30)
    step = width / len(counts)
    # Square roots, so that the few strong values stay visible beside the many weak ones.
    tall = [math.sqrt(float(c) / top) * (height - 1) for c in counts]
    path = "".join(f"M{i * step:.1f} {height}v-{h:.1f}h{step * 0.86:.1f}v{h:.1f}z" for i, h in enumerate(tall) if h > 0)
    line = f'<path class="mark" d="M{mark * width:.1f} 0v{height}"/>' if mark is not None else ""
    return f'<svg class="bars" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}"><path d="{path}"/>{line}</svg>'


def scatter(log_freq: Float[np.ndarray, " n"], log_value: Float[np.ndarray, " n"], numbers: Sequence[int], shown: Sequence[int]) -> str:
    """log10 mean value against log10 frequency of every live feature, with histograms along the edges.

    Args:
        numbers: the features' numbers, one per point.
        shown: features of the gallery, drawn as links to `#f<number>`.
    """
    width, height, left, bottom, strip = 720, 480, 64, 52, 78
    x0, x1 = left, width - 72
    y0, y1 = strip + 12, height - bottom
    if len(numbers) == 0:
        return '<p class="note">No feature fires, so there is nothing to plot.</p>'
    fx, fy = frame(log_freq), frame(log_value)

    def px(v: Float[np.ndarray, " n"] | float) -> Float[np.ndarray, " n"]:
        return np.asarray(x0 + (np.asarray(v) - fx[0]) / (fx[1] - fx[0]) * (x1 - x0))

    def py(v: Float[np.ndarray, " n"] | float) -> Float[np.ndarray, " n"]:
        return np.asarray(y1 - (np.asarray(v) - fy[0]) / (fy[1] - fy[0]) * (y1 - y0))

    out = [
        f'<svg class="chart scatter" id="scatter" viewBox="0 0 {width} {height}" role="group" '
        'aria-label="Scatter of log10 frequency against log10 mean value of all features">'
    ]
    for tick in log_ticks(*fx):
        x = float(px(tick))
        out.append(
            f'<path class="grid" d="M{x:.1f} {y0}V{y1}"/>'
            f'<text class="tick" x="{x:.1f}" y="{y1 + 20}" text-anchor="middle">{_power(tick)}</text>'
        )
    for tick in log_ticks(*fy):
        y = float(py(tick))
        out.append(
            f'<path class="grid" d="M{x0} {y:.1f}H{x1}"/>'
            f'<text class="tick" x="{x0 - 8}" y="{y + 4:.1f}" text-anchor="end">{_power(tick)}</text>'
        )
    out.append(
        f'<text class="axis" x="{(x0 + x1) / 2}" y="{height - 8}" text-anchor="middle">fraction of patches that fire the feature</text>'
    )
    out.append('<text class="axis" x="4" y="16">mean value where it fires</text>')
    xs, ys = px(log_freq), py(log_value)
    order = np.random.default_rng(0).permutation(len(numbers))
    for part in np.array_split(order, POINTS):
        d = "".join(f"M{xs[i]:.1f} {ys[i]:.1f}h0" for i in part)
        out.append(f'<path class="points" d="{d}"/>')
    out += [_edge(xs, x0, x1, strip, length=48, horizontal=True), _edge(ys, y0, y1, x1, length=56, horizontal=False)]
    at = {feature: i for i, feature in enumerate(numbers)}
    for feature in shown:
        if feature in at:
            i = at[feature]
            title = f"Feature {feature}: fires on {percent(10 ** log_freq[i])} of patches, mean {number(10 ** log_value[i])}"
            out.append(
                f'<a href="#f{feature}" aria-label="{title}">'
                f'<circle class="shown" cx="{xs[i]:.1f}" cy="{ys[i]:.1f}" r="5"><title>{title}</title></circle></a>'
            )
    out.append('<circle id="near" r="7" cx="-20" cy="-20"/></svg>')
    data = {"id": [int(n) for n in numbers], "x": [round(float(v)) for v in xs], "y": [round(float(v)) for v in ys]}
    text = str(data).replace("'", '"').replace(" ", "")
    return "".join(out) + f'<script type="application/json" id="scatter-data">{text}</script>'


def _edge(at: Float[np.ndarray, " n"], start: float, stop: float, base: float, *, length: float, horizontal: bool) -> str:
    """A histogram along one edge of the scatter, its longest bar `length`."""
    n_bins = 48
    counts, edges = np.histogram(at, n_bins, (start, stop))
    wide = (stop - start) / n_bins * 0.86
    path = ""
    for count, edge in zip(counts / max(counts.max(), 1) * length, edges, strict=False):
        if count > 0 and horizontal:
            path += f"M{edge:.1f} {base + 6:.1f}v-{count:.1f}h{wide:.1f}V{base + 6:.1f}z"
        elif count > 0:
            path += f"M{base + 6:.1f} {edge:.1f}h{count:.1f}v{wide:.1f}H{base + 6:.1f}z"
    return f'<path class="edge" d="{path}"/>'


def lines(curves: Mapping[str, Sequence[tuple[float, float]]], title: str) -> str:
    """One metric over training steps, one line per SAE."""
    width, height, left, bottom = 360, 210, 58, 32
    points = np.array([point for curve in curves.values() for point in curve], float)
    x_max = max(points[:, 0].max(), 1)
    low, high = float(points[:, 1].min()), float(points[:, 1].max())
    log = low > 0 and high / low > 30
    values = np.log10(points[:, 1]) if log else points[:, 1]
    lo, hi = frame(values, 0.06)
    if not log and low >= 0:
        lo = max(lo, 0.0)
    y1 = height - bottom

    def place(step: float, value: float) -> str:
        v = math.log10(value) if log else value
        return f"{left + step / x_max * (width - left - 12):.1f} {y1 - (v - lo) / (hi - lo) * (y1 - 12):.1f}"

    out = [f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)} over training steps">']
    for tick in ticks(lo, hi, 4):
        y = y1 - (tick - lo) / (hi - lo) * (y1 - 12)
        text = _power(tick) if log else number(tick)
        out.append(
            f'<path class="grid" d="M{left} {y:.1f}H{width - 12}"/>'
            f'<text class="tick" x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        )
    for tick in (0, x_max):
        anchor = "start" if tick == 0 else "end"
        x = left if tick == 0 else width - 12
        out.append(f'<text class="tick" x="{x}" y="{height - 10}" text-anchor="{anchor}">{"step 0" if tick == 0 else number(tick)}</text>')
    for i, (name, curve) in enumerate(curves.items()):
        d = "M" + "L".join(place(*point) for point in curve)
        out.append(f'<path class="line line{i % 4}" d="{d}"><title>{escape(name)}</title></path>')
    return "".join(out) + "</svg>"


def frame(values: Float[np.ndarray, " n"] | Sequence[float], margin: float = 0.04) -> tuple[float, float]:
    """Axis limits that cover all values, with a margin."""
    low, high = float(np.min(values)), float(np.max(values))
    room = margin * (high - low) or max(abs(high) * 0.1, 0.5)
    return low - room, high + room


def ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Round numbers between two limits."""
    rough = (high - low) / most
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Exponents of round numbers: powers of ten, and 2 and 5 between them if there is room."""
    digits = (1,) if high - low > 2.5 else (1, 2, 5)
    exponents = range(math.floor(low), math.ceil(high) + 1)
    found = [e + math.log10(d) for e in exponents for d in digits if low <= e + math.log10(d) <= high]
    return found if len(found) > 1 else ticks(low, high, 5)


def _power(exponent: float) -> str:
    """10 to the `exponent`, formatted."""
    value = 10**exponent
    if float(exponent).is_integer() and not -3 <= exponent <= 4:
        return f'10<tspan class="sup" dy="-5">{int(exponent)}</tspan>'
    return number(value, 2)
