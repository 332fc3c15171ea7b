"""One feature's page as HTML: every feature of a real run, and runs with missing parts."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saev_core.cli import main
from saev_core.errors import RunError
from saev_core.features.histogram import edges
from saev_core.runs.run import Run
from saev_viz.drawing.heat_maps import map_pixels
from saev_viz.html.feature_page import head, heat, page, shown, strongest, value_chart, where
from saev_viz.run_view.feature_table import Query
from saev_viz.run_view.library import Library, View

SAE = "topk"


@pytest.fixture(scope="module")
def view(run_of_pictures: Run) -> View:
    return Library(run_of_pictures)[SAE]


@pytest.fixture(scope="module")
def alive(view: View) -> int:
    return int(view.table.find(Query())[2])


def test_every_feature_of_a_run_has_a_page(view: View) -> None:
    for feature in range(view.index.d_sae):
        above, below = head(view, feature), page(view, feature)
        assert f"<h2>Feature {feature} " in above
        assert above.count("<dt>") == len(view.table.columns)
        if view.table.alive[feature]:
            for title in ("Top pictures", "Activation values", "Labels of the pictures", "Position in the picture", "Nearest features"):
                assert title in below, (feature, title)
            assert below.count('class="patch"') == len(view.index.samples(feature))
        else:
            assert "never fires on the indexed pictures" in below


def test_the_heat_map_fetched_for_a_picture_is_the_one_indexed_for_it(view: View, alive: int) -> None:
    for top in view.index.top(alive, 3):
        for end in ("percentile", "max"):
            got = np.asarray(Image.open(io.BytesIO(heat(view, alive, top.index, "viridis", end))))
            grid = view.index.grid.to_map(top.map.astype(float))
            want = map_pixels(grid, upper=view.upper(alive, end), opacity=1, colour_map="viridis")
            # The index keeps maps in half precision: a colour may differ by a step.
            assert np.abs(got.astype(int) - want.astype(int)).max() <= 3
            assert ((got[..., 3] > 0) == (want[..., 3] > 0)).all()


@pytest.mark.parametrize(("feature", "index", "colours"), [(48, 0, "inferno"), (-1, 0, "inferno"), (0, 24, "inferno"), (0, 0, "jet")])
def test_a_heat_map_of_nothing_is_refused(view: View, feature: int, index: int, colours: str) -> None:
    with pytest.raises(RunError):
        heat(view, feature, index, colours, "max")


def test_the_mark_of_a_sample_lies_on_the_patch_with_its_largest_value(view: View, alive: int) -> None:
    below = page(view, alive)
    style = r'class="patch" style="left:([\d.]+)%;top:([\d.]+)%;width:([\d.]+)%;height:([\d.]+)%"'
    marks = re.findall(rf'data-picture="(\d+)"[^>]*>(?:(?!</button>).)*?{style}', below)
    assert len(marks) == len(view.index.samples(alive))
    for number, *box in marks:
        left, top, wide, high = map(float, box)
        values, crop = view.seen(int(number)).map(alive), view.library.crop(int(number))
        width, height = (int(side) for side in view.library.sizes[int(number)])
        col = (left + wide / 2) / 100 * width - crop.left
        row = (top + high / 2) / 100 * height - crop.top
        grid = view.index.grid
        at = int(row / (crop.bottom - crop.top) * grid.rows), int(col / (crop.right - crop.left) * grid.cols)
        assert values[at] == values.max() > 0


def test_rows_of_samples_hold_all_of_them_once_from_strong_to_weak(view: View, alive: int) -> None:
    samples = view.index.samples(alive)
    below = page(view, alive).partition("tenths")[2]
    assert [int(n) for n in re.findall(r'data-picture="(\d+)"', below)] == [s.index for s in reversed(samples)]


def test_no_such_feature_says_which_there_are(view: View) -> None:
    for feature in (48, 10**9, -1):
        assert "has features 0 to 47" in head(view, feature)
        assert page(view, feature) == ""


@pytest.mark.parametrize(("column", "value", "text"), [("max", np.nan, "–"), ("frequency", 0.0123, "1.2 %"), ("lift", 3.21, "3.21 ×")])
def test_numbers_are_told_as_people_read_them(column: str, value: float, text: str) -> None:
    assert shown(column, value) == text


def at(*places: tuple[int, int], side: int = 8) -> np.ndarray:
    place = np.zeros((side, side))
    for row, col in places:
        place[row, col] = 1
    return np.asarray(place / place.sum())


@pytest.mark.parametrize(
    ("place", "n", "says"),
    [
        (at((2, 5)), 200, "Nearly always at the same position, around row 3 of 8, column 6 of 8"),
        (np.pad(np.zeros((6, 6)), 1, constant_values=1.0) / 28, 200, "Mostly along the border: 100 % of its strength"),
        (np.full((8, 8), 1 / 64), 200, "All over the picture"),
        (np.pad(np.full((6, 6), 1 / 36), 1), 200, "Away from the border: 0 % of its strength"),
        (at((2, 5)), 5, "Only 5 pictures fire it: too few"),
        (np.full((1, 30), 1 / 30), 200, "All over the picture"),
    ],
)
def test_a_mean_map_tells_features_of_a_place_and_of_the_border(place: np.ndarray, n: int, says: str) -> None:
    assert where(place, n).startswith(says)


def test_a_feature_on_random_patches_is_not_taken_for_one_of_a_place() -> None:
    """Even of few pictures, whose map is full of holes by chance."""
    rng = np.random.default_rng(0)
    for n in (12, 30, 300):
        for _ in range(100):
            place = np.bincount(rng.integers(0, 256, n), minlength=256).reshape(16, 16) / n
            assert not where(place, n).startswith("Nearly always"), n


def test_the_mark_in_the_histogram_stands_where_the_value_lies() -> None:
    counts, bins = np.zeros(160, int), edges(4)
    first = int(np.searchsorted(bins, 1.0))  # 1 to 4, eight bins
    counts[first : first + 8] = 7
    chart = value_chart(counts, bins, 2.0, "half way")
    assert 'd="M210.0 16V130"' in chart  # two octaves: the mark at 2 is in the middle of 420
    assert re.findall(r"<path d=\"([^\"]*)\"", chart)[0].count("M") == 8
    assert value_chart(np.zeros(160, int), bins, 1.0, "none") == ""


def test_without_the_pictures_a_page_says_how_to_get_them_and_keeps_the_numbers(copied: Run, alive: int) -> None:
    library = Library(copied, "image-folder:/nowhere/at/all")
    below = page(library[SAE], alive)
    assert "--dataset" in below
    assert "/saev/image/" not in below
    assert below.count("class=heat") + below.count('class="heat"') > 0


def test_what_is_written_by_others_is_never_markup(copied: Run, alive: int, write_names: Callable[..., None]) -> None:
    bad = "<script>alert(1)</script>"
    write_names(copied, SAE, {alive: (bad, 0.9)})
    view = Library(copied)[SAE]
    other = next(f for f, _ in view.nearest(alive))
    for text in (head(view, alive), page(view, alive), page(view, other), page(view, view.nearest(other)[0][0])):
        assert "<script" not in text
    assert "&lt;script&gt;" in head(view, alive)


def test_an_sae_on_one_vector_a_picture_has_a_page_without_maps(run_of_pictures: Run, tmp_path: Path) -> None:
    root = run_of_pictures.config.dataset.options["root"]
    small = ["train.n_tokens=200", "train.n_init=16", "train.batch_size=8", "sae.options.d_sae=16", "sae.options.k=2", "read.tokens=cls"]
    command = ["run", "--out", str(tmp_path / "run"), "--model", "tiny", "--dataset", f"image-folder:{root}"]
    assert main([*command, "--set", *small]) == 0
    view = Library(Run.open(tmp_path / "run"))[SAE]
    feature = int(view.table.find(Query())[0])
    below = page(view, feature)
    assert "no heat maps" in below
    assert "img class=" not in below
    assert 'class="patch"' not in below
    assert "Position in the picture" not in below
    assert "Show heat maps" not in below
    assert "Top pictures" in strongest(view, feature)
