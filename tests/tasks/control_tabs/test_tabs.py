"""The control tabs: sliders match core edits; the pages in a real browser."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import Serving

from saev_core.activations.store.store import ActivationStore
from saev_core.cli import main
from saev_core.data.dataset import load_dataset
from saev_core.interventions.apply import apply_edits
from saev_core.interventions.edit import Edit
from saev_core.interventions.steering import steering
from saev_core.models.base import load_model
from saev_core.runs.run import Run
from saev_core.tasks.fit_probes import ProbeSetting, fit_probes, train_test_indices
from saev_core.tasks.probe import Probe
from saev_core.types import Site
from saev_tasks.control_tabs import ControlTabs
from saev_tasks.control_tabs.classification import Classification
from saev_tasks.control_tabs.edited_picture import EditedPicture
from saev_tasks.control_tabs.segmentation import Segmentation, labels
from saev_tasks.control_tabs.static import read_asset
from saev_viz.run_view.library import Library
from saev_viz.viewer.app import make_server
from saev_viz.viewer.contract import Viewer

SMALL = ["train.n_tokens=12000", "train.n_init=512", "train.batch_size=256", "sae.options.d_sae=64", "sae.options.k=4"]


class Held(Viewer):
    """The viewer without its page components."""

    def __init__(self, run: Run) -> None:
        self.library = Library(run)


def told_of(store: ActivationStore) -> dict[str, Any]:
    meta = store.meta
    return {"fingerprint": meta.fingerprint, "model": meta.model, "dataset": meta.dataset, "transform": meta.transform}


def fit(run: Run, task: str, x: torch.Tensor, y: torch.Tensor, site: Site, tokens: str, classes: list[str]) -> None:
    (fitted,) = fit_probes(lambda _: [(x, y)], x.shape[-1], len(classes), [ProbeSetting(1e-2, 1e-3)], epochs=60)
    card = {"val_share": 0.25, "seed": 0, "ignore": []}
    Probe(fitted.weight, fitted.bias, classes, str(site), tokens, told_of(ActivationStore.open(run.store_url)), card).save(
        run.path / "tasks" / task / "probe"
    )


def train_classifier(run: Run, tokens: str, layer: int) -> None:
    """A probe on a block's output, trained on images that are not held out."""
    store, dataset = ActivationStore.open(run.store_url), load_dataset(run.config.dataset)
    chosen, _ = train_test_indices(store.labels, 0.25, 0)
    model = load_model(run.config.model, "cpu")
    site = model.site(layer)
    with torch.no_grad():
        pixels = torch.stack([torch.as_tensor(model.transform(dataset[int(i)].image)) for i in chosen])
        x = model.record(pixels, [site])[site]
    x = x[:, 0] if tokens == "cls" else x[:, model.grid.n_prefix :].mean(1)
    fit(run, "classification", x, torch.as_tensor(store.labels[chosen]).long(), site, tokens, list(dataset.classes or ()))


def train_segmenter(run: Run) -> None:
    store, dataset = ActivationStore.open(run.store_url), load_dataset(run.config.dataset)
    assert store.mask is not None
    chosen, _ = train_test_indices(store.n_images, 0.25, 0, stratify=False)
    x = torch.from_numpy(store.read(store.sites[-1], chosen).astype(np.float32)).flatten(0, 1)
    y = torch.as_tensor(store.mask[chosen].astype(np.int64)).flatten()
    names = list(dataset.mask_classes or ())
    fit(run, "semseg", x, torch.where(y < len(names), y, -1), store.sites[-1], "patches", names)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Synthetic scenes, an SAE in the middle of the shipped model, a classifier and a segmenter at its site."""
    path = tmp_path_factory.mktemp("control") / "run"
    assert main(["run", "--out", str(path), "--model", "tiny", "--dataset", "shapes:60", "--set", *SMALL]) == 0
    made = Run.open(path)
    train_classifier(made, "mean", ActivationStore.open(made.store_url).sites[-1].layer)
    train_segmenter(made)
    return made


@pytest.fixture(scope="module")
def later(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run with a classifier of the CLS token one block later."""
    path = tmp_path_factory.mktemp("later") / "run"
    shutil.copytree(run.path, path)
    made = Run.open(path)
    train_classifier(made, "cls", ActivationStore.open(run.store_url).sites[-1].layer + 1)
    return made


