"""`Shapes`: the same for ever, known to the pixel, and fair."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saev_core.data.dataset import load_dataset
from saev_core.data.shapes import COLOURS, PLACES, SHAPES, VALUES, Shapes, ShapesConfig
from saev_core.types import Box, Grid

GRID, WHOLE = Grid(12, 12, 8, 1), Box(0, 0, 192, 192)


@pytest.fixture(scope="module")
def scenes() -> Shapes:
    return Shapes(ShapesConfig(n=300))


def test_a_scene_depends_on_its_seed_size_and_number_alone(scenes: Shapes) -> None:
    longer = Shapes(ShapesConfig(n=5000))
    assert longer[7].image.tobytes() == scenes[7].image.tobytes()
    assert Shapes(ShapesConfig(n=300, seed=1))[7].image.tobytes() != scenes[7].image.tobytes()


def test_scenes_are_the_ones_that_tiny_was_measured_on(scenes: Shapes) -> None:
    """A change here changes every stored result: raise shapes.VERSION with it."""
    first = scenes.truth(0).things[0]
    assert (first.shape, first.colour, first.texture, first.size, first.place) == ("bar", "cyan", "dots", "large", "top left")
    mean = float(np.mean([np.asarray(scenes[i].image, float).mean() for i in range(4)]))
    assert mean == pytest.approx(118.19, abs=0.05)


def test_identity_differs_where_the_images_do() -> None:
    configs = [ShapesConfig(), ShapesConfig(n=10), ShapesConfig(seed=1), ShapesConfig(size=96)]
    assert len({Shapes(c).identity() for c in configs}) == 4
    assert Shapes().identity() == Shapes(ShapesConfig()).identity()


def test_objects_never_touch_and_lie_in_the_picture(scenes: Shapes) -> None:
    for index in range(len(scenes)):
        things = scenes.truth(index).things
        assert 2 <= len(things) <= 4
        assert len({t.place for t in things}) == len(things)
        for i, a in enumerate(things):
            assert a.radius <= a.x <= 192 - a.radius
            assert a.radius <= a.y <= 192 - a.radius
            assert all(np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius for b in things[i + 1 :])


def test_one_object_is_large_and_gives_the_label(scenes: Shapes) -> None:
    for index in range(100):
        things = scenes.truth(index).things
        assert [t.size for t in things] == ["large"] + ["small"] * (len(things) - 1)
        assert SHAPES[scenes[index].label or 0] == things[0].shape


def test_a_place_is_where_the_centre_lies(scenes: Shapes) -> None:
    for index in range(100):
        for t in scenes.truth(index).things:
            assert PLACES[int(t.y // 64) * 3 + int(t.x // 64)] == t.place


def test_mask_is_the_shape_of_each_pixel(scenes: Shapes) -> None:
    for index in range(20):
        truth, mask = scenes.truth(index), scenes[index].mask
        assert mask is not None
        for number, thing in enumerate(truth.things, 1):
            assert set(mask[truth.instances == number]) == {SHAPES.index(thing.shape) + 1}
        assert not mask[truth.instances == 0].any()


def test_plain_objects_have_their_colour(scenes: Shapes) -> None:
    for index in range(60):
        image, truth = np.asarray(scenes[index].image, float), scenes.truth(index)
        for number, thing in enumerate(truth.things, 1):
            if thing.texture == "plain":
                seen = image[truth.instances == number].mean(0)
                nearest = min(COLOURS, key=lambda name: float(np.abs(seen - COLOURS[name]).sum()))
                assert nearest == thing.colour


def test_every_value_of_a_factor_is_about_as_frequent(scenes: Shapes) -> None:
    things = [t for i in range(len(scenes)) for t in scenes.truth(i).things]
    for factor, values in VALUES.items():
        if factor in ("shape", "colour", "texture", "place"):
            counts = np.array([sum(getattr(t, factor) == value for t in things) for value in values])
            assert counts.min() > 0.6 * counts.mean(), factor
            assert counts.max() < 1.4 * counts.mean(), factor


def test_patch_factors_follow_the_stated_rule(scenes: Shapes) -> None:
    """Against a plain count of pixels, patch by patch."""
    for index in range(10):
        truth, rows = scenes.truth(index), scenes.patch_factors(index, GRID, WHOLE)
        for token in range(GRID.n_patches):
            box = GRID.box(token, WHOLE)
            tile = truth.instances[int(box.top) : int(box.bottom), int(box.left) : int(box.right)]
            shares = [float((tile == i + 1).mean()) for i in range(len(truth.things))]
            told = {name for name, value in zip(scenes.factors, rows[:, token], strict=True) if value == 1}
            if max(shares) >= 0.5:
                thing = truth.things[int(np.argmax(shares))]
                assert told == {f"{factor}={getattr(thing, factor)}" for factor in VALUES}
            else:
                assert not told
                assert (rows[:, token] == (-1 if sum(shares) > 0.125 else 0)).all()


@given(index=st.integers(0, 299), left=st.floats(0, 60), top=st.floats(0, 60), side=st.floats(40, 130))
@settings(max_examples=25, deadline=None)
def test_patch_factors_of_a_crop_are_those_of_the_cropped_picture(index: int, left: float, top: float, side: float) -> None:
    scenes, grid = Shapes(ShapesConfig(n=300)), Grid(4, 4, 8)
    crop = Box(round(left), round(top), round(left) + 4 * round(side / 4), round(top) + 4 * round(side / 4))
    rows = scenes.patch_factors(index, grid, crop)
    truth = scenes.truth(index)
    cut = truth.instances[int(crop.top) : int(crop.bottom), int(crop.left) : int(crop.right)]
    step = len(cut) // 4
    for token in range(16):
        row, col = divmod(token, 4)
        tile = cut[row * step : (row + 1) * step, col * step : (col + 1) * step]
        shown = max(float((tile == i + 1).mean()) for i in range(len(truth.things)))
        assert bool((rows[:, token] == 1).any()) == (shown >= 0.5 - 1e-6)


def test_factors_exclude_one_another(scenes: Shapes) -> None:
    rows = scenes.patch_factors(3, GRID, WHOLE)
    first = 0
    for values in VALUES.values():
        assert ((rows[first : first + len(values)] == 1).sum(0) <= 1).all()
        first += len(values)
    assert first == len(scenes.factors) == len(rows)


def test_threads_draw_the_same(scenes: Shapes) -> None:
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda i: scenes[i].image.tobytes(), [5] * 8))
    assert set(drawn) == {scenes[5].image.tobytes()}


def test_it_is_the_plugin_called_shapes() -> None:
    dataset = load_dataset("shapes:12")
    assert isinstance(dataset, Shapes)
    assert len(dataset) == 12
