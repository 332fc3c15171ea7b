"""Which part of the original a transformed image shows, measured on the transform itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from saev_core.errors import ModelError
from saev_core.types import Box, Grid

_GOLDEN = 0.6180339887498949
_SMALLEST = 32
"""Pixels: images with a shorter side than this are enlarged before they are probed."""
_REMEMBERED = 20_000
"""Number of sizes whose crop is cached: ImageNet has over 100,000."""

Transform = Callable[[Image.Image], Any]
"""PIL RGB -> tensor `[3, h, w]`."""


class Geometry:
    """The crop that a deterministic resize-and-crop transform takes, for any image size.

    Two flat images give the transform's per-channel scale and offset; a colour ramp of the given size shows which
    original coordinate lands on which pixel; a line fitted along each axis gives the crop to a fraction of a pixel.
    Nothing is assumed about the transform's classes, so third-party transforms work too.
    """

    def __init__(self, transform: Transform) -> None:
        self._transform = transform
        black, white = (self._pixels(Image.new("RGB", (64, 64), c)) for c in ((0, 0, 0), (255, 255, 255)))
        self._offset, self._range = black.mean((1, 2)), white.mean((1, 2)) - black.mean((1, 2))
        self._crops: dict[tuple[int, int], Box] = {}

    def crop(self, width: int, height: int) -> Box:
        """The part of a `width` x `height` original that the transformed image shows, in original pixels.

        Exact to about 0.3 % of a side. Safe to call from several threads.

        Raises:
            ModelError: the transform is not a resize and crop.
        """
        box = self._crops.get((width, height))
        if box is None:
            # A ramp over a few pixels is too coarse; an enlarged image of the same proportions is cropped in the same way.
            times = -(-_SMALLEST // min(width, height))
            box = Box(*(edge / times for edge in self._probe(width * times, height * times)))
            if len(self._crops) >= _REMEMBERED:
                self._crops.clear()
            self._crops[width, height] = box
        return box

    def _pixels(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.asarray(self._transform(image), dtype=np.float64)

    def _probe(self, width: int, height: int) -> Box:
        ramp = np.zeros((height, width, 3), np.uint8)
        # Pixel centres: column i covers [i, i + 1), so its colour encodes i + 0.5. Each row rounds differently
        # (0 to 1 in golden steps), so that the mean over rows is exact; with 8 bits alone it would be off by 2 % of the crop.
        across, down = ((np.arange(n) + 0.5) / n * 255 for n in (width, height))
        ramp[..., 0] = across[None, :] + (np.arange(height) * _GOLDEN % 1)[:, None]
        ramp[..., 1] = down[:, None] + (np.arange(width) * _GOLDEN % 1)[None, :]
        out = self._pixels(Image.fromarray(ramp))
        x = (out[0] - self._offset[0]) / self._range[0] * width  # [h, w] original x at each transformed pixel
        y = (out[1] - self._offset[1]) / self._range[1] * height
        left, right = _extent(x.mean(0), width)
        top, bottom = _extent(y.mean(1), height)
        if max(x.std(0).max() / width, y.std(1).max() / height) > 0.02:
            raise ModelError("the model's transform is not a resize and crop; use a deterministic one.")
        return Box(left, top, right, bottom)


def _extent(coordinate: np.ndarray[Any, Any], size: int) -> tuple[float, float]:
    """Original coordinates of both edges of an axis, from those of its pixel centres; outer pixels blur at borders."""
    n = len(coordinate)
    inner = slice(n // 8, n - n // 8)
    slope, start = np.polyfit(np.arange(n)[inner] + 0.5, coordinate[inner], 1)
    left, right = start, start + slope * n
    # A whole axis is exact; the fit is not, because of the ramp's 8 bits.
    snap = 0.004 * size
    return (0.0 if abs(left) < snap else float(left)), (float(size) if abs(right - size) < snap else float(right))


def patch_labels(mask: np.ndarray[Any, Any], crop: Box, grid: Grid) -> np.ndarray[Any, np.dtype[np.uint16]]:
    """The most frequent mask value under each patch, `[n_patches]` uint16.

    Args:
        mask: class numbers `[height, width]` in original pixels.
        crop: the part of the original that the grid covers.
    """
    height, width = mask.shape
    rows = np.clip((crop.top + (np.arange(grid.height_px) + 0.5) * (crop.bottom - crop.top) / grid.height_px).astype(int), 0, height - 1)
    cols = np.clip((crop.left + (np.arange(grid.width_px) + 0.5) * (crop.right - crop.left) / grid.width_px).astype(int), 0, width - 1)
    px = grid.patch_px
    tiles = mask[rows[:, None], cols].reshape(grid.rows, px, grid.cols, px).swapaxes(1, 2).reshape(grid.n_patches, px * px)
    ordered = np.sort(tiles, axis=1)
    # Length of the run of equal values that ends at each position; the longest run is the majority.
    place = np.arange(px * px)
    start = np.maximum.accumulate(np.where(np.diff(ordered, axis=1, prepend=ordered[:, :1] - 1.0) != 0, place, 0), axis=1)
    majority: np.ndarray[Any, np.dtype[np.uint16]] = ordered[np.arange(grid.n_patches), np.argmax(place - start, axis=1)].astype(np.uint16)
    return majority