def floats(text: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text), "<f4")


def lively(edited: EditedPicture, image: int, n: int = 2) -> list[int]:
    """The strongest features on a picture."""
    picture = edited.picture(image)
    total = torch.zeros(picture.codes.d_sae).index_add(0, picture.codes.feature, picture.codes.value)
    return [int(feature) for feature in total.topk(n).indices]


def test_without_edits_a_picture_keeps_its_logits_to_the_bit_and_they_are_the_probes(run: Run, later: Run) -> None:
    for given in (run, later):
        edited = EditedPicture(Library(given)["topk"], "classification")
        picture = edited.picture(3)
        assert edited.after(picture, []) is picture.before
        assert edited.after(picture, edited.edits([(1, 0.0)])) is picture.before
    store = ActivationStore.open(run.store_url)
    x = torch.from_numpy(store.read(store.sites[-1], [3]).astype(np.float32))[0].mean(0)
    probe = Probe.load(run.path / "tasks" / "classification" / "probe")
    assert torch.allclose(EditedPicture(Library(run)["topk"], "classification").picture(3).before, probe(x), atol=1e-5)


@pytest.mark.parametrize("strength", [-1.0, -0.4, 0.3, 2.0])
def test_a_sliders_line_is_the_edit_that_the_core_makes(run: Run, strength: float) -> None:
    edited = EditedPicture(Library(run)["topk"], "classification")
    picture = edited.picture(5)
    pairs = [(feature, strength) for feature in lively(edited, 5)]
    guess = picture.before.clone()
    for feature, s in pairs:
        up, down, effect = edited.line(picture, feature)
        guess += (s * up if s > 0 else s * down) * effect
    exact = edited.after(picture, edited.edits(pairs))
    # The same with the core only, in float64, from recorded activations.
    peaks = Library(run)["topk"].index.max
    mode = "add" if strength > 0 else "scale"
    edits = [Edit.of(edited.checkpoint, peaks, f, s if s > 0 else 1 + s, mode) for f, s in pairs]
    x = apply_edits(picture.x, edits, edited.checkpoint, n_prefix=edited.readout.n_prefix)[edited.readout.n_prefix :].double().mean(0)
    want = x @ edited.probe.weight.double().T + edited.probe.bias.double()
    assert torch.allclose(exact.double(), want, atol=1e-4)
    assert torch.allclose(guess, exact, atol=1e-3)
    assert (exact - picture.before).abs().max() > 1e-3


@pytest.mark.parametrize("strengths", [(-1.0, 2.0), (-0.4, -0.7), (0.3, 0.0)])
def test_the_page_moves_a_slider_as_python_does(run: Run, chromium: Any, strengths: tuple[float, float]) -> None:
    edited = EditedPicture(Library(run)["topk"], "classification")
    picture = edited.picture(5)
    pairs = list(zip(lively(edited, 5), strengths, strict=True))
    answer = Classification(Held(run))({"what": "picture", "image": 5, "extra": [feature for feature, _ in pairs]})
    rows = {row["feature"]: row | {"effect": floats(row["effect"]).tolist()} for row in sum(answer["lists"], answer["extra"])}
    page = chromium.new_page()
    moved = page.evaluate(f"(given) => {{ {read_asset('slider.js')} return Array.from(moved(...given)); }}", [
        floats(answer["before"]).tolist(), pairs, rows,
    ])  # fmt: skip
    assert page.evaluate(f"() => {{ {read_asset('slider.js')} return moved([0], [[3, 1]], {{}}); }}") is None
    page.close()
    want = edited.after(picture, edited.edits(pairs))
    assert torch.allclose(torch.tensor(moved, dtype=torch.float32), want, atol=1e-4)
    assert not torch.allclose(want, picture.before, atol=1e-3)


