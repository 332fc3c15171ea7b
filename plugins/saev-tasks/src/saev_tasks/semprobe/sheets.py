"""Contact sheets: a concept's top features on its images, and on the negatives with their highest activations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from saev_core import Box, Checkpoint, FeatureIndex, TaskContext
from saev_core.errors import RunError
from saev_core.support.files import replace_folder
from saev_tasks.semprobe.curated import Curated

if TYPE_CHECKING:
    from saev_tasks.semprobe.options import SheetsConfig

_INK, _FAINT, _PAPER, _LINE = (32, 36, 44), (110, 116, 126), (255, 255, 255), (222, 226, 232)
_GREEN, _RED = (0, 158, 115), (213, 94, 0)
_GAP, _MARGIN, _CAPTION, _FRAME = 6, 18, 26, 3
_OPACITY = 0.8

Framed = tuple[Image.Image, tuple[int, int, int] | None]
"""An image and the colour of its frame."""


def draw_sheets(
    cx: TaskContext, checkpoint: Checkpoint, index: FeatureIndex, curated: Curated, scored: Mapping[str, Any], cfg: SheetsConfig
) -> list[Path]:
    """Write one PNG per concept to `RUN/tasks/semprobe/sheets`, replacing old ones.

    Raises:
        RunError: the SAE does not read patches, a concept was not scored, or a file cannot be written.
    """
    if checkpoint.read.tokens != "patches":
        raise RunError(f"heat maps need patches, and the SAE reads one {checkpoint.read.tokens} vector per image; use an SAE of patches.")
    if missing := [name for name in curated.concepts if name not in scored["concepts"]]:
        raise RunError(f"{missing[0]!r} was not scored; run saev task semprobe score {cx.run.path} with these images first.")
    rows = {name: _top(scored, name, cfg.top_k) for name in curated.concepts}
    features = np.array(sorted({row["feature"] for each in rows.values() for row in each}))
    values, crops = _values(cx, checkpoint, curated, features)
    folder = cx.folder("sheets")
    paths = []
    try:
        with replace_folder(folder) as new:
            for c, name in enumerate(curated.concepts):
                sheet = _sheet(name, rows[name], values, crops, features, curated, c, index, scored, cfg)
                path = new / f"{c:02d}-{re.sub(r'[^0-9A-Za-z]+', '-', name).strip('-').lower() or 'concept'}.png"
                sheet.save(path, "PNG", optimize=True)
                paths.append(folder / path.name)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror or error}); free some disk space, or check permissions.") from None
    return paths


def _top(scored: Mapping[str, Any], name: str, k: int) -> list[dict[str, Any]]:
    mine = [row for row in scored["rows"] if row["concept"] == name]
    return [row for row in mine if row["rank"] is None or row["rank"] <= k]


def _values(
    cx: TaskContext, checkpoint: Checkpoint, curated: Curated, features: np.ndarray
) -> tuple[Float[np.ndarray, "n n_features n_patches"], dict[int, Box]]:
    """Values of some features on every patch of every image (float16), and the crop the model saw of each readable one."""
    import torch

    n_patches = curated.source.grid.n_patches
    values = np.zeros((len(curated.images), len(features), n_patches), np.float16)
    crops: dict[int, Box] = {}
    column = torch.full((checkpoint.sae.d_sae,), -1)
    column[torch.from_numpy(features)] = torch.arange(len(features))
    with cx.track("heat maps", len(curated.images), "images") as meter:
        for place, x, boxes in curated.activations():
            codes = checkpoint.codes(x)
            row, value = codes.rows.cpu(), codes.value.cpu().float().numpy()
            at = column[codes.feature.cpu()]
            keep = (at >= 0).numpy()
            row, at = row.numpy()[keep], at.numpy()[keep]
            values[place[row // n_patches], at, row % n_patches] = value[keep]
            crops.update({int(p): box for p, box in zip(place, boxes, strict=True)})
            meter.update(len(place))
    return values, crops


def _sheet(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    values: np.ndarray,
    crops: Mapping[int, Box],
    features: np.ndarray,
    curated: Curated,
    c: int,
    index: FeatureIndex,
    scored: Mapping[str, Any],
    cfg: SheetsConfig,
) -> Image.Image:
    readable = np.array(sorted(crops))
    positive = readable[curated.true[readable, c]][: cfg.n_positive]
    against = curated.negative if scored["against"] == "negatives" else ~curated.true[:, c]
    negative = readable[against[readable]]
    px, grid = cfg.row_px, curated.source.grid
    shown = {int(p): curated.picture(int(p))[0] for p in positive}

    def height(image: Image.Image) -> Image.Image:
        return image.convert("RGB").resize((max(1, round(image.width * px / image.height)), px), Image.Resampling.LANCZOS)

    strips: list[tuple[str, str, list[Framed], list[Framed]]] = []
    plain: list[Framed] = [(height(shown[int(p)]), None) for p in positive]
    strips.append(("images of the concept", "", plain, []))
    for row in rows:
        at = int(np.searchsorted(features, row["feature"]))
        upper = max(float(index.max[row["feature"]]), 1e-30)
        peak = values[:, at].max(1)
        hardest = negative[np.argsort(-peak[negative], kind="stable")][: cfg.n_negative]
        threshold = row["threshold"] * upper

        def drawn(p: int, at: int = at, upper: float = upper, threshold: float = threshold, peak: np.ndarray = peak) -> Framed:
            image = shown[p] if p in shown else curated.picture(p)[0]
            yes = bool(peak[p] >= threshold and peak[p] > 0)
            right = yes == bool(curated.true[p, c])
            heated = heat(image, np.asarray(grid.to_map(values[p, at].astype(np.float32))), crops[p], upper)
            return height(heated), _GREEN if right else _RED

        strips.append(
            (
                f"feature {row['feature']}",
                f"F1 {row['f1']:.2f}   precision {row['precision']:.2f}   recall {row['recall']:.2f}   AUROC {row['auroc']:.2f}   "
                f"threshold: {_from(row['threshold'])}" + ("" if row["rank"] else "   (included)"),
                [drawn(int(p)) for p in positive],
                [drawn(int(p)) for p in hardest],
            )
        )
    return _laid_out(name, strips, px, scored)


def _laid_out(name: str, strips: Sequence[Any], px: int, scored: Mapping[str, Any]) -> Image.Image:
    def width(pictures: Sequence[Any]) -> int:
        return sum(picture.width + _GAP + 2 * _FRAME for picture, _ in pictures)

    left = max(width(positive) for _, _, positive, _ in strips)
    right = max((width(negative) for _, _, _, negative in strips), default=0)
    n, gulf = scored["concepts"][name], 28 if right else 0
    title, caption = _font(22), _font(14)
    note = (
        f"{n['n_positive']} positives, {n['n_negative']} negatives scored"
        + (", on images not used for choosing features" if scored["held_out"] else ", on the images that features were chosen on")
        + ".  Green frame: the feature is right at its threshold; red: wrong."
    )
    wide = max(left + gulf + right, round(caption.getlength(note)), 640) + 2 * _MARGIN
    top = 76
    line = _CAPTION + px + 2 * _FRAME + 2 * _GAP
    page = Image.new("RGB", (wide, top + line * len(strips) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((_MARGIN, 14), name, _INK, title)
    draw.text((_MARGIN, 44), note, _FAINT, caption)
    for i, (head, told, positive, negative) in enumerate(strips):
        y = top + i * line
        draw.text((_MARGIN, y + 4), head, _INK, caption)
        draw.text((_MARGIN + caption.getlength(head) + 14, y + 4), told, _FAINT, caption)
        if i == 0 and right:
            draw.text((_MARGIN + left + gulf, y + 4), "below: the negatives with each feature's highest activations", _FAINT, caption)
        for part, start in ((positive, _MARGIN), (negative, _MARGIN + left + gulf)):
            x = start
            for picture, frame in part:
                box = (x, y + _CAPTION, x + picture.width + 2 * _FRAME, y + _CAPTION + px + 2 * _FRAME)
                if frame is not None:
                    draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=frame)
                page.paste(picture, (x + _FRAME, y + _CAPTION + _FRAME))
                x = box[2] + _GAP
    if right:
        x = _MARGIN + left + gulf // 2
        draw.line((x, top, x, page.height - _MARGIN), _LINE, 2)
    return page


def _from(threshold: float) -> str:
    return f"from {threshold:.0%} of its largest value" if threshold else "wherever it fires"


def heat(image: Image.Image, values: Float[np.ndarray, "rows cols"], crop: Box, upper: float) -> Image.Image:
    """An image with patch values over the part that the model saw, in `inferno` colours up to `upper`; the rest is dimmed."""
    share = np.clip(values / upper, 0, 1)
    colour = _table()[np.round((0.3 + 0.7 * share) * 255).astype(int)].astype(float)
    alpha = np.where(share > 0, _OPACITY * (0.15 + 0.85 * share), 0)
    picture = np.asarray(image.convert("RGB"), float)
    # Desaturate and darken the image by half, or a heat map over a red object would be invisible.
    picture = 0.85 * (0.35 * picture + 0.65 * picture.mean(-1, keepdims=True))
    rows, cols = values.shape
    y = np.floor((np.arange(image.height) + 0.5 - crop.top) / (crop.bottom - crop.top) * rows).astype(int)
    x = np.floor((np.arange(image.width) + 0.5 - crop.left) / (crop.right - crop.left) * cols).astype(int)
    cell = np.ix_(np.clip(y, 0, rows - 1), np.clip(x, 0, cols - 1))
    over = alpha[cell][..., None]
    seen = (((y >= 0) & (y < rows))[:, None] & ((x >= 0) & (x < cols))[None])[..., None]
    mixed = np.where(seen, picture * (1 - over) + colour[cell] * over, picture * 0.35 + 20)
    return Image.fromarray(np.clip(np.round(mixed), 0, 255).astype(np.uint8))


@cache
def _table() -> np.ndarray:
    from matplotlib import colormaps

    return np.round(colormaps["inferno"](np.arange(256))[:, :3] * 255).astype(np.uint8)


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)
