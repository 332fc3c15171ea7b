"""Figures of the tasks and their common style: sweep heat maps, predictions before and after an edit, the control experiment."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from saev_core import Box, Grid
from saev_core.support.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from saev_tasks.shared.control_experiment import Row

BLUE, ORANGE, AMBER, GREY, INK = "#0072b2", "#d55e00", "#e69f00", "#9ca3af", "#111827"
"""Okabe and Ito's palette, safe for colour-blind readers."""


def canvas(width: float, height: float) -> Figure:
    """An empty figure with our defaults, independent of pyplot's global state; inches at 120 dpi."""
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=120, layout="constrained")
    made.set_facecolor("white")
    return made


def save(drawn: Figure, path: Path) -> Path:
    """Write a PNG atomically."""
    png = io.BytesIO()
    drawn.savefig(png, format="png")
    replace_file(path, png.getvalue())
    return path


def plain(axes: Any, along: str = "y") -> None:
    """Remove the frame and draw a faint grid along one axis."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=along, color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def shorten(name: str, most: int = 24) -> str:
    """A class name shortened to fit beside a bar."""
    return name if len(name) <= most else name[: most - 1].rstrip() + "…"


def cropped(image: Image.Image, crop: Box, grid: Grid, scale: int = 1) -> Image.Image:
    """The part of an image that the model saw, at the model's input size."""
    return image.convert("RGB").resize((grid.width_px * scale, grid.height_px * scale), Image.Resampling.BICUBIC, box=_inside(image, crop))


def _inside(image: Image.Image, crop: Box) -> tuple[float, float, float, float]:
    return max(crop.left, 0), max(crop.top, 0), min(crop.right, image.width), min(crop.bottom, image.height)


def edits_title(edit: Mapping[int, float], mode: str, most: int = 4) -> str:
    """A description of the edits, for a title: `scale 302=0, 17=0 and 3 more`."""
    pairs = [f"{feature}" if mode == "ablate" else f"{feature}={strength:g}" for feature, strength in edit.items()]
    return f"{mode} {', '.join(pairs[:most])}" + (f" and {len(pairs) - most} more" if len(pairs) > most else "")


