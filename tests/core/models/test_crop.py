"""Geometry: where a patch lies on the original, against transforms whose crop is known."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from saev_core.errors import ModelError
from saev_core.models.crop import Geometry, patch_labels
from saev_core.models.transform import ResizeCrop
from saev_core.types import Box, Grid


def known(transform: ResizeCrop, width: int, height: int) -> Box:
    """The crop by the transform's own arithmetic."""
    if isinstance(transform.resize, tuple):
        w, h = transform.resize[1], transform.resize[0]
    else:
        assert transform.resize is not None
        short = min(width, height)
        w, h = (transform.resize if side == short else int(transform.resize * side / short) for side in (width, height))
    crop_h, crop_w = transform.crop or (h, w)
    top, left = round((h - crop_h) / 2), round((w - crop_w) / 2)
    return Box(left * width / w, top * height / h, (left + crop_w) * width / w, (top + crop_h) * height / h)


def assert_close(got: Box, want: Box, width: int, height: int) -> None:
    """Within half a percent of a side: a twelfth of a patch where there are sixteen."""
    for g, w, side in zip(got, want, (width, height, width, height), strict=True):
        assert abs(g - w) <= 0.005 * side, (got, want)


@pytest.mark.parametrize(
    "transform",
    [
        ResizeCrop(256, (224, 224)),
        ResizeCrop(224, (224, 224)),
        ResizeCrop(96, (64, 96)),
        ResizeCrop((112, 112), None),
        ResizeCrop(64, (48, 48), resample=int(Image.Resampling.NEAREST)),
        ResizeCrop(128, (112, 112), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), scale=1.0),
    ],
)
@pytest.mark.parametrize("size", [(500, 375), (375, 500), (224, 224), (640, 200), (61, 97), (28, 28), (9, 7), (1, 1), (2, 3)])
def test_the_crop_is_the_transforms_own(transform: ResizeCrop, size: tuple[int, int]) -> None:
    assert_close(Geometry(transform).crop(*size), known(transform, *size), *size)


@settings(max_examples=30, deadline=None)
@given(st.integers(16, 400), st.integers(16, 400), st.integers(24, 160), st.floats(0.5, 1.0))
def test_the_crop_of_any_resize_and_crop(width: int, height: int, resize: int, share: float) -> None:
    if max(width, height) > 8 * min(width, height):
        return
    crop = max(16, round(resize * share))
    transform = ResizeCrop(max(resize, crop), (crop, crop))
    assert_close(Geometry(transform).crop(width, height), known(transform, width, height), width, height)


def test_the_crop_of_torchvisions_transform() -> None:
    v1 = pytest.importorskip("torchvision.transforms")
    transform = v1.Compose([v1.Resize(256), v1.CenterCrop(224), v1.ToTensor(), v1.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))])
    for size in ((500, 375), (300, 480), (224, 224)):
        assert_close(Geometry(transform).crop(*size), known(ResizeCrop(256, (224, 224)), *size), *size)


def test_what_is_squeezed_whole_is_the_whole_exactly() -> None:
    assert Geometry(ResizeCrop((48, 96), None)).crop(501, 333) == Box(0, 0, 501, 333)


def test_a_transform_that_pads_is_refused() -> None:
    with pytest.raises(ModelError, match="not a resize and crop"):
        Geometry(ResizeCrop(32, (48, 48), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))).crop(64, 64)


def test_a_transform_that_mixes_rows_is_refused() -> None:
    def turned(image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image.resize((32, 32)).rotate(30))).permute(2, 0, 1)
        return pixels.float()

    with pytest.raises(ModelError, match="not a resize and crop"):
        Geometry(turned).crop(64, 48)


def test_a_bright_square_is_found_again_on_the_original() -> None:
    grid, transform = Grid(7, 7, patch_px=16), ResizeCrop(128, (112, 112), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    crop = Geometry(transform).crop(300, 180)
    for token in (0, 10, 24, 48):
        box = grid.box(token, crop)
        original = np.zeros((180, 300, 3), np.uint8)
        original[round(box.top) : round(box.bottom), round(box.left) : round(box.right)] = 255
        seen = transform(Image.fromarray(original))[0].reshape(7, 16, 7, 16).mean((1, 3)).flatten()
        assert int(seen.argmax()) == token
        assert seen[token] > 0.85
        assert seen.sum() - seen[token] < 0.6


def slowly(mask: np.ndarray, crop: Box, grid: Grid) -> list[Counter[int]]:
    """How often each class stands under each patch, one pixel of the transformed picture after the other."""
    counts = []
    for token in range(grid.n_patches):
        row, col = divmod(token, grid.cols)
        seen: Counter[int] = Counter()
        for y in range(row * grid.patch_px, (row + 1) * grid.patch_px):
            for x in range(col * grid.patch_px, (col + 1) * grid.patch_px):
                at_y = int(crop.top + (y + 0.5) * (crop.bottom - crop.top) / grid.height_px)
                at_x = int(crop.left + (x + 0.5) * (crop.right - crop.left) / grid.width_px)
                seen[int(mask[min(max(at_y, 0), mask.shape[0] - 1), min(max(at_x, 0), mask.shape[1] - 1)])] += 1
        counts.append(seen)
    return counts


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_patch_labels_are_the_majority_that_a_plain_loop_finds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, cols, px, n_classes = (int(rng.integers(1, high)) for high in (5, 6, 7, 6))
    height, width = int(rng.integers(1, 31)), int(rng.integers(1, 41))
    mask = rng.integers(0, n_classes, (height, width)).astype(np.uint8 if seed % 2 else np.uint16)
    mask += np.array(250 if seed % 3 == 0 else 0, mask.dtype)
    left, top = rng.uniform(0, width / 3), rng.uniform(0, height / 3)
    crop = Box(left, top, left + rng.uniform(0.5, 1) * width, top + rng.uniform(0.5, 1) * height)
    grid = Grid(rows, cols, px, n_prefix=2)
    labels = patch_labels(mask, crop, grid)
    assert labels.dtype == np.uint16
    for label, counts in zip(labels.tolist(), slowly(mask, crop, grid), strict=True):
        assert counts[label] == max(counts.values())


def test_high_class_numbers_survive() -> None:
    mask = np.full((8, 8), 65535, np.uint16)
    mask[:, 4:] = 40_000
    assert patch_labels(mask, Box(0, 0, 8, 8), Grid(1, 2, 4)).tolist() == [65535, 40_000]


def test_boxes_tile_the_crop_row_by_row() -> None:
    grid, crop = Grid(2, 3, 10, n_prefix=5), Box(10, 20, 40, 60)
    assert grid.box(0, crop) == Box(10, 20, 20, 40)
    assert grid.box(5, crop) == Box(30, 40, 40, 60)
    assert grid.box(4) == Box(10, 10, 20, 20)
    with pytest.raises(IndexError):
        grid.box(6)


def test_many_sizes_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saev_core.models.crop._REMEMBERED", 4)
    geometry = Geometry(ResizeCrop(32, (32, 32)))
    for width in range(40, 52):
        geometry.crop(width, 40)
    assert len(geometry._crops) <= 4
