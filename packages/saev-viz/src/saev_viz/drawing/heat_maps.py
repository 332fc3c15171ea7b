"""Heat maps over original pictures, aligned with the model's input crop. Does not import gradio or matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from saev_core import Box

COLOUR_MAPS = {
    # Ten evenly spaced samples each; perceptually uniform and colour-blind safe.
    # Source: N. Smith and S. van der Walt, https://bids.github.io/colormap (CC0).
    "inferno": "000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4",
    "magma": "000004 180f3d 440f76 721f81 9e2f7f cd4071 f1605d fd9668 feca8d fcfdbf",
    "viridis": "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725",
}


@cache
def colours(name: str) -> UInt8[np.ndarray, "256 3"]:
    """A colour map as a table, dark to light.

    Raises:
        ValueError: unknown colour map.
    """
    if name not in COLOUR_MAPS:
        raise ValueError(f"unknown colour map {name!r}; choose one of {', '.join(COLOUR_MAPS)}.")
    anchors = np.array([[int(text[i : i + 2], 16) for i in (0, 2, 4)] for text in COLOUR_MAPS[name].split()], float)
    at = np.linspace(0, len(anchors) - 1, 256)
    table = np.stack([np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T], 1)
    return np.round(table).astype(np.uint8)


def map_pixels(
    values: Float[np.ndarray, "rows cols"], *, upper: float, opacity: float = 0.75, colour_map: str = "inferno"
) -> UInt8[np.ndarray, "rows cols 4"]:
    """One RGBA pixel per patch: colour and alpha both encode strength, so that weak patches stay transparent.

    Args:
        values: patch values; 0 is transparent.
        upper: the value from which colour and alpha are full, such as the feature's 99th percentile.
        opacity: maximum alpha, 0 to 1.
    """
    share = np.clip(np.nan_to_num(np.asarray(values, float) / max(upper, 1e-30)), 0, 1)
    # Skip the darkest fifth of the map: over a picture it looks like shadow, not like a weak value.
    rgb = colours(colour_map)[np.round((0.25 + 0.75 * share) * 255).astype(int)]
    alpha = np.where(share > 0, opacity * (0.08 + 0.92 * share), 0)
    return np.concatenate([rgb, np.round(alpha * 255).astype(np.uint8)[..., None]], -1)


def heat_map(
    image: Image.Image,
    values: Float[np.ndarray, "rows cols"],
    crop: Box,
    *,
    upper: float,
    opacity: float = 0.75,
    colour_map: str = "inferno",
    smooth: bool = False,
    size_px: int | None = None,
) -> Image.Image:
    """The original picture with patch values over the model's input crop; the rest is dimmed.

    Args:
        image: the original, any shape.
        values: patch values as a map, `Grid.to_map`.
        crop: what the map covers, in pixels of the original (`ActivationStore.crop`).
        upper, opacity, colour_map: as `map_pixels`.
        smooth: interpolate between patch centres; by default patches have sharp edges.
        size_px: longer side of the result; by default that of the original.
    """
    image = image.convert("RGB")
    scale = 1.0 if size_px is None else size_px / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    picture = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS), float)
    rows, cols = np.shape(values)
    # Position of each pixel's centre in the map, in patches: 0 to cols inside the crop.
    x = ((np.arange(width) + 0.5) / width * image.width - crop.left) / (crop.right - crop.left) * cols
    y = ((np.arange(height) + 0.5) / height * image.height - crop.top) / (crop.bottom - crop.top) * rows
    layer = map_pixels(values, upper=upper, opacity=opacity, colour_map=colour_map).astype(float)
    layer[..., :3] *= layer[..., 3:] / 255  # premultiplied, so that blending does not bleed the colour of silent patches
    over = _blended(layer, y, x) if smooth else layer[_cell(y, rows)[:, None], _cell(x, cols)[None, :]]
    seen = ((y >= 0) & (y < rows))[:, None] & ((x >= 0) & (x < cols))[None, :]
    mixed = picture * (1 - over[..., 3:] / 255) + over[..., :3]
    out = np.where(seen[..., None], mixed, picture * 0.35 + 20)
    return Image.fromarray(np.clip(np.round(out), 0, 255).astype(np.uint8))


def _cell(at: Float[np.ndarray, " n"], size: int) -> np.ndarray:
    out: np.ndarray = np.clip(np.floor(at).astype(int), 0, size - 1)
    return out


def _blended(layer: Float[np.ndarray, "rows cols 4"], y: Float[np.ndarray, " h"], x: Float[np.ndarray, " w"]) -> np.ndarray:
    """Bilinear between patch centres, the border patches reaching to the edge."""
    for axis, position in ((0, y), (1, x)):
        size = layer.shape[axis]
        at = np.clip(position - 0.5, 0, size - 1)
        low = np.minimum(at.astype(int), max(size - 2, 0))
        part = np.expand_dims(at - low, tuple(i for i in range(3) if i != axis))
        high = np.minimum(low + 1, size - 1)
        layer = layer.take(low, axis) * (1 - part) + layer.take(high, axis) * part
    return layer


def sheet(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], *, row_px: int = 150, width_px: int = 1240, gap_px: int = 6, dark: bool = False
) -> Image.Image:
    """A contact sheet: captioned rows of pictures of equal height.

    Args:
        rows: caption and pictures of each row; pictures beyond the right edge are left out.
    """
    paper, ink = ((21, 23, 28), (222, 226, 232)) if dark else ((255, 255, 255), (40, 44, 52))
    caption_px, margin = 22, 14
    font = ImageFont.load_default(15)
    line = caption_px + row_px + 2 * gap_px
    page = Image.new("RGB", (width_px, 2 * margin + line * len(rows) - gap_px), paper)
    draw = ImageDraw.Draw(page)
    for i, (caption, pictures) in enumerate(rows):
        x, y = margin, margin + i * line
        draw.text((x, y), caption, ink, font)
        for picture in pictures:
            width = round(picture.width * row_px / picture.height)
            if x + width > width_px - margin:
                break
            page.paste(picture.convert("RGB").resize((width, row_px), Image.Resampling.LANCZOS), (x, y + caption_px))
            x += width + gap_px
    return page
