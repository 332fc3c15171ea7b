"""The report of a small real run, opened in a real browser if available."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from saev_core.activations.recording.record import record
from saev_core.activations.store.store import ActivationStore
from saev_core.config.base import PluginRef
from saev_core.config.run import RunConfig
from saev_core.config.stages import IndexConfig, ReadConfig, RecordConfig, ReportConfig
from saev_core.data.dataset import load_dataset
from saev_core.errors import RunError
from saev_core.features.build import index_features
from saev_core.features.index import FeatureIndex
from saev_core.models.base import VisionModel
from saev_core.models.transform import ResizeCrop
from saev_core.runs.run import Run
from saev_core.sae.base import make_sae
from saev_core.sae.checkpoint import Checkpoint, ref_of
from saev_core.sae.norm import Norm
from saev_core.types import Grid
from saev_viz.drawing.charts import number, percent
from saev_viz.drawing.heat_maps import sheet
from saev_viz.report.contents import Contents, read_curves
from saev_viz.report.write import feature_rows, write_report
from saev_viz.report.write import page as page_of
from saev_viz.run_view.choose_features import choose

SHAPES = [(300, 200), (200, 300), (240, 240), (420, 180), (150, 330), (256, 192)]
GRID = Grid(8, 8, patch_px=8)


class Light(VisionModel):
    """Token = mean colour of its patch; a short-side resize and a centre crop before it, as most models have."""

    def __init__(self) -> None:
        super().__init__()
        self.grid, self.d_model = GRID, 3
        self.transform = ResizeCrop(64, (64, 64))
        self.blocks = nn.ModuleList([nn.AvgPool2d(8)])
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Any:
        return self.blocks[0](images)


def paint(folder: Path) -> dict[int, tuple[float, float]]:
    """Dark pictures of many shapes, each with one bright square inside the part that a centre crop keeps.

    Returns:
        Centre of the square, as shares of width and height, by image number.
    """
    rng = np.random.default_rng(0)
    places = {}
    for i in range(18):
        width, height = SHAPES[i % len(SHAPES)]
        side = min(width, height)
        left, top, size = (width - side) / 2, (height - side) / 2, side / 8
        row, col = (int(v) for v in rng.integers(1, 7, 2))
        x, y = left + col * size, top + row * size
        pixels = rng.integers(0, 30, (height, width, 3)).astype(np.uint8)
        pixels[round(y) : round(y + size), round(x) : round(x + size)] = (255, 250 - 5 * i, 240)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
        places[i] = ((x + size / 2) / width, (y + size / 2) / height)
    return places


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[int, tuple[float, float]]]:
    """A run whose feature 0 is brightness, with nothing in it faked: recorded, indexed and evaluated by the real code."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "pictures").mkdir()
    places = paint(folder / "pictures")
    ref = PluginRef(name="image-folder", options={"root": str(folder / "pictures")})
    config = RunConfig(dataset=ref, report=ReportConfig(n_features=4, include=(0,), n_images=6))
    run = Run.create(folder / "run", config)
    model, dataset = Light().eval(), load_dataset(ref)
    named = {"name": "light", "dist": "tests", "options": {}}
    store = record(model, dataset, run.store_url, RecordConfig(layers=(0,)), model_ref=named, dataset_ref={"name": "image-folder"}).store
    sae = make_sae(PluginRef(name="topk", options={"d_sae": 8, "k": 2}), 3)
    with torch.no_grad():
        sae.W_enc[:, 0], sae.b_enc[0] = 1.0, -1.0
    card = {"nmse": 0.25, "explained_variance": 0.75, "l0": 2.0, "dead": 0.125, "dense": 0.5, "n_images": 2, "n_vectors": 128}
    site = store.sites[0]
    described = {"fingerprint": store.meta.fingerprint}
    checkpoint = Checkpoint(sae, Norm.identity(3), ref_of(sae), str(site), ReadConfig(layer=0), described, {"n_vectors": 5}, card)
    checkpoint.save(run.sae_dir("topk"))
    index_features(checkpoint, store, run.features_path("topk"), IndexConfig(top_k=6, batch_images=4))
    events = [{"event": "stepped", "sae": "topk", "step": s, "nmse": 1 / s, "l0": 2, "loss": 5 / s} for s in (1, 5, 10, 20)]
    run.metrics_path.write_text("\n".join(map(json.dumps, events)) + '\n{"event": "stepp')
    row = {"factor": "colour", "value": "white", "feature": 0, "threshold": 1.0, "f1": 0.93, "n_positive": 9}
    run.write_result("recovery", {"topk": {"mean": 0.93, "factors": {"colour": 0.93}, "rows": [row], "n_images": 2}})
    write_report(run)
    return run, places