def test_where_the_probe_reads_a_later_block_the_model_goes_on_from_the_edit(later: Run) -> None:
    library = Library(later)
    edited = EditedPicture(library["topk"], "classification")
    assert not edited.readout.linear
    picture = edited.picture(7)
    pairs = [(feature, s) for feature, s in zip(lively(edited, 7), (-1.0, 0.5), strict=True)]
    model = library.model
    pixels = torch.as_tensor(model.transform(library.pictures.original(7)))[None]
    edits = edited.edits(pairs)
    with steering(model, edits, edited.checkpoint):
        want = edited.probe(model.record(pixels, [edited.readout.target])[edited.readout.target][0, 0])
    # The tab starts from recorded activations, in half precision.
    assert torch.allclose(edited.after(picture, edits), want, atol=0.02 * float((want - picture.before).abs().max()))


def test_an_edit_of_marked_patches_changes_pixels_near_them_alone(run: Run) -> None:
    pane = Segmentation(Held(run))
    start = pane({"what": "start"})
    image = start["first"]
    shown = pane({"what": "picture", "image": image})
    edited = EditedPicture(Library(run)["topk"], "semseg")
    picture, rows, cols = edited.picture(image), start["rows"], start["cols"]
    height, width = shown["height"], shown["width"]
    before = np.frombuffer(base64.b64decode(shown["before"]), "<u2").reshape(height, width)
    assert np.array_equal(before, labels(edited, picture.before))
    maps = picture.before.T.reshape(1, -1, rows, cols)
    want = torch.nn.functional.interpolate(maps, (height, width), mode="bilinear", align_corners=False)[0].argmax(0)
    assert np.array_equal(before, want.numpy())  # dropping hopeless classes changed nothing
    edits = [[feature, 2.0] for feature in edited.features_for(1, 3)]
    marked = [0, 1, cols]
    told = pane({"what": "after", "image": image, "edits": edits, "where": marked})
    after = np.frombuffer(base64.b64decode(told["after"]), "<u2").reshape(height, width)
    near = np.zeros((height, width), bool)
    px_r, px_c = height // rows, width // cols
    near[: 3 * px_r, : 3 * px_c] = True
    assert (before != after).any()
    assert not (before != after)[~near].any()
    everywhere = np.frombuffer(base64.b64decode(pane({"what": "after", "image": image, "edits": edits})["after"]), "<u2")
    assert (everywhere != before.reshape(-1)).sum() > (after != before).sum()


def test_pictures_are_held_out_and_chosen_by_class(run: Run) -> None:
    pane = Classification(Held(run))
    store = ActivationStore.open(run.store_url)
    _, held = train_test_indices(store.labels, 0.25, 0)
    start = pane({"what": "start"})
    assert start["first"] == held[0]
    assert start["n_heldout"] == len(held)
    assert sum(n for _, _, n in start["among"]) == len(held)
    label, _, n = start["among"][0]
    seen, image = set(), -1
    for _ in range(n):
        image = pane({"what": "step", "image": image, "among": label, "by": 1})["image"]
        assert store.labels[image] == label
        seen.add(image)
    assert seen == set(held[store.labels[held] == label].tolist())
    assert pane({"what": "picture", "image": int(held[0])})["held"]
    assert not pane({"what": "picture", "image": int(train_test_indices(store.labels, 0.25, 0)[0][0])})["held"]


def test_features_that_are_offered_push_their_class(run: Run) -> None:
    edited = EditedPicture(Library(run)["topk"], "classification")
    for label in range(0, edited.probe.n_classes, 3):
        found = edited.features_for(label, 6)
        assert len(found) == len(set(found)) > 0
        assert (edited.push(label)[found] > 0).all()


