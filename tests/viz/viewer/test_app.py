"""The viewer as a whole: what it says at the start, what it survives, plugins' tabs, and that it calls nobody."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from commands import Serving

from saev_core.cli import main
from saev_core.errors import RunError
from saev_core.runs.run import Run
from saev_viz.run_view.library import Library
from saev_viz.viewer.app import make_server, plugin_tabs

PLUGIN = """
import pathlib
import gradio as gr
from saev_core import hookimpl

class Tabs:
    @hookimpl
    def viewer_tabs(self, run):
        return [Tab("Broken", broken), Tab("Hello", hello), ("Old", hello), "no tab at all"]

class Tab:
    def __init__(self, title, build):
        self.title, self.build = title, build

def broken(viewer):
    gr.Textbox(label="half a tab")
    raise RuntimeError("this tab cannot be made")

def hello(viewer):
    button, told, fail = gr.Button("greet"), gr.Textbox(label="told"), gr.Button("fail")
    file = gr.File(label="file")
    button.click(lambda feature: f"feature {int(feature)}", viewer.feature, told)
    fail.click(crash, None, told)
    file.upload(lambda path: pathlib.Path(path).read_text(), file, told)

def crash():
    raise ValueError("a plugin's mistake")
"""


@contextmanager
def installed_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with one entry point of the hooks, as pip would leave it."""
    info = folder / "saev_hello-0.1.dist-info"
    info.mkdir(parents=True)
    (folder / "saev_hello.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: saev-hello\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[saev.hooks]\nhello = saev_hello:Tabs\n")
    monkeypatch.syspath_prepend(str(folder))
    yield
    sys.modules.pop("saev_hello", None)


