"""The exported gallery: self-contained, safe to open, and never overwriting foreign files."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Saev
from PIL import Image

from saev_core.cli import main
from saev_core.errors import RunError
from saev_core.runs.run import Run
from saev_core.testing.synthetic_run import synthetic_run
from saev_viz.export.gallery import export, selection
from saev_viz.export.static_page import Still
from saev_viz.run_view.library import Library

EVIL = "<script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, write_names: Callable[..., None]) -> Run:
    folder, sizes = tmp_path_factory.mktemp("export") / "run", {"d_sae": 120, "n_images": 90, "d_model": 16, "side": 6}
    made = synthetic_run(folder, n_labels=5, top_k=6, n_samples=8, recorded=True, **sizes)
    write_names(made, "topk", {3: (EVIL, 0.9), 5: ("wing & <b>tail</b>", 0.8)})
    Library(made)["topk"].notes.write(3, f"</script>{EVIL}")
    return made


@pytest.fixture(scope="module")
def gallery(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("galleries") / "gallery"
    export(run, folder, features=[3, 5, 7, 11])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_link_and_picture_of_every_page_is_a_file_of_the_folder(gallery: Path) -> None:
    pages = [gallery / "index.html", *(gallery / "features").glob("*.html")]
    assert len(pages) == 5
    there, used = set(gallery.rglob("*.*")), set()
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert not re.search("/saev/|base64|data-feature", text)
        for target in re.findall(r'(?:src|href)="?([^" >]+)', text):
            path = (page.parent / target).resolve()
            assert path in there, f"{page.name} points to {target}"
            used.add(path)
    assert there - used == {gallery / "gallery.json"}


def test_pictures_are_there_once_and_maps_are_the_index_s_own(run: Run, gallery: Path) -> None:
    view = Library(run)["topk"]
    shown = set[int]()
    for feature in (3, 5, 7, 11):
        shown |= {top.index for top in view.index.top(feature)} | {sample.index for sample in view.index.samples(feature)}
    there = {int(path.stem) for path in (gallery / "pictures").iterdir()}
    assert shown <= there
    sample = view.index.samples(3)[0].index
    with Image.open(gallery / "maps" / f"3-{sample}.png") as image:
        alpha = np.asarray(image)[..., 3]
    assert alpha.shape == (6, 6)
    assert (alpha > 0).sum() == (view.seen(sample).map(3) > 0).sum()


def test_what_people_and_vocabularies_write_stays_text(gallery: Path) -> None:
    for page in (gallery / "index.html", gallery / "features" / "3.html"):
        text = page.read_text(encoding="utf-8")
        assert "<script>" not in text
        assert "&lt;script&gt;" in text
    assert "wing &amp; &lt;b&gt;tail&lt;/b&gt;" in (gallery / "features" / "5.html").read_text(encoding="utf-8")


def test_nearest_features_are_sought_among_the_exported(gallery: Path) -> None:
    text = (gallery / "features" / "3.html").read_text(encoding="utf-8")
    nearest = text.split("Nearest features")[1].split("</section>")[0]
    assert set(re.findall(r"features/(\d+)\.html", nearest)) == {"5", "7", "11"}


def test_exporting_again_replaces_its_own_and_nothing_else(run: Run, gallery: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(gallery, folder)
    export(run, folder, features=[9])
    assert [path.name for path in (folder / "features").iterdir()] == ["9.html"]
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    (folder / "mine.txt").write_text("x")
    with pytest.raises(RunError, match=r"mine\.txt"):
        export(run, folder, features=[9])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "index.html").write_text("x")
    with pytest.raises(RunError, match="is neither empty nor a gallery"):
        export(run, foreign, features=[9])
    assert (foreign / "index.html").read_text() == "x"
    with pytest.raises(RunError, match="is a file"):
        export(run, foreign / "index.html", features=[9])


def test_the_same_choice_gives_the_same_files(run: Run, gallery: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "b", features=[3, 5, 7, 11])
    assert contents(tmp_path / "b") == contents(gallery)


def test_what_fails_leaves_what_was_there(run: Run, gallery: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    shutil.copytree(gallery, folder)
    before = contents(folder)
    with pytest.raises(RunError, match="feature 400"):
        export(run, folder, features=[400])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        export(run, tmp_path / "file" / "deeper", features=[3])
    assert contents(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "kept"]


def test_features_are_chosen_by_number_by_search_or_as_the_report_does(run: Run) -> None:
    view = Library(run)["topk"]
    assert selection(view, [7, 3, 7]) == [7, 3]
    found = selection(view, query="concentration>0.1", n=5)
    assert len(found) == 5
    assert (np.diff(view.index.max[found]) <= 0).all()
    assert len(selection(view, n=4)) == 4
    assert selection(view, query="wing") == [5]
    wrongs: list[dict[str, Any]] = [{"query": "nosuchword"}, {"query": "nosuch>1"}, {"features": [1], "query": "wing"}, {"n": 0}]
    for wrong in wrongs:
        with pytest.raises(RunError):
            selection(view, **wrong)


def test_where_the_pictures_are_gone_the_gallery_says_so(run: Run, tmp_path: Path) -> None:
    said: list[str] = []
    first = export(run, tmp_path / "bare", features=[3], dataset=f"image-folder:{tmp_path}", say=said.append)
    assert "The pictures cannot be shown" in first.read_text(encoding="utf-8")
    assert "The pictures cannot be shown" in said[0]
    assert not list((tmp_path / "bare" / "pictures").iterdir())


def test_without_recorded_activations_samples_come_without_heat_maps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = synthetic_run(tmp_path / "run", d_sae=40, n_images=60, d_model=8, n_labels=3, side=4, top_k=4, n_samples=8)
    export(made, tmp_path / "gallery", n=3)
    assert "without heat maps" in caplog.text
    assert all("data-heats" not in page.read_text(encoding="utf-8") for page in (tmp_path / "gallery" / "features").iterdir())
    assert not [path for path in (tmp_path / "gallery" / "maps").iterdir() if "-" in path.name]


def test_a_page_s_tags_are_kept_and_only_the_viewer_s_own_are_changed() -> None:
    still = Still([1])
    html = (
        '<svg viewBox="0 0 1 1"><path d="M0 0"/></svg>&lt;&#60;<button class="x" data-feature=1 title="a&quot;b"><b>1</b></button>'
        '<button data-feature=2>2</button><button data-copy="?">Copy</button><button class=frame data-picture="7">'
        '<img src="/saev/image/7?px=96" alt=""><img data-src="/saev/map/a%2Fb/1/7?colours=x&amp;end=max" hidden></button>'
    )
    assert still.rewrite(html, "../") == (
        '<svg viewBox="0 0 1 1"><path d="M0 0"/></svg>&lt;&#60;<a class="x" title="a&quot;b" href="../features/1.html"><b>1</b></a>'
        '<span class="absent">2</span><button class=frame data-picture="7">'
        '<img src="../pictures/7.jpg" alt=""><img data-src="../maps/1-7.png" hidden></button>'
    )
    assert (still.pictures, still.asked) == ({7}, {(1, 7)})


@pytest.mark.slow
def test_the_command_writes_it(run: Run, saev: Saev, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = saev("view", run.path, "--export", tmp_path / "g", "--features", "3,5-7", "--sae", "topk")
    assert done.returncode == 0, done.stderr
    assert sorted(int(path.stem) for path in (tmp_path / "g" / "features").iterdir()) == [3, 5, 6, 7]
    assert "4 features" in done.stdout + done.stderr
    for wrong in (["--features", "3"], *(["--export", str(tmp_path / "h"), "--features", text] for text in ("x", "9-3"))):
        assert main(["view", str(run.path), *wrong]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


def until(page: Any, expression: str) -> None:
    """Wait until the condition holds; polled from outside, since the page's policy forbids eval."""
    give_up = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < give_up, expression
        time.sleep(0.02)