BAD = [
    ({"what": "picture", "image": 60}, "There is no picture 60. This run has pictures 0 to 59."),
    ({"what": "picture", "image": "moon"}, "There is no picture moon."),
    ({"what": "after", "image": 1, "edits": [[64, 1]]}, "There is no feature 64. This SAE has features 0 to 63."),
    ({"what": "after", "image": 1, "edits": [[3, float("nan")]]}, "is not a number"),
    ({"what": "after", "image": 1, "edits": [[3, None]]}, "is not a number"),
    ({"what": "after", "image": 1, "edits": "3:1"}, "cannot be parsed"),
    ({"what": "after", "image": 1, "edits": [[3, 1]], "where": [99999]}, "There is no patch 99999."),
    ({"what": "picture", "image": 1, "other": 99}, "There is no class 99"),
    ({"what": "find", "image": 1, "text": "zebra"}, "No feature name contains 'zebra'"),
    ({"what": "__init__"}, "Unknown request"),
    ({"what": "picture", "image": 1, "sae": "nobody"}, "has no indexed SAE 'nobody'"),
]


@pytest.mark.parametrize(("asked", "why"), BAD, ids=lambda value: str(value)[:40])
def test_what_cannot_be_is_told_and_nothing_falls(run: Run, asked: dict[str, Any], why: str) -> None:
    for pane in (Classification(Held(run)), Segmentation(Held(run))):
        answer = pane(asked)
        assert why in answer["error"]
        json.dumps(answer)