def test_a_plugins_tab_works_its_crash_is_a_message_and_a_tab_that_cannot_be_made_is_left_out(
    run_of_pictures: Run, serving: Serving, chromium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with installed_plugin(tmp_path, monkeypatch):
        assert [tab.title for tab in plugin_tabs(run_of_pictures) if type(tab).__module__ == "saev_hello"] == ["Broken", "Hello"]
        assert caplog.text.count("not a ViewerTab") == 2
        guard = make_server(Library(run_of_pictures))
    assert "the plugin tab 'Broken' failed to build" in caplog.text
    assert "this tab cannot be made" in caplog.text
    (tmp_path / "note.txt").write_text("from a file")
    with serving(guard) as address:
        page = chromium.new_page()
        page.goto(f"{address}/?feature=3")
        page.locator("#saev-card h3").first.wait_for()
        page.get_by_role("tab", name="Hello").click()
        page.get_by_role("button", name="greet").click()
        page.wait_for_function("[...document.querySelectorAll('textarea, input')].some(box => box.value === 'feature 3')")
        assert page.get_by_role("tab", name="Broken").count() == 0
        page.get_by_role("button", name="fail").click()
        page.get_by_text("a plugin's mistake").wait_for()
        page.set_input_files("input[type=file]", tmp_path / "note.txt")
        page.wait_for_function("[...document.querySelectorAll('textarea, input')].some(box => box.value === 'from a file')")
        page.get_by_role("tab", name="Features").click()
        page.locator("#saev-next").click()  # and the rest of it lives
        page.wait_for_function("new URL(location.href).searchParams.get('feature') !== '3'")
        page.close()


def test_our_own_callbacks_tell_what_went_wrong(
    run_of_pictures: Run, serving: Serving, chromium: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = Library(run_of_pictures)
    with serving(make_server(library)) as address:
        page = chromium.new_page()
        page.goto(f"{address}/?tab=image")
        page.locator("#saev-look .list button").first.wait_for()
        # A view whose SAE is damaged while the page is open.
        monkeypatch.setattr(library[library.first], "seen", lambda index: 1 // 0)
        page.locator("#saev-image-next").click()
        page.get_by_text("ZeroDivisionError").wait_for()
        monkeypatch.undo()
        page.locator("#saev-image-next").click()
        page.get_by_text("Image 2 ·").wait_for()
        page.close()


def test_whoever_goes_to_a_tab_before_the_viewers_first_answer_stays_there(run_of_pictures: Run, serving: Serving, chromium: Any) -> None:
    with serving(make_server(Library(run_of_pictures))) as address:
        page = chromium.new_page()
        held: list[Any] = []

        def hold(route: Any) -> None:
            held.append(route)

        page.route("**/gradio_api/queue/join*", hold, times=1)
        with page.expect_request("**/gradio_api/queue/join*"):
            page.goto(f"{address}/?tab=image")
        page.locator("[role=tab][aria-selected=true]", has_text="Image").wait_for()
        page.get_by_role("tab", name="Compare").click()
        held.pop().continue_()
        page.wait_for_function("new URL(location.href).searchParams.has('feature')")  # it has answered
        page.wait_for_timeout(500)
        assert page.locator("[role=tab][aria-selected=true]").inner_text() == "Compare"
        page.close()


@contextmanager
def viewing(run: Path, *args: str, env: Mapping[str, str] | None = None) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """`saev view` in a process of its own: the process, its address, and the lines before it."""
    command = [sys.executable, "-m", "saev_core.cli", "view", str(run), "--port", "0", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    said: list[str] = []
    try:
        for line in process.stdout:
            said.append(line.strip())
            if found := re.search(r"viewer: http://\S+:(\d+)", line):
                yield process, f"http://127.0.0.1:{found[1]}", said
                break
        else:
            pytest.fail("\n".join(said))
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_what_is_wrong_is_told_before_gradio_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, saev_viz.viewer.serve; print([n for n in ('gradio', 'torch', 'pandas') if n in sys.modules])"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_saev_view_serves_until_it_is_interrupted_and_leaves_nothing_behind(run_of_pictures: Run, tmp_path: Path) -> None:
    with viewing(run_of_pictures.path, env={"TMPDIR": str(tmp_path)}) as (process, address, said):
        assert said == [f"viewer: {address}  (press Ctrl-C to stop)"]
        assert "saev-tabs" in httpx.get(address, timeout=30).text
        with httpx.stream("GET", f"{address}/gradio_api/heartbeat/abc") as open_page:  # an open page holds nobody up
            next(open_page.iter_bytes())
            httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", b"hello")}, timeout=60)
            assert list(tmp_path.iterdir()) != []
            process.send_signal(signal.SIGINT)
            started = time.monotonic()
            output = process.communicate(timeout=20)[0]
        assert time.monotonic() - started < 15
        assert process.returncode in (0, 130)
        assert "Traceback" not in output
    assert [file for file in tmp_path.iterdir() if file.name.startswith("saev-view-")] == []


@pytest.mark.slow
def test_another_host_is_warned_of_and_a_password_is_asked_for_and_never_printed(run_of_pictures: Run) -> None:
    with viewing(run_of_pictures.path, "--host", "0.0.0.0", "--auth", "ada:s3cret") as (process, address, said):
        assert "anyone who can reach 0.0.0.0" in said[0]
        assert httpx.get(address, timeout=60).status_code == 401
        known = {"Authorization": "Basic " + base64.b64encode(b"ada:s3cret").decode()}
        assert httpx.get(address, headers=known, timeout=30).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert "s3cret" not in "".join(said) + process.communicate(timeout=20)[0]


GUARDED = """
import socket, sys
real = socket.socket.connect

def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
        print("CALLED", address, flush=True)
        raise OSError("no network")
    return real(self, address)

socket.socket.connect = connect
found = socket.getaddrinfo

def getaddrinfo(host, *args, **kwargs):
    if host not in ("127.0.0.1", "localhost", "::1", None, b"127.0.0.1", "0.0.0.0"):
        print("CALLED", host, flush=True)
    return found(host, *args, **kwargs)

socket.getaddrinfo = getaddrinfo
"""


@pytest.mark.slow
def test_neither_the_process_nor_the_page_calls_another_host(run_of_pictures: Run, chromium: Any, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(GUARDED)
    asked: set[str] = set()
    picture = next(Path(str(run_of_pictures.config.dataset.options["root"])).rglob("*.png"))
    with viewing(run_of_pictures.path, env={"PYTHONPATH": str(tmp_path)}) as (process, address, _):
        page = chromium.new_page()
        page.on("request", lambda request: asked.add(request.url.split("?")[0].rsplit("/", 1)[0]))
        page.on("websocket", lambda opened: asked.add(opened.url))
        page.goto(address)
        page.wait_for_function("location.search.includes('feature=')")
        for tab in ("Overview", "Features", "Image", "Compare"):
            page.get_by_role("tab", name=tab).click()
            page.wait_for_timeout(700)
        page.get_by_role("tab", name="Image").click()
        page.set_input_files("#saev-look input[type=file]", picture)
        page.get_by_text("your picture,").wait_for()
        page.close()
        for crafted in ("https://example.com/a.png", "http://192.0.2.1/a.png"):
            httpx.get(f"{address}/gradio_api/file={crafted}", timeout=60)
            httpx.get(f"{address}/gradio_api/proxy={crafted}", timeout=60)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert "CALLED" not in process.communicate(timeout=20)[0]
    assert len(asked) > 3
    assert all(url.startswith((f"{address}", "data:", "blob:")) for url in asked), asked


Saev = Callable[..., Any]


@pytest.fixture
def saev(capsys: pytest.CaptureFixture[str]) -> Saev:
    """`saev ...` within this process, for commands that end at once."""

    def run(*args: object) -> Any:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        return SimpleNamespace(returncode=code, stderr=capsys.readouterr().err)

    return run


def test_a_folder_that_is_no_run_and_a_run_without_an_index_are_told_in_one_line(saev: Saev, copied: Run, tmp_path: Path) -> None:
    done = saev("view", tmp_path / "nothing")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "does not exist; create one with saev run" in done.stderr
    done = saev("view", tmp_path)
    assert "is not a run" in done.stderr
    shutil.rmtree(copied.path / "features")
    done = saev("view", copied.path)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "has no feature index yet; build one with saev index" in done.stderr


def test_an_index_of_another_checkpoint_or_format_is_told_before_anything_is_served(saev: Saev, copied: Run) -> None:
    index = copied.features_path("topk") / "zarr.json"
    good = json.loads(index.read_text())
    for key, value, words in [("saev_features", 1, "feature index format 1"), ("weights", "0" * 64, "is the index of another checkpoint")]:
        index.write_text(json.dumps({**good, "attributes": {**good["attributes"], key: value}}))
        done = saev("view", copied.path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert words in done.stderr
        assert "saev index" in done.stderr


def test_an_index_that_lacks_a_part_says_how_to_make_it_again(copied: Run) -> None:
    shutil.rmtree(copied.features_path("topk") / "mean")
    with pytest.raises(RunError, match=r"has no mean: .*rebuild it with saev index"):
        _ = Library(copied)["topk"].index.mean


def test_a_port_that_is_taken_and_options_that_are_wrong_are_told_in_one_line(saev: Saev, run_of_pictures: Run) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = saev("view", run_of_pictures.path, "--port", port)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert f"port {port} of 127.0.0.1 cannot be used" in done.stderr
    for options, words in [(("--port", "70000"), "port 70000 is out of range"), (("--auth", "ada"), "--auth must be USER:PASSWORD")]:
        done = saev("view", run_of_pictures.path, *options)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr


def test_without_the_viewer_installed_the_command_says_what_to_install(run_of_pictures: Run) -> None:
    script = f"""
import importlib.metadata as metadata, sys
real = metadata.entry_points
metadata.entry_points = lambda **wanted: metadata.EntryPoints(e for e in real(**wanted) if not e.value.startswith("saev_viz"))
from saev_core.cli import main
sys.exit(main(["view", {str(run_of_pictures.path)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no viewer is installed; run pip install saev-viz." in done.stderr


def test_a_data_set_that_moved_is_told_in_the_page_and_found_again_by_its_flag(
    copied: Run, tmp_path: Path, serving: Serving, chromium: Any
) -> None:
    before = Path(str(copied.config.dataset.options["root"]))
    saved = json.loads((copied.path / "config.json").read_text())
    saved["config"]["dataset"]["options"]["root"] = str(tmp_path / "gone")
    (copied.path / "config.json").write_text(json.dumps(saved))
    moved = Run.open(copied.path)
    with serving(make_server(Library(moved))) as address:
        page = chromium.new_page()
        page.goto(f"{address}/?feature=0")
        page.locator("#saev-card h3").first.wait_for()
        page.get_by_text("The pictures cannot be shown").first.wait_for()
        assert "--dataset" in page.locator("#saev-warning-0").inner_text()
        page.get_by_role("tab", name="Image").click()
        page.locator("#saev-look .list button").first.wait_for()
        page.close()
        assert httpx.get(f"{address}/saev/image/0", timeout=60).status_code == 404
    shutil.copytree(before, tmp_path / "new")
    with serving(make_server(Library(moved, f"image-folder:{tmp_path / 'new'}"))) as address:
        assert httpx.get(f"{address}/saev/image/0", timeout=60).status_code == 200
        assert "saev-warning-0" not in httpx.get(address, timeout=60).text
    (tmp_path / "new" / "dots" / "00.png").unlink()
    assert "not the ones recorded" in Library(moved, f"image-folder:{tmp_path / 'new'}").no_pictures


def test_a_run_whose_store_is_gone_is_still_shown(copied: Run, run_of_pictures: Run, serving: Serving, chromium: Any) -> None:
    shutil.rmtree(copied.path / "store")
    library, whole = Library(copied), Library(run_of_pictures)
    assert "recorded activations cannot be opened" in library.lost
    for index in range(4):
        assert tuple(library.sizes[index]) == tuple(whole.sizes[index])
        assert library.crop(index) == pytest.approx(whole.crop(index))
    with serving(make_server(library)) as address:
        page = chromium.new_page()
        page.goto(f"{address}/?feature={library[library.first].start}")
        page.locator("#saev-card img").first.wait_for()
        page.get_by_text("recorded activations cannot be opened").wait_for()
        page.get_by_role("tab", name="Image").click()
        page.locator("#saev-look .list button").first.wait_for()
        page.close()


def test_the_viewer_starts_without_torch(run_of_pictures: Run) -> None:
    script = f"""
import sys
from saev_core.runs.run import Run
from saev_viz.viewer.app import make_server
from saev_viz.run_view.library import Library
library = Library(Run.open({str(run_of_pictures.path)!r}))
make_server(library)
view = library[library.first]
view.table.columns, library.sizes[0], library.crop(0), library.pictures.jpeg(0)
print([name for name in ("torch", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