@pytest.mark.slow
def test_chromium_searches_sorts_and_opens_it_from_the_disk(gallery: Path, chromium: Any) -> None:
    page = chromium.new_context(offline=True).new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url[:5]))
    page.goto(f"file://{gallery}/index.html")
    cards = page.locator("article:visible h2 a")
    assert cards.all_inner_texts() == ["3", "5", "7", "11"]
    page.select_option("#sort", "id")
    assert cards.all_inner_texts() == ["11", "7", "5", "3"]
    page.fill("#search", "WING")
    assert cards.all_inner_texts() == ["5"]
    page.fill("#search", "nosuchword")
    assert page.locator("#none").is_visible()
    page.fill("#search", "nosuch>1")
    assert "Unknown column nosuch" in page.inner_text("#wrong")
    page.fill("#search", "#7")
    page.locator("#opacity").fill("30")
    cards.first.click()
    assert page.url.endswith("/features/7.html")
    until(page, "getComputedStyle(document.querySelector('.heat')).opacity === '0.3'")
    page.locator("[data-heats]").click()
    until(page, "[...document.querySelectorAll('img[data-src]')].every((image) => image.complete && image.naturalWidth)")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), f"scrolls sideways at {width}"
    page.keyboard.press("n")
    page.wait_for_url("**/11.html")
    page.go_back()
    page.go_back()
    until(page, "document.querySelectorAll('article:not([hidden])').length === 1")  # the browser restores the inputs
    assert (said, page.title()) == ([], "tiny on shapes: SAE features")
    assert set(asked) <= {"file:", "data:"}
