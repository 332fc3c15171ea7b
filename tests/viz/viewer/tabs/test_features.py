"""The features tab in a real browser: found, walked through, read and annotated by mouse and by keys."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from commands import Serving

from saev_core.runs.run import Run
from saev_viz.run_view.feature_table import Query
from saev_viz.run_view.library import Library
from saev_viz.run_view.notes import Notes
from saev_viz.viewer.app import make_server

SAE = "topk"
BAD = "<img src=x onerror=alert(1)> ${1} {{x}}"
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::ResourceWarning")]


@pytest.fixture(scope="module")
def run(run_of_pictures: Run, tmp_path_factory: pytest.TempPathFactory, write_names: Callable[..., None]) -> Run:
    """A copy with names, ground truth and stability added."""
    path = tmp_path_factory.mktemp("features") / "run"
    shutil.copytree(run_of_pictures.path, path)
    found = Run.open(path)
    write_names(found, SAE, {1: ("wing of a bird", 0.91), 2: (BAD, 0.8)})
    rows = [{"factor": "pattern", "value": "stripes", "feature": 3, "f1": 0.93}]
    found.write_result("recovery", {SAE: {"rows": rows}})
    (path / "results" / "stability").mkdir()
    np.save(path / "results" / "stability" / f"{SAE}.npy", np.linspace(0.1, 0.9, 48).astype(np.float32))
    return found


@pytest.fixture(scope="module")
def library(run: Run) -> Library:
    return Library(run)


@pytest.fixture(scope="module")
def address(library: Library, serving: Serving) -> Iterator[str]:
    with serving(make_server(library)) as url:
        yield url


class Tab:
    """The Features tab as a user sees it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.said: list[str] = []
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.on("console", lambda message: self.said.append(message.text) if message.type in ("error", "warning") else None)
        page.on("request", lambda asked: None if asked.url.startswith((address, "data:", "blob:")) else self.said.append(asked.url))

    def open(self, feature: object) -> Tab:
        self.page.goto(f"{self.address}/?sae={SAE}&feature={feature}")
        self.page.wait_for_selector("#saev-head h2")
        self.page.wait_for_selector("#saev-list .count")
        return self

    def reads(self, selector: str, text: str) -> None:
        """Wait until something reads `text`, a regular expression."""
        script = "([selector, text]) => { const e = document.querySelector(selector); return e && new RegExp(text).test(e.innerText); }"
        self.page.wait_for_function(script, arg=[selector, text], timeout=60_000)

    def shows(self, feature: int) -> None:
        self.reads("#saev-head h2", rf"^Feature {feature}\b")

    def search(self, text: str) -> None:
        self.page.fill("#saev-search textarea, #saev-search input", text)

    @property
    def listed(self) -> list[int]:
        return [int(line.get_attribute("data-feature")) for line in self.page.locator("#saev-list .list [data-feature]").all()]


