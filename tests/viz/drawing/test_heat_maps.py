"""Heat maps lie where the model looked, whatever the picture's shape."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from saev_core.types import Box, Grid
from saev_viz.drawing.heat_maps import COLOUR_MAPS, colours, heat_map, map_pixels, sheet


def centre_crop(width: int, height: int) -> Box:
    """What `Resize(short side)` and `CenterCrop` show."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return Box(left, top, left + side, top + side)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (240, 240), (611, 173), (97, 401)])
@pytest.mark.parametrize("grid", [Grid(7, 7, 32), Grid(4, 6, 16)])
def test_a_hot_patch_lies_on_the_bright_patch_of_the_original(size: tuple[int, int], grid: Grid) -> None:
    width, height = size
    crop = centre_crop(width, height) if grid.rows == grid.cols else Box(0, 0, width, height)
    rng = np.random.default_rng(0)
    for token in rng.choice(grid.n_patches, 5, replace=False):
        bright = grid.box(int(token), crop)
        y, x = np.mgrid[:height, :width] + 0.5
        inside = (x >= bright.left) & (x < bright.right) & (y >= bright.top) & (y < bright.bottom)
        picture = np.where(inside, 200, 0).astype(np.uint8)
        values = np.zeros(grid.n_patches)
        values[token] = 1
        out = heat_map(Image.fromarray(picture).convert("RGB"), grid.to_map(values), crop, upper=1, opacity=1)
        changed = (np.asarray(out, int) != np.asarray(picture, int)[..., None]).any(-1)
        seen = (x >= crop.left) & (x < crop.right) & (y >= crop.top) & (y < crop.bottom)
        np.testing.assert_array_equal(changed & seen, inside)
        assert (np.asarray(out)[inside] == colours("inferno")[-1]).all()


def test_outside_the_crop_is_dimmed_and_bears_no_map() -> None:
    image = Image.new("RGB", (300, 200), (180, 120, 60))
    out = np.asarray(heat_map(image, np.ones((4, 4)), centre_crop(300, 200), upper=1))
    assert (out[:, :50] == out[0, 0]).all()
    assert (out[:, 250:] == out[0, 0]).all()
    assert out[0, 0].max() < 100
    assert (out[:, 50:250] != out[0, 0]).any(-1).all()


def test_alpha_rises_with_the_value_and_zero_leaves_the_picture_alone() -> None:
    alpha = map_pixels(np.linspace(0, 1.5, 50)[None], upper=1, opacity=0.7)[0, :, 3].astype(int)
    assert alpha[0] == 0
    assert (np.diff(alpha) >= 0).all()
    assert alpha[-1] == round(0.7 * 255)
    image = Image.effect_noise((64, 48), 80).convert("RGB")
    np.testing.assert_array_equal(np.asarray(heat_map(image, np.zeros((3, 4)), Box(0, 0, 64, 48), upper=1)), np.asarray(image))


def test_a_feature_that_never_fires_draws_nothing_and_divides_by_nothing() -> None:
    assert (map_pixels(np.zeros((2, 2)), upper=0)[..., 3] == 0).all()


def test_smooth_maps_peak_at_the_patch_centre_and_stay_within_the_picture() -> None:
    values = np.zeros((5, 5))
    values[1, 3] = 1
    out = np.asarray(heat_map(Image.new("RGB", (100, 100)), values, Box(0, 0, 100, 100), upper=1, opacity=1, smooth=True), int).sum(-1)
    y, x = np.unravel_index(out.argmax(), out.shape)
    assert abs(y - 29.5) <= 1
    assert abs(x - 69.5) <= 1
    assert out[80:, :20].max() == 0


def test_a_smaller_result_keeps_the_alignment() -> None:
    values = np.zeros((4, 4))
    values[3, 0] = 1
    image = Image.new("RGB", (600, 400))
    out = np.asarray(heat_map(image, values, centre_crop(600, 400), upper=1, opacity=1, size_px=150), int)
    assert out.shape == (100, 150, 3)
    hot = np.argwhere((out == colours("inferno")[-1]).all(-1))
    assert hot.min(0).tolist() == [75, 25]
    assert hot.max(0).tolist() == [99, 49]


@pytest.mark.parametrize("name", COLOUR_MAPS)
def test_colour_maps_grow_lighter_all_the_way(name: str) -> None:
    table = colours(name) / 255
    linear = np.where(table <= 0.04045, table / 12.92, ((table + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) > -2e-3).all()
    assert luminance[-1] - luminance[0] > 0.6


def test_an_unknown_colour_map_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="'jet'; choose one of inferno"):
        colours("jet")


def test_a_sheet_holds_its_rows_and_leaves_out_what_does_not_fit() -> None:
    red, blue = Image.new("RGB", (50, 50), "red"), Image.new("RGB", (100, 50), "blue")
    page = sheet([("one", [red, blue]), ("two", [blue] * 20)], row_px=100, width_px=500)
    pixels = np.asarray(page)
    assert page.width == 500
    assert (pixels == (255, 0, 0)).all(-1).sum() == 100 * 100
    assert (pixels == (0, 0, 255)).all(-1).sum() == 3 * 200 * 100