@pytest.fixture
def browser(chromium: Any) -> Any:
    return chromium


def text_of(run: Run) -> str:
    return run.report_path.read_text(encoding="utf-8")


def test_the_file_refers_to_nothing_outside_itself(made: Any) -> None:
    text = text_of(made[0])
    assert not re.search(r"""(?:src|href|url\(|@import|action)\s*[=(]?\s*["']?\s*(?:https?:)?//""", text)
    assert "http" not in text.replace("http-equiv", "")
    assert all(target.startswith(("data:", "#")) for target in re.findall(r'(?:src|href)="([^"]*)', text))


def test_it_tells_what_was_run_and_how_good_it_is(made: Any) -> None:
    text = text_of(made[0])
    told = ["0.750", "image-folder", "resid.0 of 1 blocks", "18 indexed", "1,152 vectors", "12 %", "colour: white", "colour, mean 0.93"]
    for part in told:
        assert part in text, part


def test_chromium_opens_it_offline_without_a_complaint_and_every_picture_has_its_map(made: Any, browser: Any) -> None:
    page = browser.new_context(offline=True).new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url[:5]))
    page.goto(f"file://{made[0].report_path}")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"scrolls sideways at {width}"
    assert said == []
    assert set(asked) <= {"file:", "data:"}
    pictures, maps = page.locator(".frame img:not(.map)"), page.locator(".frame img.map")
    assert pictures.count() == maps.count() > 6
    page.evaluate("document.querySelectorAll('img').forEach((i) => { i.loading = 'eager'; })")
    page.wait_for_function("[...document.images].every((i) => i.complete)")
    assert page.evaluate("[...document.images].every((i) => i.naturalWidth > 0)")
    assert page.evaluate("[...document.querySelectorAll('.frame img:not(.map)')].every((i) => i.alt.length > 10)")
    page.close()


def test_in_the_browser_the_map_lies_on_the_bright_patch_of_every_picture(made: Any, browser: Any) -> None:
    run, places = made
    top = [t.index for t in FeatureIndex.open(run.features_path("topk")).top(0)]
    sizes = ActivationStore.open(run.store_url).sizes
    assert len({tuple(sizes[i]) for i in top}) > 2
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"file://{run.report_path}")
    page.add_style_tag(content="* { transition: none !important; } .frame .map { opacity: 1 }")
    frames = page.locator("#f0 .frame")
    assert frames.count() == len(top) == 6
    for i, number_ in enumerate(top):
        frame = frames.nth(i)
        frame.scroll_into_view_if_needed()
        page.mouse.move(0, 0)
        with_map = np.asarray(Image.open(io.BytesIO(frame.screenshot())).convert("RGB"), float)
        page.evaluate("(i) => document.querySelectorAll('#f0 .frame .map')[i].style.visibility = 'hidden'", i)
        without = np.asarray(Image.open(io.BytesIO(frame.screenshot())).convert("RGB"), float)
        # The map's colour takes the blue from the white square; the dimmed margin loses light in all channels alike.
        tinted = (without[..., 2] - with_map[..., 2]) - (without[..., 0] - with_map[..., 0])
        rows, cols = np.nonzero(tinted > 60)
        height, width = tinted.shape
        x, y = places[number_]
        shown = sizes[number_]
        patch = min(shown) / 8
        assert abs(cols.mean() + 0.5 - x * width) < 0.3 * patch / shown[0] * width
        assert abs(rows.mean() + 0.5 - y * height) < 0.3 * patch / shown[1] * height
    page.close()