@pytest.fixture
def tab(chromium: Any, address: str) -> Iterator[Tab]:
    context = chromium.new_context(viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"])
    tab = Tab(context.new_page(), address)
    yield tab
    context.close()
    assert tab.said == []


def order(library: Library, text: str = "", **how: Any) -> list[int]:
    view = library[SAE]
    return [int(i) for i in view.table.find(Query(text, **how), view.notes.all())]


def test_a_link_opens_a_feature_with_its_top_pictures_strongest_first(tab: Tab, library: Library) -> None:
    feature = order(library)[3]
    tab.open(feature).shows(feature)
    top = library[SAE].index.top(feature)
    first = tab.page.locator("#saev-card .shots").first
    assert [int(p.get_attribute("data-picture")) for p in first.locator("[data-picture]").all()] == [t.index for t in top]
    assert first.locator("img.heat").count() == len(top)
    tab.page.wait_for_function("[...document.querySelectorAll('#saev-card .shots img')].slice(0, 4).every((i) => i.naturalWidth > 0)")


def test_feature_0_opens_by_link_too(tab: Tab) -> None:
    tab.open(0).shows(0)


@pytest.mark.parametrize("wrong", ["99999", "abc", "-3"])
def test_a_link_to_no_feature_says_which_there_are(tab: Tab, wrong: str) -> None:
    tab.open(wrong)
    tab.reads(".toast-body", f"There is no feature '{wrong}': this SAE has features 0 to 47")


def test_keys_walk_through_the_features_found(tab: Tab, library: Library) -> None:
    found = order(library)
    tab.open(found[0]).shows(found[0])
    for key, feature in (("n", found[1]), ("j", found[2]), ("p", found[1]), ("k", found[0]), ("k", found[-1])):
        tab.page.keyboard.press(key)
        tab.shows(feature)
        assert f"feature={feature}" in tab.page.url
    tab.page.wait_for_selector("#saev-list .list .on")
    tab.page.keyboard.press("r")
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("nrjk")
    assert tab.page.input_value("#saev-search textarea, #saev-search input") == "nrjk"
    tab.reads("#saev-list .list", "No feature matches")
    assert "next" in tab.page.inner_text("#saev-keys")


def test_a_filter_is_seen_and_cleared_with_one_press(tab: Tab, library: Library) -> None:
    every = order(library)
    middle = float(np.median(library[SAE].index.max[every]))
    tab.open(every[0])
    tab.search("label:stripes")
    tab.reads("#saev-list .count", rf"^{len(order(library, 'label:stripes'))} feature")
    tab.reads("#saev-list .chips", "“label:stripes”")
    tab.page.locator("#saev-filter button").first.click()
    tab.page.locator("#saev-by input").click()
    tab.page.get_by_role("option", name="Largest value").click()
    tab.reads("#saev-about", "The feature's maximum value over all patches")
    tab.page.locator("#saev-low").locator("input, textarea").fill(f"{middle:.6f}")
    tab.page.locator("#saev-add").click()
    both = order(library, "label:stripes", ranges={"max": (float(f"{middle:.6f}"), np.inf)})
    tab.reads("#saev-list .chips", "largest value at least")
    tab.reads("#saev-list .count", rf"^{len(both)} feature")
    assert tab.listed == both[:40]
    tab.page.locator("[data-clear=text]").click()
    tab.reads("#saev-list .count", rf"^{len(order(library, ranges={'max': (float(f'{middle:.6f}'), np.inf)}))} feature")
    tab.page.locator("[data-clear='range max']").click()
    tab.reads("#saev-list .count", rf"^{len(every)} feature")
    assert tab.page.locator("[data-clear]").count() == 0


def test_a_number_that_is_none_is_told_and_the_page_lives_on(tab: Tab, library: Library) -> None:
    first, second = order(library)[:2]
    tab.open(first).shows(first)
    tab.page.locator("#saev-filter button").first.click()
    tab.page.locator("#saev-low").locator("input, textarea").fill("many")
    tab.page.locator("#saev-add").click()
    tab.reads("#saev-told", "'many' is not a number; enter one such as 0.01 or 1%")
    tab.said = [said for said in tab.said if "500" not in said]  # the browser's own line about the refused call
    tab.page.get_by_label("close this message").click()
    assert tab.page.locator("#saev-told div").count() == 0
    tab.search("bogus<3")
    tab.reads("#saev-list .empty", "unknown column 'bogus'; choose one of max, mean")
    tab.search("")
    tab.reads("#saev-list .count", f"^{len(order(library))} feature")
    tab.page.locator("#saev-next").click()
    tab.shows(second)


def test_the_list_has_pages_and_sorts_by_any_number(tab: Tab, library: Library) -> None:
    tab.open(order(library)[0])
    tab.page.locator("#saev-filter button").first.click()
    tab.page.get_by_label("include features that never fire").check()
    tab.reads("#saev-list .turns", "page 1 of 2")
    tab.page.locator("#saev-sort input").click()
    tab.page.get_by_role("option", name="Stability across seeds").click()
    want = order(library, sort="stability", alive=False)
    tab.reads("#saev-list .hint", "Stability across seeds")
    tab.page.wait_for_selector(f"#saev-list .list > :first-child[data-feature='{want[0]}']")
    assert tab.listed == want[:40]
    tab.page.get_by_label("next page of the list").click()
    tab.reads("#saev-list .turns", "page 2 of 2")
    assert tab.listed == want[40:]
    tab.page.get_by_label("smallest first").check()
    tab.page.wait_for_selector(f"#saev-list .list > :first-child[data-feature='{want[-1]}']")


def test_a_note_saves_itself_survives_a_reload_and_is_found(tab: Tab, run: Run, library: Library) -> None:
    first, second = order(library)[4:6]
    tab.open(first).shows(first)
    tab.page.fill("#saev-note textarea", "a Zebra's back")
    tab.page.locator(f"#saev-list [data-feature='{second}']").click()
    tab.shows(second)
    tab.page.wait_for_function("document.querySelector('#saev-note textarea').value === ''")
    assert Notes(run.path / "notes" / f"{SAE}.json").all() == {first: "a Zebra's back"}
    tab.open(first).shows(first)
    tab.page.wait_for_function("document.querySelector('#saev-note textarea').value === \"a Zebra's back\"")
    tab.search("zebra")
    tab.reads("#saev-list .count", "^1 feature ")
    assert tab.listed == [first]
    tab.page.fill("#saev-note textarea", "a tiger")
    tab.reads("#saev-note [role=status]", "^not saved yet$")
    tab.page.locator("#saev-note button").click()
    tab.reads("#saev-note [role=status]", "^saved$")
    assert Notes(run.path / "notes" / f"{SAE}.json").all() == {first: "a tiger"}


def test_two_windows_writing_one_note_lose_nothing(tab: Tab, chromium: Any, address: str, run: Run, library: Library) -> None:
    feature = order(library)[7]
    other = Tab(chromium.new_context().new_page(), address).open(feature)
    tab.open(feature).shows(feature)
    other.shows(feature)
    for window, text in ((other, "first thought"), (tab, "second thought")):
        window.page.fill("#saev-note textarea", text)
        window.page.locator("#saev-note button").click()
        window.reads("#saev-note [role=status]", "^saved")
    kept = Notes(run.path / "notes" / f"{SAE}.json").all()[feature]
    assert "first thought" in kept
    assert "second thought" in kept
    tab.reads("#saev-note [role=status]", "merged with changes from another window")
    assert tab.page.input_value("#saev-note textarea") == kept
    other.page.context.close()


def test_samples_go_from_the_strongest_to_the_weakest_and_show_their_heat_when_pointed_at(tab: Tab, library: Library) -> None:
    view = library[SAE]
    feature = max(range(48), key=lambda i: len(view.index.samples(i)))
    samples = view.index.samples(feature)
    assert len(samples) >= 10
    tab.open(feature).shows(feature)
    rows = tab.page.locator(".tenth")
    assert rows.count() == 10
    shots = rows.locator("[data-picture]")
    assert sorted(int(shot.get_attribute("data-picture")) for shot in shots.all()) == sorted(sample.index for sample in samples)
    values = [float(text) for text in rows.locator("figcaption b").all_inner_texts()]
    assert values == sorted(values, reverse=True)
    assert rows.locator(".patch").count() == len(samples)
    assert rows.locator("img.heat[src]").count() == 0
    shots.first.hover()
    tab.page.wait_for_function("document.querySelector('.tenth img.heat:not([hidden])')?.naturalWidth > 0")
    tab.page.get_by_role("button", name="Show heat maps").click()
    tab.page.locator(".tenth").last.scroll_into_view_if_needed()
    tab.page.wait_for_function("[...document.querySelectorAll('.tenth:last-child img.heat')].every((i) => !i.hidden && i.naturalWidth > 0)")
    tab.page.get_by_role("button", name="Hide heat maps").click()
    assert tab.page.locator(".tenth img.heat:not([hidden])").count() == 0


def test_what_is_listed_beside_a_feature_opens_and_a_picture_opens_in_its_tab(tab: Tab, library: Library) -> None:
    feature = order(library)[2]
    nearest = library[SAE].nearest(feature)[0][0]
    tab.open(feature).shows(feature)
    card = tab.page.locator(".card", has_text="Nearest features")
    card.locator("[data-feature]").first.click()
    tab.shows(nearest)
    assert tab.page.locator(".card", has_text="Labels of the pictures").locator("tbody tr").count() >= 1
    tab.page.locator("#saev-card [data-picture]").first.click()
    tab.page.wait_for_function("document.querySelector('[role=tab][aria-selected=true]').innerText === 'Image'")


def test_names_truth_and_stability_are_told_and_no_name_is_markup(tab: Tab) -> None:
    tab.open(1).reads("#saev-head h2", "wing of a bird")
    tab.reads("#saev-head .told", "score 0.91")
    tab.open(3).reads("#saev-head .told", r"detects pattern: stripes \(F1 0.93\)")
    assert "Stability across seeds" in tab.page.inner_text("#saev-head .numbers")
    tab.open(2).reads("#saev-head h2", re.escape(BAD))
    assert tab.page.locator("#saev-head h2 img").count() == 0


def test_a_link_is_copied(tab: Tab, library: Library) -> None:
    feature = order(library)[1]
    tab.open(feature).shows(feature)
    tab.page.get_by_role("button", name="Copy link").click()
    tab.reads("[data-copy]", "Copied")
    assert tab.page.evaluate("navigator.clipboard.readText()") == f"{tab.address}/?sae={SAE}&feature={feature}"


def test_a_number_typed_opens_that_feature_even_a_filtered_one(tab: Tab, library: Library) -> None:
    first, last = order(library)[0], order(library)[-1]
    tab.open(first).shows(first)
    tab.search(f"#{last}")
    tab.page.keyboard.press("Enter")
    tab.shows(last)
    tab.search("4711")
    tab.reads("#saev-list .empty", "There is no feature 4711: topk has features 0 to 47")


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_scrolls_sideways_and_the_list_is_reached_by_keys(tab: Tab, library: Library, width: int) -> None:
    tab.page.set_viewport_size({"width": width, "height": 900})
    feature = order(library)[0]
    tab.open(feature).shows(feature)
    assert tab.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    line = tab.page.locator("#saev-list .list [data-feature]").nth(1)
    line.focus()
    tab.page.keyboard.press("Enter")
    tab.shows(order(library)[1])


def test_a_box_on_the_map_of_all_features_is_a_filter_that_one_press_clears(tab: Tab, library: Library) -> None:
    tab.page.goto(f"{tab.address}/?sae={SAE}")
    canvas = tab.page.locator("#saev-map canvas")
    canvas.wait_for(state="visible")
    tab.page.wait_for_function("document.querySelector('#saev-map canvas').width > 300")
    box = canvas.bounding_box()
    tab.page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.1 * box["height"])
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.8 * box["height"], steps=4)
    tab.page.mouse.up()
    tab.page.get_by_role("tab", name="Features").click()
    tab.reads("#saev-list .chips", "selected on the map: frequency .* to .*, mean value .* to ")
    index = library[SAE].index
    inside = tab.listed
    assert 0 < len(inside) < len(order(library))
    ends = re.findall(r"([\d.]+) to ([\d.]+)", tab.page.inner_text("[data-clear=box]"))
    for values, (low, high) in zip((index.frequency, index.mean), ends, strict=True):
        assert float(values[inside].min()) >= float(low) * 0.99
        assert float(values[inside].max()) <= float(high) * 1.01
    tab.page.locator("[data-clear=box]").click()
    tab.reads("#saev-list .count", rf"^{len(order(library))} feature")