def test_a_mistake_of_ours_is_a_message_too(run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    pane = Classification(Held(run))

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(pane, "picture", broken)
    assert pane({"what": "picture", "image": 1}) == {"error": "ZeroDivisionError: a mistake"}
    assert "a mistake" in caplog.text


def test_a_probe_before_the_sae_or_of_another_width_is_told(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    copied = Run.open(tmp_path / "run")
    folder = copied.path / "tasks" / "classification" / "probe"
    held = Probe.load(folder)
    for changes, why in (({"site": "resid.0"}, "no edit there can reach the probe"), ({"weight": held.weight[:, :-1]}, "wide")):
        Probe(
            **{**{name: getattr(held, name) for name in ("weight", "bias", "classes", "site", "tokens", "store", "card")}, **changes}
        ).save(folder)
        assert why in Classification(Held(copied))({"what": "start"})["error"]


def test_tabs_are_offered_where_they_make_sense(run: Run, tmp_path: Path) -> None:
    assert [tab.title for tab in ControlTabs().viewer_tabs(run)] == ["Classification", "Segmentation"]
    shutil.copytree(run.path, tmp_path / "run")
    bare = Run.open(tmp_path / "run")
    shutil.rmtree(bare.path / "tasks")
    assert [tab.title for tab in ControlTabs().viewer_tabs(bare)] == ["Classification", "Segmentation"]
    told = Classification(Held(bare))({"what": "start"})
    assert told["missing"]
    assert told["command"] == f"saev task classification train {bare.path}"
    shutil.rmtree(bare.features_path("topk") / "label_count")
    shutil.rmtree(bare.path / "store")
    assert ControlTabs().viewer_tabs(bare) == []


def value(page: Any, line: Any, number: float) -> None:
    """Drags a slider to a value and releases it."""
    drag = "(x, v) => { x.value = v; for (const name of ['input', 'change']) x.dispatchEvent(new Event(name, {bubbles: true})); }"
    line.locator("input[type=range]").evaluate(drag, number)


def settled(page: Any) -> None:
    """Whether the server has answered the last request."""
    page.locator('.ctl:not([aria-busy="true"])').locator("visible=true").wait_for()


@pytest.fixture(scope="module")
def opened(run: Run, serving: Serving, chromium: Any) -> Iterator[tuple[Any, str, list[str]]]:
    """A page, the viewer's address, and all console messages."""
    said: list[str] = []
    with serving(make_server(Library(run))) as address:
        context = chromium.new_context(viewport={"width": 1280, "height": 900}, permissions=["clipboard-read", "clipboard-write"])
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        yield page, address, said
        context.close()


def visit(page: Any, address: str) -> None:
    page.goto("about:blank")
    page.goto(address)
    page.locator(".ctl:not(.loading) .ctl-row").first.wait_for(state="visible")
    settled(page)


def test_a_slider_moves_the_bars_and_undo_brings_them_back(opened: tuple[Any, str, list[str]]) -> None:
    page, address, said = opened
    visit(page, f"{address}/?tab=classification")
    bars = page.locator(".ctl-bars")
    first = bars.inner_text()
    assert "→" not in first
    line = page.locator(".ctl-list.other .ctl-row").first
    value(page, line, 2)
    assert "→" in bars.inner_text()  # at once: computed by the page
    assert line.locator("output").inner_text() == "+2 × max"
    settled(page)
    exact = bars.inner_text()
    value(page, page.locator(".ctl-list.mine .ctl-row").first, -1)
    assert page.locator(".ctl-list.mine output").first.inner_text() == "off"
    page.keyboard.press("Control+z")
    assert bars.inner_text() == exact
    page.locator('.ctl [data-do="undo"]').locator("visible=true").click()
    assert bars.inner_text() == first
    page.keyboard.press("Control+Shift+Z")
    page.locator(".ctl-bars", has_text="→").wait_for()
    page.locator('.ctl [data-do="reset"]').locator("visible=true").click()
    assert bars.inner_text() == first
    # Keyboard only.
    line.locator("input[type=range]").focus()
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    assert line.locator("output").inner_text() == "+0.3 × max"
    assert "→" in bars.inner_text()
    assert said == []


def test_a_link_brings_the_same_state_to_another_page(opened: tuple[Any, str, list[str]], tmp_path: Path) -> None:
    page, address, said = opened
    visit(page, f"{address}/?tab=classification")
    page.locator(".ctl-other").locator("visible=true").select_option(index=4)
    settled(page)
    value(page, page.locator(".ctl-list.other .ctl-row").nth(1), 1.5)
    settled(page)
    shown = page.locator(".ctl-bars").inner_text()
    page.locator(".ctl-link").locator("visible=true").click()
    page.get_by_text("Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "tab=classification" in copied
    assert ":1.5" in copied
    visit(page, copied)
    page.locator(".ctl-bars", has_text="→").wait_for()
    settled(page)
    assert page.locator(".ctl-bars").inner_text() == shown
    with page.expect_download() as coming:
        page.locator('.ctl [data-do="figure"]').locator("visible=true").click()
    coming.value.save_as(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    assert coming.value.suggested_filename.startswith("classification-")
    visit(page, f"{address}/?tab=classification&image=3&edits=9999:1")
    page.get_by_text("This link is invalid: There is no feature 9999.").wait_for()
    assert said == []


def test_pictures_are_walked_through_with_the_edits_kept(opened: tuple[Any, str, list[str]]) -> None:
    page, address, said = opened
    visit(page, f"{address}/?tab=classification&edits=5:1")
    number = page.locator(".ctl-number").locator("visible=true")
    before = number.input_value()
    page.locator(".ctl-caption").locator("visible=true").click()
    page.keyboard.press("n")
    page.wait_for_function(f"document.querySelector('.ctl-number').value !== '{before}'")
    page.locator(".ctl-bars", has_text="→").wait_for()
    assert page.locator('[data-row="5"] output').first.inner_text() == "+1 × max"
    page.keyboard.press("p")
    page.wait_for_function(f"document.querySelector('.ctl-number').value === '{before}'")
    number.fill("99")
    number.press("Enter")
    page.get_by_text("There is no picture 99. This run has pictures 0 to 59.").wait_for()
    page.locator(".ctl-find input").locator("visible=true").fill("17")
    page.keyboard.press("Enter")
    page.locator('.ctl-list [data-row="17"]').first.wait_for()
    page.locator('[data-row="17"] .name').first.click()
    page.get_by_role("heading", name="Feature 17").wait_for()
    assert said == []


def marked(page: Any) -> str:
    return str(page.locator(".ctl-where").inner_text())


def test_patches_are_marked_with_the_mouse_and_an_edit_acts_there_only(opened: tuple[Any, str, list[str]], run: Run) -> None:
    page, address, said = opened
    visit(page, f"{address}/?tab=segmentation")
    assert marked(page) == "Changes act on the whole picture."
    canvas = page.locator('[data-side="after"] .ctl-marks')
    box = canvas.bounding_box()
    cell = box["width"] / ActivationStore.open(run.store_url).grid.cols
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + 2.5 * cell, box["y"] + 1.5 * cell, steps=4)
    page.mouse.up()
    n = int(marked(page).split()[4])
    assert n >= 2
    page.mouse.click(box["x"] + 2, box["y"] + 2)
    assert int(marked(page).split()[4]) == n - 1
    for line in page.locator(".ctl-list.other .ctl-row").all()[:3]:
        value(page, line, 2)
    settled(page)
    changed = page.locator(".ctl-head").inner_text()
    assert "of the pixels change" in changed
    page.locator(".ctl-unmark").click()
    page.wait_for_function("old => document.querySelector('.ctl.two .ctl-head').innerText !== old", arg=changed)
    page.keyboard.press("Control+z")
    page.wait_for_function("old => document.querySelector('.ctl.two .ctl-head').innerText === old", arg=changed)
    assert int(marked(page).split()[4]) == n - 1
    copied = page.get_attribute(".ctl.two .ctl-link", "data-copy")
    assert "where=" in copied
    table = page.locator(".ctl-table tbody").inner_text()
    assert "px" in table
    visit(page, f"{address}/{copied}")
    page.locator(".ctl-head", has_text="of the pixels change").wait_for()
    assert page.locator(".ctl-table tbody").inner_text() == table
    with page.expect_download() as coming:
        page.locator('.ctl.two [data-do="figure"]').click()
    assert coming.value.suggested_filename.startswith("segmentation-")
    page.locator('.ctl.two [data-do="reset"]').click()
    assert marked(page) == "Changes act on the whole picture."
    assert said == []


def test_patches_are_marked_with_the_keyboard(opened: tuple[Any, str, list[str]]) -> None:
    page, address, said = opened
    visit(page, f"{address}/?tab=segmentation")
    page.locator('[data-side="before"] .ctl-marks').focus()
    for key in ("ArrowDown", "ArrowRight", "Space"):
        page.keyboard.press(key)
    assert marked(page) == "Changes act on the 1 marked patch only."
    assert page.locator(".ctl-spot").inner_text().startswith("Row 2, column 2")
    for key in ("Shift+ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    assert marked(page) == "Changes act on the 4 marked patches only."
    page.keyboard.press("Escape")
    assert marked(page) == "Changes act on the whole picture."
    page.locator("[data-mark]").first.click()
    assert "marked patch" in marked(page)
    assert said == []


def test_the_tabs_fit_a_phone(opened: tuple[Any, str, list[str]], chromium: Any) -> None:
    _, address, _ = opened
    page = chromium.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    for tab in ("classification", "segmentation"):
        visit(page, f"{address}/?tab={tab}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        line = page.locator(".ctl-list.other .ctl-row").locator("visible=true").first
        line.scroll_into_view_if_needed()
        # The prediction stays in view next to the sliders.
        stays = page.locator(".ctl-bars" if tab == "classification" else ".ctl-pair").bounding_box()
        assert 0 <= stays["y"] < 400
    page.close()


@pytest.mark.slow
def test_without_a_probe_the_tab_says_what_to_run_and_looks_again(
    run: Run, later: Run, serving: Serving, chromium: Any, tmp_path: Path
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "tasks")
    with serving(make_server(Library(Run.open(tmp_path / "run")))) as address:
        page = chromium.new_page()
        page.goto(f"{address}/?tab=classification")
        page.get_by_text(f"saev task classification train {tmp_path / 'run'}").wait_for()
        shutil.copytree(later.path / "tasks", tmp_path / "run" / "tasks")
        page.get_by_role("button", name="Retry").click()
        line = page.locator(".ctl-list.other .ctl-row").first
        line.wait_for()
        for number in (0.5, 1, 1.5):
            value(page, line, number)
        page.locator(".ctl-bars", has_text="→").wait_for()  # the rest of the model ran
        page.close()
