"""The overview in a real browser: training facts, the sweep, and the map by mouse, touch and keyboard."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from commands import Serving

from saev_core.runs.run import Run
from saev_viz.html.overview import active, histogram, points, spread, sweep, trained
from saev_viz.run_view.library import Library
from saev_viz.viewer.app import make_server

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*(no_silent_downcasting|copy keyword)"),
]


@pytest.fixture(scope="module")
def library(sweep_of_pictures: Run) -> Library:
    return Library(sweep_of_pictures)


def test_it_says_what_was_trained_on_what_and_how_good_it_is(library: Library) -> None:
    view = library["topk-k4"]
    text = re.sub(r"<[^>]+>", " ", trained(view))
    for said in ("tiny", "image-folder", "resid.", "topk, 48 features", "24 images", "seed 0"):
        assert said in text
    for key in ("nmse", "l0", "dead", "almost_dead", "dense"):
        assert key in view.card
    for said in ("Reconstruction error (NMSE)", "Almost dead", f"{view.card['n_dense']} of 48"):
        assert said in text


def test_a_sweep_shows_every_sae_the_sparsest_first_and_says_how_to_index_the_others(library: Library) -> None:
    page = sweep(library["topk-k4"])
    body = page[page.index("<tbody>") :]
    names = re.findall(r'<button data-sae="([^"]+)"', body)
    assert sorted(names) == library.run.sae_names
    assert len(names) == 5
    cards = {name: point["l0"] for name in names for point in library.run.result("pareto")["points"] if point["name"] == name}
    assert [cards[name] for name in names] == sorted(cards.values())
    assert page.count('class="bare"') == len(names) - len(library.own) > 0
    assert "--only NAME" in page
    for name in names:
        assert page.count(f' data-sae="{name}"') == 3  # a wide chart, a narrow one, the table
    assert page.count("data-on") == 2


def test_one_sae_alone_has_no_sweep(run_of_pictures: Run) -> None:
    assert sweep(Library(run_of_pictures)["topk"]) == ""


def test_active_features_are_counted_on_patches_and_on_images(library: Library) -> None:
    view = library["topk-k4"]
    page = spread(view)
    for said in ("Exactly 4 on every patch", "L0 per image", "over 24 images"):
        assert said in page
    dead = int((view.index.frequency == 0).sum())
    assert f"<b>{dead}</b> never fire" in page
    relu = library["relu"].index
    text = active(relu.patch_active, "x", "patch", "patches")
    mean = float((relu.patch_active * np.arange(len(relu.patch_active))).sum() / relu.patch_active.sum())
    assert float(re.findall(r"mean ([\d.]+)", text)[0]) == pytest.approx(mean, rel=0.01)
    assert active(np.zeros(1, np.int64), "x", "patch", "patches") == ""


def test_bars_of_active_features_hold_every_patch_once() -> None:
    counts = np.random.default_rng(0).integers(0, 9, 1000)
    counts[:20] = 0
    heights = [float(h) for h in re.findall(r"v-([\d.]+)h", active(counts, "x", "patch", "patches"))]
    assert 40 <= len(heights) <= 48
    assert max(heights) == pytest.approx(106)
    one = histogram(np.array([3.0]), "x", "1", "2", "what", "told", 0.5)
    assert one.count("v-106.0") == 1


def test_where_nothing_fires_there_is_no_map_and_no_error(library: Library) -> None:
    view = Library(library.run)["relu"]
    view.index.frequency = np.zeros(48)
    view.index.mean = np.zeros(48, np.float32)
    assert points(view, None) == ""
    assert "<b>48</b> never fire" in spread(view)


@pytest.fixture(scope="module")
def address(library: Library, serving: Serving) -> Iterator[str]:
    with serving(make_server(library)) as url:
        yield url


@pytest.fixture
def page(chromium: Any, address: str) -> Iterator[Any]:
    opened = chromium.new_page(viewport={"width": 1280, "height": 900})
    yield from ready(opened, address)


def ready(opened: Any, address: str) -> Iterator[Any]:
    said: list[str] = []
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.goto(f"{address}/?tab=overview")
    opened.wait_for_function("document.querySelector('#saev-map canvas')?.width > 300 && document.querySelector('#saev-facts .tiles')")
    yield opened
    opened.context.close() if opened.context.pages == [opened] else opened.close()
    assert not said


def chosen(page: Any) -> str:
    page.wait_for_function("document.querySelector('.ranges .chosen').textContent.includes('selected')")
    return str(page.locator(".ranges .chosen").inner_text())


def drag(page: Any, shares: tuple[float, float, float, float]) -> None:
    canvas = page.locator("#saev-map canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    left, right = (box["x"] + share * box["width"] for share in shares[:2])
    top, bottom = (box["y"] + share * box["height"] for share in shares[2:])
    page.mouse.move(left, top)
    page.mouse.down()
    page.mouse.move((left + right) / 2, (top + bottom) / 2)
    page.mouse.move(right, bottom)
    page.mouse.up()


@pytest.mark.slow
def test_a_box_on_the_map_filters_the_other_tabs_until_it_is_cleared(page: Any, library: Library) -> None:
    drag(page, (0.3, 0.98, 0.02, 0.6))
    n = int(chosen(page).split()[0])
    assert 0 < n < int((library[library.first].index.frequency > 0).sum())
    page.locator("[data-go]").click()
    page.wait_for_selector("#saev-list .count:visible")
    page.wait_for_function(f"document.querySelector('#saev-list .count').textContent.startsWith('{n} ')")
    page.get_by_role("tab", name="Image").click()
    page.wait_for_function("document.querySelector('#saev-look .what').textContent.includes('selected on the map')", timeout=60_000)
    page.get_by_role("tab", name="Overview").click()
    page.locator("#saev-map [data-clear]").click()
    page.wait_for_function("document.querySelector('.ranges .chosen').textContent === ''")
    assert page.locator("[name=x0]").input_value() == ""


@pytest.mark.slow
def test_ranges_can_be_typed_and_a_wrong_one_is_said(page: Any, library: Library) -> None:
    index = library[library.first].index
    middle = float(np.median(index.frequency[index.frequency > 0]))
    page.locator("[name=x0]").fill(f"{100 * middle:.6f}")
    page.locator("[name=x0]").press("Enter")
    n = int((index.frequency[index.mean > 0] >= round(100 * middle, 6) / 100 * (1 - 1e-5)).sum())
    assert abs(int(chosen(page).split()[0]) - n) <= 1
    page.locator("[name=y0]").fill("many")
    page.locator("[name=y0]").press("Enter")
    page.wait_for_function("document.querySelector('.ranges .chosen').textContent.includes('Enter numbers')")
    page.locator("[name=y0]").fill("9")
    page.locator("[name=y1]").fill("1")
    page.locator("[name=y1]").press("Enter")
    page.wait_for_function("document.querySelector('.ranges .chosen').textContent.includes('smaller one')")


@pytest.mark.slow
def test_arrow_keys_walk_the_map_and_enter_opens_the_feature(page: Any) -> None:
    page.locator("#saev-map canvas").focus()
    tips = set()
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft", "ArrowDown"):
        page.keyboard.press(key)
        tips.add(page.locator(".map .tip").inner_text())
    assert len(tips) > 2
    number = page.locator(".map .tip").inner_text().split(":")[0].removeprefix("feature ")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(rf"feature={number}\b"))


@pytest.mark.slow
def test_a_row_or_a_point_switches_the_sae_and_one_without_index_says_how_to_make_it(page: Any, library: Library) -> None:
    other = next(name for name in library.own if name != library.first)
    bare = next(name for name in library.run.sae_names if name not in library.own)
    page.locator(f'#saev-sweep tbody [data-sae="{other}"]').click()
    page.wait_for_selector(f'#saev-sweep tr.on [data-sae="{other}"]')
    page.locator(f'#saev-sweep .broad [data-sae="{library.first}"]').click()
    page.wait_for_selector(f'#saev-sweep tr.on [data-sae="{library.first}"]')
    page.locator(f'#saev-sweep tbody [data-sae="{bare}"]').click()
    page.get_by_text(f"--only {bare}, then restart").wait_for()
    assert page.locator(f'#saev-sweep tr.on [data-sae="{library.first}"]').count() == 1


@pytest.mark.slow
def test_on_a_phone_the_page_is_not_too_wide_and_a_finger_draws_a_box_only_when_told_to(chromium: Any, address: str) -> None:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for opened in ready(context.new_page(), address):
        assert opened.evaluate("document.documentElement.scrollWidth") == 390
        canvas = opened.locator("#saev-map canvas")
        assert canvas.evaluate("(c) => getComputedStyle(c).touchAction") == "pan-y"
        opened.locator("[data-touch]").click()
        assert canvas.evaluate("(c) => getComputedStyle(c).touchAction") == "none"
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        session = context.new_cdp_session(opened)
        at = [{"x": box["x"] + s * box["width"], "y": box["y"] + t * box["height"]} for s, t in ((0.25, 0.05), (0.6, 0.5), (0.95, 0.8))]
        for kind, place in (("touchStart", at[:1]), ("touchMove", at[1:2]), ("touchMove", at[2:]), ("touchEnd", [])):
            session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": place})
        chosen(opened)
        assert canvas.evaluate("(c) => getComputedStyle(c).touchAction") == "pan-y"
