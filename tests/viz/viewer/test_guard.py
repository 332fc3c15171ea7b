"""What the viewer's server serves, to whom, and what it rejects."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import re
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from commands import Serving
from PIL import Image
from starlette.routing import Mount

from saev_core.errors import BadImageError, RunError
from saev_core.runs.run import Run
from saev_viz.run_view.library import Library
from saev_viz.run_view.uploads import MAX_BYTES, Uploads
from saev_viz.viewer.app import make_server, private_folder
from saev_viz.viewer.guard import POLICY, Guard

SECRET = b"nobody may read this"
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(scope="module")
def guard(run_of_pictures: Run) -> Guard:
    return make_server(Library(run_of_pictures), local=True)


@pytest.fixture(scope="module")
def address(guard: Guard, serving: Serving) -> Iterator[str]:
    with serving(guard) as url:
        yield url


def ask(address: str, path: str, method: str = "GET", body: bytes = b"", headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """A request with its path sent verbatim, not normalised by a client. Reads only the start of an endless response."""
    host, port = address.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=10)
    try:
        connection.putrequest(method, path, skip_host="Host" in (headers or {}))
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        return answer.status, answer.read1(1 << 20)
    finally:
        connection.close()


def templates(app: Any, prefix: str = "") -> Iterator[str]:
    """Every path of an application, with its parameters in braces."""
    for route in app.routes:
        path = prefix + str(getattr(route, "path", ""))
        inner = getattr(route, "original_router", route.app if isinstance(route, Mount) else None)
        if inner is not None:
            yield from templates(inner, path)
        else:
            yield path


def tries(file: Path) -> list[str]:
    """Requests for files that must not be served."""
    up = "../" * 12 + str(file)[1:]
    return [
        str(file),
        up,
        f"assets/{up}",
        quote(str(file), safe=""),
        quote(up, safe=""),
        up.replace("../", "%2e%2e/"),
        up.replace("../", "%252e%252e%252f"),
        up.replace("../", "....//"),
        up.replace("../", "..\\"),
        up.replace("../", "..%5c"),
        f"file://{file}",
        f"//{file}",
        f"{file}%00.png",
        f".{file}",
    ]


def test_no_route_serves_a_file_outside_the_run_and_its_data_set(guard: Guard, address: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(SECRET)
    link = private_folder() / "link.png"
    link.symlink_to(tmp_path / "secret.png")
    run = Library(Run.open(next(iter(_runs(guard))))).run.path.resolve()
    targets = [tmp_path / "secret.png", link, Path("/etc/passwd"), run / "config.json", run / "sae" / "topk" / "checkpoint.json"]
    marks = [SECRET, SECRET, b"root:", (run / "config.json").read_bytes()[:60], b'"saev_checkpoint"']
    paths = set(templates(guard._app)) | {
        "/",
        "/file=",
        "/gradio_api/file=",
        "/gradio_api/proxy=",
        "/saev/",
        "/saev/image/",
        "/saev/upload/",
    }
    assert len(paths) > 60, "gradio's own routes are among them"
    n_asked = 0
    for path in sorted(paths):
        slots = re.split(r"\{[^}]*\}", path)
        for target, mark in zip(targets, marks, strict=True):
            for attempt in tries(target) if len(slots) > 1 or path.endswith(("=", "/")) else []:
                url = attempt.join(slots) if len(slots) > 1 else path + attempt
                status, body = ask(address, url if url.startswith("/") else f"/{url}")
                n_asked += 1
                assert mark not in body, f"{url} answered {status} with {target}"
                assert status != 500, url
    assert n_asked > 1500
    link.unlink()


def _runs(guard: Guard) -> Iterator[str]:
    """The run that a guard serves: gradio is told to keep away from it."""
    for route in guard._app.routes:  # type: ignore[attr-defined]
        if isinstance(route, Mount):
            yield from route.app.get_blocks().blocked_paths  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/proxy=https://example.com/",
        "/gradio_api/file=https://example.com/logo.png",
        "/gradio_api/file/etc/passwd",
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/openapi.json",
        "/openapi.json",
        "/docs",
        "/redoc",
        "/gradio_api/runs",
        "/gradio_api/run-history/buckets",
        "/gradio_api/vibe-code",
        "/gradio_api/dev/reload",
        "/gradio_api/custom_component/x/client/component/index.js",
        "/gradio_api/deep_link",
        "/gradio_api/mcp/sse",
        "/gradio_api/call/choose",
        "/login",
    ],
)
def test_doors_of_gradio_that_no_page_needs_are_shut(address: str, path: str) -> None:
    assert ask(address, path)[0] == 404
    assert ask(address, path, "POST", b"{}")[0] == 404


def _calls(address: str) -> list[tuple[int, int]]:
    """Callbacks with inputs: index and number of inputs."""
    config = httpx.get(f"{address}/config", timeout=60).json()
    return [(d["id"], len(d["inputs"])) for d in config["dependencies"] if d["inputs"] and d["backend_fn"]]


@pytest.mark.parametrize("path", ["/etc/passwd", "https://example.com/a.png", "../../etc/passwd", "relative.png"])
def test_a_call_cannot_name_a_file_that_was_not_uploaded(address: str, path: str) -> None:
    crafted = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    before = set(private_folder().rglob("*"))
    calls = _calls(address)
    assert len(calls) > 8
    for number, n in calls[:6]:
        for nested in (crafted, [crafted], {"a": {"b": crafted}}):
            body = json.dumps({"fn_index": number, "data": [nested] * n, "session_hash": "test"}).encode()
            for route in ("run/predict", "queue/join"):
                status, told = ask(address, f"/gradio_api/{route}", "POST", body, {"Content-Type": "application/json"})
                assert (status, b"Only uploaded files" in told) == (403, True)
    assert set(private_folder().rglob("*")) == before


def test_gradio_itself_refuses_such_a_call_too(guard: Guard, serving: Serving) -> None:
    crafted = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    with serving(guard._app) as bare:
        number, n = _calls(bare)[0]
        answer = httpx.post(
            f"{bare}/gradio_api/run/predict", json={"fn_index": number, "data": [crafted] * n, "session_hash": "x"}, timeout=60
        )
    assert answer.status_code == 500
    assert "not uploaded by a user" in answer.text
    assert not any(file.is_file() and b"root:" in file.read_bytes() for file in private_folder().rglob("*"))


def test_what_is_uploaded_to_gradio_for_a_plugins_tab_lies_in_a_private_folder_and_can_be_named(address: str) -> None:
    (stored,) = httpx.post(f"{address}/gradio_api/upload", files={"files": ("a.png", b"hello")}, timeout=60).json()
    assert Path(stored).resolve().is_relative_to(private_folder().resolve())
    assert private_folder().stat().st_mode & 0o077 == 0
    assert ask(address, f"/gradio_api/file={stored}") == (200, b"hello")
    number, n = _calls(address)[0]
    body = json.dumps({"fn_index": number, "data": [{"path": stored, "meta": {"_type": "gradio.FileData"}}] * n, "session_hash": "x"})
    assert ask(address, "/gradio_api/run/predict", "POST", body.encode(), {"Content-Type": "application/json"})[0] != 403


def test_a_call_longer_than_any_page_sends_is_refused(address: str) -> None:
    status, _ = ask(address, "/gradio_api/run/predict", "POST", b" " * 16_000_001)
    assert status == 413
    assert ask(address, "/gradio_api/run/predict", "POST", b"[" * 100_000)[0] == 403


def png(mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: Any) -> bytes:
    buffer = io.BytesIO()
    values = np.arange(size[0] * size[1]).reshape(size[1], size[0])
    image = Image.fromarray((values * 50).astype(np.uint16)) if mode == "I;16" else Image.fromarray(values.astype(np.uint8)).convert(mode)
    image.save(buffer, **{"format": "PNG", **options})
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 30,000 by 30,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def send(address: str, data: bytes, name: str = "a.png") -> httpx.Response:
    return httpx.post(f"{address}/saev/upload", content=data, headers={"X-Name": quote(name)}, timeout=30)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "the file is empty"),
        (b"%PDF-1.4 not a picture", "unknown image format"),
        (png()[:60], ""),
        (png("RGB", (400, 300), format="JPEG")[:900], ""),
        (bomb(), "it has too many pixels"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "unknown image format"),
    ],
    ids=["empty", "no image", "truncated PNG", "truncated JPEG", "bomb", "SVG"],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_upload_that_is_no_picture_is_told_so_and_the_next_one_works(address: str, data: bytes, why: str) -> None:
    answer = send(address, data, "holiday.png")
    assert answer.status_code == 422
    told = answer.json()["error"]
    assert told.startswith("holiday.png cannot be shown: ")
    assert why in told
    assert told.endswith("Choose a picture file, such as a JPEG or PNG.")
    assert "picture" in send(address, png()).json()


def test_a_file_beyond_the_limit_is_refused(address: str) -> None:
    with contextlib.suppress(httpx.WriteError, httpx.ReadError):  # the server may hang up before all is sent
        answer = send(address, b"\0" * (MAX_BYTES + 1))
        assert "larger than 50 MB" in answer.json()["error"]
    assert send(address, png()).status_code == 200


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    return png("RGB", (40, 30), format="JPEG", exif=exif)


@pytest.mark.parametrize(
    ("data", "name", "size"),
    [
        (png("CMYK", format="JPEG"), "print.jpg", (40, 30)),
        (png("I;16"), "scan.png", (40, 30)),
        (png("P", format="GIF", save_all=True, append_images=[Image.new("P", (40, 30), 3)]), "moving.gif", (40, 30)),
        (_turned(), "phone.jpg", (30, 40)),
        (png("RGB", format="JPEG"), "wrong.txt", (40, 30)),
        (png("RGBA"), "../../clear.png", (40, 30)),
        (png("RGB", (3000, 10)), "wide.png", (896, 3)),
    ],
    ids=["CMYK", "16 bit", "animated", "turned by EXIF", "wrong extension", "transparent, odd name", "very wide"],
)
def test_every_kind_of_picture_is_shown_upright_and_never_written_to_disk(
    address: str, guard: Guard, data: bytes, name: str, size: tuple[int, int]
) -> None:
    before = set(private_folder().rglob("*"))
    key = send(address, data, name).json()["picture"]
    answer = httpx.get(f"{address}/saev/upload/{key}", timeout=60)
    assert answer.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(answer.content)).size == size
    assert set(private_folder().rglob("*")) == before


def test_old_uploads_are_forgotten_and_that_is_told() -> None:
    data = png("RGB", (200, 200))
    held = Uploads(keep_bytes=2 * len(data))
    first, second, third = (held.add(data) for _ in range(3))
    assert held[third].image().size == held[second].image().size == (200, 200)
    with pytest.raises(RunError, match="choose it again"):
        held[first]
    with pytest.raises(BadImageError):
        held.add(b"no")


def test_uploads_from_many_threads_are_all_found() -> None:
    held, keys = Uploads(), []
    threads = [threading.Thread(target=lambda: keys.append(held.add(png()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*keys}) == 8
    assert all(held[key].width == 40 for key in keys)


def test_every_answer_keeps_the_page_to_itself(address: str) -> None:
    for path in ("/", "/config", "/theme.css", "/saev/image/0", "/nothing", "/gradio_api/file=/etc/passwd"):
        headers = httpx.get(f"{address}{path}", timeout=60).headers
        assert headers["content-security-policy"] == POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
    assert "https:" not in POLICY
    assert "http:" not in POLICY


def test_a_picture_that_is_not_there_is_not_found(address: str) -> None:
    assert ask(address, "/saev/image/23")[0] == 200
    for path in ("/saev/image/24", "/saev/image/-1", "/saev/image/99999999999999999999", "/saev/upload/no", "/saev/nothing"):
        assert ask(address, path)[0] == 404, path
    assert ask(address, "/saev/image/0?px=x")[0] == 422


def test_only_names_of_this_machine_are_answered(address: str) -> None:
    for host, status in [
        ("127.0.0.1:7860", 200),
        ("localhost", 200),
        ("[::1]:1", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
    ]:
        assert ask(address, "/config", headers={"Host": host})[0] == status, host


def test_another_sites_page_cannot_send_anything(address: str) -> None:
    for site, refused in [("same-origin", False), ("none", False), ("cross-site", True), ("same-site", True)]:
        status, _ = ask(address, "/saev/upload", "POST", png(), {"Sec-Fetch-Site": site})
        assert (status == 403) == refused, site


def basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


def test_a_password_stands_before_everything(run_of_pictures: Run, serving: Serving) -> None:
    guard = make_server(Library(run_of_pictures), auth="ada:pass:wörd")
    paths = ["/", "/config", "/theme.css", "/saev/image/0", "/gradio_api/queue/data?session_hash=a", "/gradio_api/heartbeat/a", "/nothing"]
    wrong = [
        {},
        basic("ada:other"),
        basic("ada:"),
        basic(""),
        basic("eve:pass:wörd"),
        {"Authorization": "Basic %%%"},
        {"Authorization": "Bearer x"},
    ]
    with serving(guard) as url:
        for path in paths:
            for headers in wrong:
                status, body = ask(url, path, headers=headers)
                assert (status, body) == (401, b"This viewer requires a user name and password."), (path, headers)
        assert "Basic" in httpx.get(url, timeout=60).headers["www-authenticate"]
        for method in ("POST", "HEAD", "OPTIONS", "PUT"):
            assert ask(url, "/gradio_api/run/predict", method)[0] == 401
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x" * 22 + "==", "Sec-WebSocket-Version": "13"}
        assert ask(url, "/gradio_api/queue/join", headers=upgrade)[0] in (401, 403)
        right = basic("ada:pass:wörd")
        for path in ("/", "/config", "/saev/image/0"):
            assert ask(url, path, headers=right)[0] == 200
        assert ask(url, "/gradio_api/heartbeat/a", headers=right) == (200, b"data: ALIVE\n\n")
        # With a password another name may lead here: who does not know it sees nothing.
        assert ask(url, "/config", headers={**right, "Host": "lab.example"})[0] == 200


def test_gradio_is_imported_without_writing_stubs_into_its_own_folder() -> None:
    program = (
        "import sys; from saev_viz.viewer.serve import _NoStubs\n"
        "with _NoStubs():\n    import gradio\n"
        "from pathlib import Path\nfrom gradio.component_meta import create_or_modify_pyi as write\n"
        "stub = Path(gradio.__file__).parent / 'components' / 'textbox.pyi'\n"
        "was = stub.stat().st_mtime_ns if stub.exists() else None\n"
        "write(gradio.Textbox, 'Textbox', [])\n"
        "assert (stub.stat().st_mtime_ns if stub.exists() else None) == was\n"
        "assert write.__module__ == 'saev_viz.viewer.serve', write\n"
        "assert not any(isinstance(finder, _NoStubs) for finder in sys.meta_path)\n"
        "assert gradio.Textbox(value='a').value == 'a'\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
