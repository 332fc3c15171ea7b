"""The image tab: which features fire where on a recorded picture and on an upload, and the pane that shows it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Serving
from PIL import Image

from saev_core.activations.sources.stored import StoreSource
from saev_core.activations.store.store import ActivationStore
from saev_core.cli import main
from saev_core.config.base import PluginRef
from saev_core.config.stages import ReadConfig
from saev_core.errors import RunError
from saev_core.features.index import FeatureIndex
from saev_core.models.base import VisionModel, load_model
from saev_core.runs.run import Run
from saev_core.sae.base import make_sae
from saev_core.sae.checkpoint import Checkpoint, ref_of
from saev_viz.run_view.library import Library
from saev_viz.run_view.picture_codes import Seen, new, recorded
from saev_viz.viewer.app import make_server


@pytest.fixture(scope="module")
def layers(run_of_pictures: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, ActivationStore, VisionModel]:
    """The same pictures recorded at two layers."""
    path = tmp_path_factory.mktemp("layers") / "run"
    root = run_of_pictures.config.dataset.options["root"]
    command = ["record", "--out", path, "--model", "tiny", "--dataset", f"image-folder:{root}"]
    command += ["--record-layers", "0", "-1", "--dtype", "float32"]
    assert main(list(map(str, command))) == 0
    run = Run.open(path)
    return run, ActivationStore.open(run.store_url), load_model(run.config.model, "cpu")


def checkpoint_of(store: ActivationStore, variant: str = "topk", **read: Any) -> Checkpoint:
    """An untrained SAE on what `read` picks."""
    source = StoreSource(store, ReadConfig(stream="resid", **read))
    torch.manual_seed(0)
    sae = make_sae(PluginRef(name=variant, options={"d_sae": 32, "k": 3}), source.d_model)
    return Checkpoint(sae, source.norm, ref_of(sae), source.site, source.read, {"fingerprint": store.meta.fingerprint}, {}, {})


READS = [
    {"layer": -1},
    {"layer": -1, "clamp": 0.5},
    {"layer": -1, "tokens": "mean"},
    {"layer": "mean"},
    {"layer": "all"},
    {"layer": "all", "tokens": "mean"},
]


@pytest.mark.parametrize("read", READS, ids=str)
def test_a_picture_seen_by_the_model_is_the_picture_that_was_recorded(
    layers: tuple[Run, ActivationStore, VisionModel], run_of_pictures: Run, read: dict[str, Any]
) -> None:
    _, store, model = layers
    checkpoint = checkpoint_of(store, **read)
    for index in (0, 3):
        held = recorded(checkpoint, store, index)
        again = new(checkpoint, model, Library(run_of_pictures).pictures.original(index), store.sites)
        assert held.crop == pytest.approx(again.crop, rel=1e-6)
        assert held.size == again.size
        assert (held.about == "") == (read.keys() <= {"layer", "clamp"} and isinstance(read["layer"], int))
        cells = 1 if read.get("tokens") else store.grid.n_patches
        assert held.grid.n_patches == again.grid.n_patches == cells == len(held.offsets) - 1
        assert len(held.feature) > 0
        for feature in range(32):
            assert np.abs(held.map(feature) - again.map(feature)).max() < 1e-3


def test_joined_layers_are_looked_at_together(layers: tuple[Run, ActivationStore, VisionModel], run_of_pictures: Run) -> None:
    _, store, model = layers
    checkpoint = checkpoint_of(store, layer=tuple(site.layer for site in store.sites))
    held, again = recorded(checkpoint, store, 1), new(checkpoint, model, Library(run_of_pictures).pictures.original(1))
    assert "layers 0 and" in held.about
    assert all(np.abs(held.map(feature) - again.map(feature)).max() < 1e-3 for feature in range(32))


def test_of_all_layers_each_patch_has_the_largest_value(layers: tuple[Run, ActivationStore, VisionModel]) -> None:
    _, store, _ = layers
    both = checkpoint_of(store, layer="all")
    held = recorded(both, store, 2)
    one = ReadConfig(layer=0, stream="resid")
    each = [
        recorded(
            Checkpoint(both.sae, both.norm, both.ref, str(site), one.model_copy(update={"layer": site.layer}), both.store, {}, {}), store, 2
        )
        for site in store.sites
    ]
    for feature in range(32):
        assert np.array_equal(held.map(feature), np.maximum(each[0].map(feature), each[1].map(feature)))


def test_an_image_that_is_not_there_is_told(layers: tuple[Run, ActivationStore, VisionModel]) -> None:
    _, store, model = layers
    checkpoint = checkpoint_of(store, layer=-1)
    with pytest.raises(RunError, match="this run has images 0 to 23"):
        recorded(checkpoint, store, 24)
    with pytest.raises(RunError, match="without the run's store"):
        new(checkpoint_of(store, layer="all"), model, Image.new("RGB", (80, 60)))


def test_the_strongest_features_come_nearest_to_their_usual_upper_end() -> None:
    from saev_core.types import Box, Grid

    seen = Seen((4, 4), Box(0, 0, 4, 4), Grid(1, 2, 2), np.array([0, 2, 3]), np.array([0, 1, 2]), np.array([3.0, 2.0, 1.0], np.float32))
    assert seen.strongest(np.array([6.0, 2.0, 10.0])) == [1, 0, 2]
    assert seen.map(1).tolist() == [[2.0, 0.0]]


@pytest.fixture(scope="module")
def opened(run_of_pictures: Run, serving: Serving, chromium: Any) -> Iterator[tuple[Any, str, list[str]]]:
    """The tab in a browser, its address, and everything the console said."""
    said: list[str] = []
    with serving(make_server(Library(run_of_pictures))) as address:
        page = chromium.new_page(viewport={"width": 1280, "height": 900})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(f"{address}/?tab=image")
        page.locator("#saev-look .list button").first.wait_for()
        yield page, address, said
        page.close()


def caption(page: Any, text: str) -> None:
    page.locator("#saev-look .caption", has_text=text).wait_for()


def numbers(page: Any) -> list[int]:
    """Features in the list beside the picture."""
    return [
        int(text) for text in page.eval_on_selector_all("#saev-look .list [data-feature]", "all => all.map(one => one.dataset.feature)")
    ]


def test_pointing_at_a_patch_tells_what_fires_there_and_pressing_keeps_it(opened: Any, run_of_pictures: Run) -> None:
    page, _, said = opened
    view = Library(run_of_pictures)["topk"]
    seen = view.seen(0)
    caption(page, "Image 0 · dots")
    assert "strongest features" in page.inner_text("#saev-look .what")
    for patch in (9, 20):
        page.hover(f'[data-patch="{patch}"]')
        row, col = divmod(patch, seen.grid.cols)
        assert f"row {row + 1}, column {col + 1}" in page.inner_text("#saev-look .what")
        assert set(numbers(page)) == set(seen.feature[seen.offsets[patch] : seen.offsets[patch + 1]].tolist())
    page.click('[data-patch="20"]')
    kept = numbers(page)
    page.hover('[data-patch="3"]')
    assert numbers(page) == kept
    page.click('[data-patch="20"]')
    page.mouse.move(5, 5)
    assert "strongest features" in page.inner_text("#saev-look .what")
    assert said == []


def test_the_keyboard_walks_patches_and_features(opened: Any) -> None:
    page, _, _ = opened
    page.focus('[data-patch="0"]')
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    assert "row 2, column 2" in page.inner_text("#saev-look .what")
    page.keyboard.press("Enter")
    assert "pinned" in page.inner_text("#saev-look .what")
    page.keyboard.press("Enter")
    page.keyboard.press("ArrowUp")
    assert "row 1, column 2" in page.inner_text("#saev-look .what")
    page.mouse.move(5, 5)


def test_a_feature_shows_its_heat_map_here_and_on_its_own_top_pictures(opened: Any, run_of_pictures: Run) -> None:
    page, _, _ = opened
    index = FeatureIndex.open(run_of_pictures.features_path("topk"))
    page.locator("#saev-look .list button").nth(1).click()
    feature = int(page.get_attribute("#saev-look .list button.on", "data-feature"))
    page.get_by_role("heading", name=f"Feature {feature}").first.wait_for()
    drawn = page.evaluate(
        """() => { const c = document.querySelector("#saev-look canvas");
        return [...c.getContext("2d").getImageData(0, 0, c.width, c.height).data].filter((v, i) => i % 4 === 3 && v > 0).length; }"""
    )
    assert drawn == int((Library(run_of_pictures)["topk"].seen(0).map(feature) > 0).sum())
    shown = page.eval_on_selector_all("#saev-others [data-picture]", "all => all.map(one => +one.dataset.picture)")
    assert shown == [top.index for top in index.top(feature, 12)]
    before = page.evaluate("getComputedStyle(document.querySelector('#saev-look canvas')).opacity")
    page.evaluate("(x => { x.value = 20; x.dispatchEvent(new Event('input')); })(document.querySelector('#saev-look .heat input'))")
    assert page.evaluate("getComputedStyle(document.querySelector('#saev-look canvas')).opacity") == "0.2" != before
    # One of its top pictures, opened here: the feature stays chosen.
    page.locator("#saev-others [data-picture]").nth(1).click()
    caption(page, f"Image {shown[1]} ·")
    assert page.get_attribute("#saev-look .list button.on", "data-feature") == str(feature)


def test_pictures_are_chosen_by_number_in_turn_and_by_label(opened: Any) -> None:
    page, _, _ = opened
    box = page.locator("#saev-image-number input")
    box.fill("6")
    caption(page, "Image 6 · dots")
    page.locator("#saev-image-next").click()
    caption(page, "Image 7 ·")
    page.locator("#saev-image-previous").click()
    caption(page, "Image 6 ·")
    box.fill("99")
    page.get_by_text("image 99: this run has images 0 to 23.").first.wait_for()
    page.locator("#saev-image-label input").click()
    page.get_by_role("option", name="stripes (12)").click()
    caption(page, "stripes")
    page.locator("#saev-image-random").click()
    page.wait_for_timeout(1000)
    caption(page, "stripes")


def test_a_picture_of_ones_own_is_shown_and_what_is_none_is_told(opened: Any, tmp_path: Path) -> None:
    page, address, _ = opened
    Image.new("RGB", (300, 100), "teal").save(tmp_path / "mine.png")
    (tmp_path / "letter.png").write_bytes(b"no picture at all")
    page.set_input_files("#saev-look input[type=file]", tmp_path / "letter.png")
    page.get_by_text("letter.png cannot be shown: unknown image format.").wait_for()
    page.set_input_files("#saev-look input[type=file]", tmp_path / "mine.png")
    caption(page, "mine.png · your picture, 300 × 100 pixels · the pale part is outside the model's input")
    assert not page.is_visible("#saev-look .trouble")
    assert page.get_attribute("#saev-look .seen img", "src").startswith("/saev/upload/")
    assert numbers(page)
    page.locator("#saev-image-next").click()
    caption(page, "Image 0 ·" if page.input_value("#saev-image-label input") == "any" else "Image")
    assert address in page.url


def test_the_tab_fits_a_phone_and_opens_a_picture_by_link(opened: Any, chromium: Any) -> None:
    _, address, _ = opened
    page = chromium.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    page.goto(f"{address}/?image=5")
    caption(page, "Image 5 ·")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.tap('[data-patch="9"]')
    assert "pinned" in page.inner_text("#saev-look .what")
    left, right = page.evaluate("(r => [r.left, r.right])(document.querySelector('#saev-look .seen').getBoundingClientRect())")
    assert 0 <= left < right <= 390
    page.close()
