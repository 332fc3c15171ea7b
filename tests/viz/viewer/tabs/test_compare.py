"""Two SAEs side by side, of one run and of two, reckoned anew with numpy and looked at in a real browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Serving
from PIL import Image

from saev_core.cli import main
from saev_core.errors import RunError
from saev_core.runs.run import Run
from saev_viz.html.comparison import counterparts, for_concept, on_picture, only, row, same_pictures, selected, twins
from saev_viz.run_view.library import Library
from saev_viz.viewer.app import make_server

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*(no_silent_downcasting|copy keyword)"),
]


@pytest.fixture(scope="module")
def library(run_of_pictures: Run, run_of_another_model: Run) -> Library:
    return Library(run_of_pictures, "", [run_of_another_model])


def test_saes_of_another_run_are_named_with_it_and_their_pictures_are_found_under_it(library: Library) -> None:
    assert library.names == ["topk", "another:topk"]
    assert library.own == ["topk"]
    other = library["another:topk"]
    assert (other.key, other.name, library["topk"].key) == ("another:topk", "topk", "topk")
    assert other.library is library.others[0]
    assert other.library.src(3, 96) == "/saev/image/3?px=96&run=1"
    assert library.src(3, 96) == "/saev/image/3?px=96"
    assert same_pictures(library["topk"], other)


def test_two_runs_of_one_name_are_told_apart_and_one_without_index_is_refused(run_of_pictures: Run, copied: Run, tmp_path: Path) -> None:
    assert Library(run_of_pictures, "", [copied]).names == ["topk", "run-1:topk"]
    copied.features_path("topk").rename(tmp_path / "away.zarr")
    with pytest.raises(RunError, match="no feature index yet"):
        Library(run_of_pictures, "", [copied])


def test_the_same_feature_over_there_is_the_one_with_the_most_top_pictures_in_common(library: Library) -> None:
    a, b = library["topk"], library["another:topk"]
    for feature in np.flatnonzero(a.table.alive)[:8].tolist():
        mine = set(a.index.top_index[feature].tolist()) - {-1}
        want = {}
        for other in range(b.index.d_sae):
            theirs = set(b.index.top_index[other].tolist()) - {-1}
            if mine & theirs:
                want[other] = len(mine & theirs) / len(mine | theirs)
        found = counterparts(a, feature, b, 48)
        assert {f: pytest.approx(overlap) for f, overlap, _ in found} == want
        assert [overlap for _, overlap, _ in found] == sorted(want.values(), reverse=True)
        assert found[0][2] == mine & set(b.index.top_index[found[0][0]].tolist())
    assert feature not in [f for f, _, _ in counterparts(a, feature, a)]
    own, there = twins(a, feature, b)
    assert f'data-feature="{feature}"' in own
    assert f'data-feature="{counterparts(a, feature, b)[0][0]}"' in there


def test_a_dead_feature_has_no_counterpart_and_no_pictures(library: Library) -> None:
    view = library["topk"]
    dead = np.flatnonzero(view.index.frequency == 0)
    if len(dead) == 0:
        pytest.skip("no feature of this run is dead")
    assert counterparts(view, int(dead[0]), library["another:topk"]) == []
    assert "never fires on the indexed pictures" in row(view, int(dead[0]), "", twins=False)


def test_features_of_a_concept_come_by_the_lift_of_its_label(library: Library) -> None:
    view = library["topk"]
    page = for_concept(view, "Stripes", None, twins=True)
    found = [int(f) for f in re.findall(r'data-feature="(\d+)"', page)]
    want = [f for f, _ in view.index.with_label(view.library.classes.index("stripes"))]
    assert found == want[:12]
    keep = np.zeros(48, bool)
    keep[want[3:5]] = True
    assert [int(f) for f in re.findall(r'data-feature="(\d+)"', for_concept(view, "stripes", keep, twins=True))] == want[3:5]
    nothing = for_concept(view, "a <b>walrus</b>", None, twins=True)
    assert "not one of the 2 labels" in nothing
    assert "--names" in nothing
    assert "<b>walrus" not in nothing


def test_a_box_on_the_map_leaves_only_its_features_on_a_picture(library: Library) -> None:
    view = library["topk"]
    seen = view.seen(2)
    middle = float(np.median(view.index.frequency[view.index.frequency > 0]))
    keep = selected(view, {"frequency": [middle, 1.0]})
    assert keep is not None
    np.testing.assert_array_equal(keep, view.index.frequency >= middle)
    some = only(seen, keep)
    for feature in np.unique(seen.feature).tolist():
        np.testing.assert_array_equal(some.map(feature), seen.map(feature) * keep[feature])
    shown = [int(f) for f in re.findall(r'data-feature="(\d+)"', on_picture(view, some))]
    assert shown
    assert keep[shown].all()
    assert only(seen, None) is seen
    assert "selected on the map" in some.about
    assert "No feature" in on_picture(view, only(seen, np.zeros(48, bool)))


def test_with_something_that_is_not_a_run_says_so(run_of_pictures: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(run_of_pictures.path), "--with", str(tmp_path / "nowhere")]) == 1
    assert "nowhere does not exist" in capsys.readouterr().err


@pytest.fixture(scope="module")
def address(library: Library, serving: Serving) -> Iterator[str]:
    with serving(make_server(library)) as url:
        yield url


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    opened = chromium.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(f"{address}/?tab=compare")
    opened.wait_for_selector("#saev-pane-1 .grid button", timeout=60_000)
    opened.wait_for_selector("#saev-strong-1 .twin")
    yield opened
    opened.close()
    assert not said


@pytest.mark.slow
def test_pointing_at_a_patch_marks_the_place_on_the_other_picture_through_both_crops(page: Any, library: Library) -> None:
    views = [library["topk"], library["another:topk"]]
    seen = [view.seen(0) for view in views]
    assert (seen[0].grid.rows, seen[0].crop) != (seen[1].grid.rows, seen[1].crop)
    for patch in (5, 67, 143):
        page.locator("#saev-pane-0 .grid button").nth(patch).hover()
        r, c = divmod(patch, seen[0].grid.cols)
        x = seen[0].crop.left + (c + 0.5) / seen[0].grid.cols * (seen[0].crop.right - seen[0].crop.left)
        y = seen[0].crop.top + (r + 0.5) / seen[0].grid.rows * (seen[0].crop.bottom - seen[0].crop.top)
        col = int(np.floor((x - seen[1].crop.left) / (seen[1].crop.right - seen[1].crop.left) * seen[1].grid.cols))
        line = int(np.floor((y - seen[1].crop.top) / (seen[1].crop.bottom - seen[1].crop.top) * seen[1].grid.rows))
        inside = 0 <= col < seen[1].grid.cols and 0 <= line < seen[1].grid.rows
        marked = page.locator("#saev-pane-1 .grid button.on")
        if inside:
            assert int(marked.get_attribute("data-patch")) == line * seen[1].grid.cols + col
            assert f"row {line + 1}, column {col + 1}" in page.locator("#saev-pane-1 .what").inner_text()
        else:
            assert marked.count() == 0
    page.locator("#saev-sides").hover()
    assert page.locator(".saev-pane .grid button.on").count() == 0


@pytest.mark.slow
def test_a_feature_leads_to_its_counterpart_and_to_its_own_page_in_the_other_run(page: Any, library: Library) -> None:
    feature = int(page.locator("#saev-strong-0 [data-twin]").first.get_attribute("data-twin"))
    page.locator("#saev-strong-0 [data-twin]").first.click()
    best = counterparts(library["topk"], feature, library["another:topk"])[0][0]
    found = page.locator("#saev-twin-1 [data-feature]").first
    found.wait_for()
    assert found.get_attribute("data-feature") == str(best)
    pictures = page.locator("#saev-twin-1 .thumbs img")
    assert pictures.first.get_attribute("src").endswith("run=1")
    found.click()
    page.wait_for_url(re.compile(rf"sae=another%3Atopk&feature={best}\b"))
    page.wait_for_selector(f"#saev-head h2:has-text('Feature {best}')")


@pytest.mark.slow
def test_a_concept_is_chosen_from_the_labels_and_a_picture_brought_is_seen_by_both(page: Any, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8)).save(tmp_path / "mine.png")
    page.set_input_files("#saev-pane-0 input[type=file]", tmp_path / "mine.png")
    for side in (0, 1):
        page.wait_for_function(f"document.querySelector('#saev-pane-{side} .caption').textContent.includes('mine.png')", timeout=60_000)
    page.get_by_role("tab", name="Concept", exact=True).click()
    box = page.locator("#saev-concept input")
    box.fill("stripes")
    box.press("Enter")
    for side in (0, 1):
        page.wait_for_selector(f"#saev-concept-{side} .twin")


@pytest.mark.slow
def test_an_sae_alone_says_what_to_compare_with(run_of_pictures: Run, serving: Serving, chromium: Any) -> None:
    with serving(make_server(Library(run_of_pictures))) as alone:
        opened = chromium.new_page()
        opened.goto(f"{alone}/?tab=compare")
        opened.get_by_text("--with OTHER_RUN").wait_for()
        opened.close()
