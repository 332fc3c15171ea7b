"""Figures of the segmentation task, as PNG files written atomically."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from saev_tasks.shared.figures import AMBER, BLUE, ORANGE, canvas, plain, save
from saev_tasks.shared.patch_vectors import Classes

if TYPE_CHECKING:
    from matplotlib.figure import Figure


GREEN, PINK, SKY = "#009e73", "#cc79a7", "#56b4e9"
GREY, NOTHING = "#6b7280", (255, 255, 255)
_PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
_COLOURS = (BLUE, ORANGE, GREEN, AMBER, PINK, SKY)
_MOST_BARS = 60
"""Maximum number of classes in the bar plot; the CSV has the rest."""
_MOST_NAMED = 14
"""Maximum number of classes in a panel's legend."""


def palette(n: int) -> UInt8[np.ndarray, "n 3"]:
    """A colour per class: light grey for the first (mostly background), then our palette, then hues a golden angle apart."""
    fixed = ["#d4d4d8", BLUE, ORANGE, GREEN, AMBER, PINK, SKY, "#7f3fbf", "#8c564b", "#1b1b1b", "#bcbd22"]
    rows = [tuple(int(code[i : i + 2], 16) for i in (1, 3, 5)) for code in fixed[:n]]
    for i in range(len(rows), n):
        # Alternate lightness and saturation: consecutive classes differ in hue, lightness and saturation.
        r, g, b = colorsys.hls_to_rgb(i * 0.6180339887 % 1, (0.35, 0.55, 0.7)[i % 3], (0.9, 0.6)[i % 2])
        rows.append((int(255 * r), int(255 * g), int(255 * b)))
    return np.array(rows, np.uint8).reshape(-1, 3)


def paint(labels: Int[np.ndarray, "h w"], classes: Classes) -> UInt8[np.ndarray, "h w 3"]:
    """Class numbers as colours; white where there is no class."""
    table = np.concatenate([palette(len(classes)), np.array([NOTHING], np.uint8)])
    return np.asarray(table[np.minimum(labels, len(classes))])


def sweep(rows: Sequence[dict[str, float]], best: dict[str, float], path: Path) -> Path:
    """`hparam-sweeps.png`: mean IoU and pixel accuracy over the learning rate, one line per weight decay."""
    drawn = canvas(8.4, 3.4)
    for axes, what, title in zip(drawn.subplots(1, 2), ("miou", "accuracy"), ("mean IoU", "pixel accuracy"), strict=True):
        for i, decay in enumerate(sorted({row["weight_decay"] for row in rows})):
            mine = sorted((row["lr"], row[what]) for row in rows if row["weight_decay"] == decay)
            axes.plot(*zip(*mine, strict=True), marker="o", markersize=5, linewidth=1.8, color=_COLOURS[i % 6], label=f"{decay:g}")
        axes.scatter([best["lr"]], [best[what]], s=150, facecolors="none", edgecolors="#111827", linewidths=1.4, zorder=5)
        axes.set_xscale("log")
        rates = sorted({row["lr"] for row in rows})
        axes.set_xticks(rates, [f"{rate:g}" for rate in rates])
        axes.minorticks_off()
        # Span at least two percentage points: smaller differences are noise and should look alike.
        low, high = axes.get_ylim()
        spare = max(0.0, 0.02 - (high - low)) / 2
        axes.set_ylim(low - spare, high + spare)
        axes.set(xlabel="learning rate", title=title)
        plain(axes)
    axes.legend(title="weight decay", frameon=False)
    return save(drawn, path)