def sweep(rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any], what: str, label: str, path: Path) -> Path:
    """`hparam-sweeps.png`: accuracy of every setting, as a map of learning rate by weight decay, and for the logistic regression by C.

    Args:
        rows: `solver`, `lr`, `weight_decay`, `c`, and the accuracy under the name `what`, 0 to 1.
        best: the chosen row, which is framed.
        label: its name, for the colour scale.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    adamw = [row for row in rows if row["solver"] == "adamw"]
    logistic = [row for row in rows if row["solver"] == "logistic"]
    rates, decays = (sorted({row[key] for row in adamw}) for key in ("lr", "weight_decay"))
    values = [row[what] for row in rows]
    # Span at least two percentage points: smaller differences are noise and should look alike.
    high = max(values)
    low = min(*values, high - 0.02)
    widths = [max(2, len(rates)), *([1.2] if logistic else [])] if adamw else [1.6]
    tall = max(len(decays), len(logistic) if logistic else 0, 3)
    drawn = canvas(1.9 + 0.72 * sum(widths), 1.5 + 0.52 * tall)
    panes = list(np.ravel(drawn.subplots(1, len(widths), width_ratios=widths, squeeze=False)))
    image: Any = None
    if adamw:
        axes = panes.pop(0)
        at = {(row["lr"], row["weight_decay"]): row[what] for row in adamw}
        grid = np.array([[at.get((rate, decay), np.nan) for rate in rates] for decay in decays])
        spot = (rates.index(best["lr"]), decays.index(best["weight_decay"])) if best["solver"] == "adamw" else None
        image = _map(axes, grid, low, high, spot)
        axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
        axes.set_yticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        axes.set(xlabel="learning rate", ylabel="weight decay", title="AdamW")
    if logistic:
        axes = panes.pop(0)
        logistic = sorted(logistic, key=lambda row: float(row["c"]))
        spot = (0, [row["c"] for row in logistic].index(best["c"])) if best["solver"] == "logistic" else None
        image = _map(axes, np.array([[row[what]] for row in logistic]), low, high, spot)
        axes.set_xticks([])
        axes.set_yticks(range(len(logistic)), [f"{row['c']:g}" for row in logistic])
        axes.set(ylabel="C", title="logistic")
    bar = drawn.colorbar(image, ax=drawn.axes, shrink=0.9, aspect=18, pad=0.02)
    bar.set_label(label)
    bar.locator = MaxNLocator(4, steps=[1, 2, 5, 10])
    bar.formatter = FuncFormatter(lambda value, _: f"{100 * value:.4g} %")
    bar.update_ticks()
    bar.outline.set_visible(False)
    return save(drawn, path)


def _map(axes: Any, values: Float[np.ndarray, "r c"], low: float, high: float, best: tuple[int, int] | None) -> Any:
    from matplotlib.patches import Rectangle

    image = axes.imshow(values, cmap="cividis", vmin=low, vmax=high, origin="lower", aspect="auto")
    for (row, col), value in np.ndenumerate(values):
        if np.isfinite(value):
            dark = (value - low) / max(high - low, 1e-9) < 0.55
            axes.text(col, row, f"{100 * value:.1f}", ha="center", va="center", fontsize=8.5, color="white" if dark else INK)
    if best is not None:
        axes.add_patch(Rectangle((best[0] - 0.46, best[1] - 0.46), 0.92, 0.92, fill=False, edgecolor=ORANGE, linewidth=2.4, zorder=5))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return image


def before_after(
    picture: Image.Image,
    names: Sequence[str],
    before: Float[np.ndarray, " n"],
    after: Float[np.ndarray, " n"],
    title: str,
    path: Path,
    *,
    truth: str = "",
    marked: Sequence[tuple[float, float, float, float]] = (),
) -> Path:
    """An image, with bars for the probabilities of some classes before and after an edit.

    Args:
        truth: name of the image's class; printed bold.
        marked: boxes (left, top, right, bottom) in the image's pixels: the edited patches.
    """
    from matplotlib.patches import Rectangle

    drawn = canvas(8.2, max(3.4, 1.3 + 0.46 * len(names)))
    left, right = drawn.subplots(1, 2, width_ratios=(1, 1.55))
    left.imshow(picture)
    for box in marked:
        left.add_patch(Rectangle(box[:2], box[2] - box[0], box[3] - box[1], fill=False, edgecolor=ORANGE, linewidth=1.2))
    left.set_axis_off()
    place = np.arange(len(names))
    for offset, label, colour, values in ((-0.2, "before", GREY, before), (0.2, "after", BLUE, after)):
        right.barh(place + offset, values, 0.38, color=colour, label=label)
        for y, value in zip(place + offset, values, strict=True):
            right.text(value + 0.012, y, f"{100 * value:.0f} %" if value >= 0.005 else "< 0.5 %", va="center", fontsize=8, color=INK)
    right.set_yticks(place, [shorten(name) for name in names])
    for tick, name in zip(right.get_yticklabels(), names, strict=True):
        tick.set_fontweight("bold" if name == truth else "normal")
    right.invert_yaxis()
    right.set(xlim=(0, 1.14), xlabel="probability")
    right.set_xticks([0, 0.25, 0.5, 0.75, 1])
    plain(right, "x")
    right.legend(frameon=False, loc="lower right")
    drawn.suptitle(title, fontsize=11)
    return save(drawn, path)


def control_bars(rows: Sequence[Row[Any]], flipped: str, lost: str, path: Path) -> Path:
    """The control experiment: for each class, what is flipped and what the others lose, with both baselines.

    Args:
        flipped: label of the upper axis, in per cent.
        lost: label of the lower.
    """
    series = (
        ("proposed features", BLUE, "suppressed"),
        ("random features", AMBER, "random_features"),
        ("random direction", GREY, "random_direction"),
    )
    drawn = canvas(min(24.0, max(6.0, 1.6 + 0.62 * len(rows))), 5.6)
    top, below = drawn.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    place = np.arange(len(rows))
    for i, (label, colour, name) in enumerate(series):
        out = [getattr(row, name) for row in rows]
        for axes, what in ((top, "flipped"), (below, "others_lost")):
            value = 100 * np.nan_to_num([getattr(one, what) for one in out])
            ends = 100 * np.nan_to_num([getattr(one, f"{what}_interval") for one in out]).reshape(-1, 2)
            reach = np.maximum(np.stack([value - ends[:, 0], ends[:, 1] - value]), 0)
            axes.bar(place + 0.27 * (i - 1), value, 0.25, color=colour, label=label)
            axes.errorbar(place + 0.27 * (i - 1), value, yerr=reach, fmt="none", ecolor=INK, elinewidth=0.9, capsize=1.8)
    for axes, line in ((top, 80), (below, 5)):
        axes.axhline(line, color=ORANGE, linestyle="--", linewidth=1.1)
        plain(axes)
    top.set(ylabel=flipped, ylim=(0, 108))
    below.set(ylabel=lost)
    below.set_ylim(0, max(6.5, below.get_ylim()[1]))
    many = len(rows) > 6
    below.set_xticks(place, [shorten(row.name) for row in rows], rotation=35 if many else 0, ha="right" if many else "center")
    drawn.legend(*top.get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False)
    return save(drawn, path)