def test_it_can_be_used_by_keyboard_and_sorted(made: Any, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(f"file://{made[0].report_path}")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.getAttribute('href')") == page.locator(".card h3 a").first.get_attribute("href")
    page.keyboard.press("h")
    assert page.evaluate("getComputedStyle(document.querySelector('.map')).getPropertyValue('--opacity')") == "0"
    page.select_option("#sort", "frequency up")
    shown = [float(v) for v in page.eval_on_selector_all(".card", "cards => cards.map((c) => c.dataset.frequency)")]
    assert shown == sorted(shown)
    page.fill("#find", "7777")
    page.keyboard.press("Enter")
    assert page.inner_text("#found") == "not in this gallery"
    frame = page.locator(".frame").first
    frame.focus()
    page.keyboard.press("Enter")
    assert frame.get_attribute("aria-pressed") == "true"
    page.locator("#scatter a").first.click(force=True)
    assert page.evaluate("location.hash").startswith("#f")
    page.close()


def test_a_data_set_that_moved_gives_a_clear_line_and_maps_alone(made: Any, tmp_path: Path) -> None:
    run, _ = made
    options = {"root": str(tmp_path / "gone")}
    moved = Run(run.path, run.config.model_copy(update={"dataset": PluginRef(name="image-folder", options=options)}), run.plugins)
    have = Contents(moved)
    assert have.dataset is None
    assert "cannot be shown because the data set cannot be opened" in have.no_pictures
    text = page_of(have)
    assert 'class="map"' in text
    assert "image/jpeg" not in text
    with pytest.raises(RunError, match="cannot be opened"):
        feature_rows(moved, [0])


def test_a_data_set_that_changed_is_not_shown(made: Any, tmp_path: Path) -> None:
    run, _ = made
    for i in range(3):
        Image.new("RGB", (20, 20)).save(tmp_path / f"{i}.png")
    ref = PluginRef(name="image-folder", options={"root": str(tmp_path)})
    have = Contents(Run(run.path, run.config.model_copy(update={"dataset": ref}), run.plugins))
    assert "has changed since recording" in have.no_pictures


def test_one_unreadable_picture_is_counted_and_the_rest_are_shown(made: Any, tmp_path: Path) -> None:
    run, _ = made
    shutil.copytree(run.config.dataset.options["root"], tmp_path / "pictures")
    first = FeatureIndex.open(run.features_path("topk")).top(0)[0].index
    broken = tmp_path / "pictures" / f"{first:02}.png"
    broken.write_bytes(b"x" * broken.stat().st_size)
    ref = PluginRef(name="image-folder", options={"root": str(tmp_path / "pictures")})
    text = page_of(Contents(Run(run.path, run.config.model_copy(update={"dataset": ref}), run.plugins)))
    assert "1 picture could not be read" in text
    assert text.count("image/jpeg") > 3


def test_a_run_without_an_index_is_refused_in_one_line(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", RunConfig())
    with pytest.raises(RunError, match="no feature index yet; build one with saev index"):
        write_report(run)
    assert not run.report_path.exists()


def test_the_included_features_come_first_and_none_comes_twice(made: Any) -> None:
    run, _ = made
    index = FeatureIndex.open(run.features_path("topk"))
    W_dec = Checkpoint.load(run.sae_dir("topk")).sae.W_dec.detach().numpy()
    chosen = choose(index, W_dec, ReportConfig(n_features=5, include=(3, 0), log_freq_range=(-9, 0)), first=[1, 0])
    assert chosen[:3] == [3, 0, 1]
    assert len(set(chosen)) == len(chosen)
    assert all(index.frequency[feature] > 0 for feature in chosen[3:])
    assert choose(index, W_dec, ReportConfig(log_freq_range=(1, 2))) == []


def test_a_contact_sheet_can_be_made_of_a_run(made: Any) -> None:
    rows = feature_rows(made[0], [0], n_images=3, size_px=120)
    assert [max(picture.size) for picture in rows[0][1]] == [120, 120, 120]
    assert sheet(rows).size[0] == 1240


def test_curves_take_the_later_of_two_lines_and_pass_over_a_broken_one(tmp_path: Path) -> None:
    lines = [{"event": "stepped", "sae": "a", "step": s, "nmse": v} for s, v in ((1, 0.9), (3, 0.7), (2, 0.8), (3, 0.5), (4, float("nan")))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"half')
    assert read_curves(tmp_path / "metrics.jsonl") == {"nmse": {"a": [(1, 0.9), (2, 0.8), (3, 0.5)]}}
    assert read_curves(tmp_path / "none.jsonl") == {}


def test_numbers_are_written_for_people() -> None:
    assert [number(v) for v in (0, 0.00421, 12.34, 1234.0, 123456.7, 2.1e-7)] == ["0", "0.00421", "12.3", "1,234", "123,457", "2.1e-07"]
    assert number(999.7) == "1,000"
    assert [percent(v) for v in (1, 0.1234, 0.00042)] == ["100 %", "12 %", "0.042 %"]