def class_bars(iou: Float[np.ndarray, " n"], low_high: Float[np.ndarray, "n 2"] | None, classes: Classes, mean: float, path: Path) -> Path:
    """IoU of each class, best first, with the mean; only the best and worst if there are many classes."""
    order = [int(i) for i in np.argsort(-np.nan_to_num(iou, nan=-1), kind="stable") if np.isfinite(iou[i])]
    left_out = max(0, len(order) - _MOST_BARS)
    if left_out:
        order = order[: _MOST_BARS // 2] + order[-(_MOST_BARS // 2) :]
    drawn = canvas(6.4, 1.3 + 0.26 * len(order))
    axes = drawn.subplots()
    place = np.arange(len(order))
    axes.barh(place, iou[order], color=[f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette(len(classes))[order]], height=0.72)
    if low_high is not None:
        reach = np.abs(low_high[order] - iou[order, None]).T
        axes.errorbar(iou[order], place, xerr=reach, fmt="none", ecolor="#374151", elinewidth=1.2, capsize=2.5)
    for y, i in zip(place, order, strict=True):
        edge = low_high[i, 1] if low_high is not None else iou[i]
        axes.text(float(max(edge, iou[i])) + 0.012, float(y), f"{iou[i]:.2f}", va="center", fontsize=8, color="#374151", bbox=_PAPER)
    axes.axvline(mean, color=GREY, linestyle="--", linewidth=1.2)
    axes.text(mean, -0.85, f" mean {mean:.3f}", color=GREY, fontsize=8.5, va="center")
    axes.set_yticks(place, [classes.names[i] for i in order])
    axes.set_xlim(0, 1.08)
    axes.set_ylim(len(order) - 0.4, -1.3)
    axes.set_xlabel("IoU on validation images" + (f" ({left_out} classes in between are omitted)" if left_out else ""))
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return save(drawn, path)


def examples(
    pictures: Sequence[Image.Image],
    columns: Sequence[tuple[str, Sequence[Int[np.ndarray, "h w"]]]],
    names: Sequence[str],
    classes: Classes,
    path: Path,
) -> Path:
    """Qualitative panels: one row per image, with ground-truth and predicted classes by colour."""
    n_cols = 1 + len(columns)
    drawn = canvas(2.15 * n_cols + 1.7, 2.15 * len(pictures) + 0.35)
    grid = np.atleast_2d(drawn.subplots(len(pictures), n_cols, squeeze=False))
    for row, picture in enumerate(pictures):
        grid[row, 0].imshow(picture)
        grid[row, 0].set_ylabel(names[row], fontsize=8)
        for col, (_, maps) in enumerate(columns, 1):
            grid[row, col].imshow(paint(maps[row], classes), interpolation="nearest")
    for axes, title in zip(grid[0], ("image", *(title for title, _ in columns)), strict=True):
        axes.set_title(title, fontsize=10)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    _legend(drawn, classes, [labels for _, maps in columns for labels in maps])
    return save(drawn, path)


def _legend(drawn: Figure, classes: Classes, shown: Sequence[np.ndarray]) -> None:
    from matplotlib.patches import Patch

    count = sum(np.bincount(np.minimum(labels, len(classes)).reshape(-1), minlength=len(classes) + 1) for labels in shown)
    assert isinstance(count, np.ndarray)
    most = [int(i) for i in np.argsort(-count[:-1], kind="stable") if count[i]][:_MOST_NAMED]
    handles = [Patch(facecolor=tuple(palette(len(classes))[i] / 255), edgecolor="#9ca3af", label=classes.names[i]) for i in sorted(most)]
    if count[-1]:
        handles.append(Patch(facecolor="white", edgecolor="#9ca3af", label="not counted"))
    drawn.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8.5, handlelength=1.1, handleheight=1.1)


def before_after(
    picture: Image.Image,
    truth: Int[np.ndarray, "h w"],
    before: Int[np.ndarray, "h w"],
    after: Int[np.ndarray, "h w"],
    classes: Classes,
    title: str,
    path: Path,
) -> Path:
    """One image: ground truth, predictions before and after edits, and the pixels that change."""
    drawn = canvas(12.2, 2.9)
    cells = drawn.subplots(1, 5)
    changed = np.asarray(picture.resize(before.shape[::-1]).convert("L").convert("RGB"), np.float32) * 0.55 + 100
    changed[before != after] = paint(after, classes)[before != after]
    shown = (picture, paint(truth, classes), paint(before, classes), paint(after, classes), np.clip(changed, 0, 255).astype(np.uint8))
    for axes, name, pixels in zip(cells, ("image", "truth", "before", "after", "changed pixels, new class"), shown, strict=True):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(name, fontsize=10)
        axes.set(xticks=[], yticks=[])
    _legend(drawn, classes, [truth, before, after])
    drawn.suptitle(title, fontsize=10, x=0.01, ha="left")
    return save(drawn, path)
