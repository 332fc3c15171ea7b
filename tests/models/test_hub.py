"""What a person reads when a checkpoint cannot be had: one line, soon, that says what to do."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from saev_core.config.base import PluginRef
from saev_core.errors import ModelError
from saev_core.models.base import load_model
from saev_core.plugins.registry import config_class, find
from saev_models.hub import Folder, Repo, is_path, need, open_files, weight_files

pytest.importorskip("huggingface_hub")

FAMILIES = {
    "dinov2": ("transformers", "facebook/dinov2-small"),
    "siglip": ("transformers", "google/siglip-base-patch16-224"),
    "moondream2": ("safetensors", "vikhyatk/moondream2"),
    "clip": ("open_clip", "ViT-B-32/openai"),
    "timm": ("timm", "vit_tiny_patch16_224"),
}


@pytest.fixture(autouse=True)
def _nothing_cached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def offline(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A machine without the hub: unknown host, refused connection, or told to stay offline."""
    if request.param == "told":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        return "HF_HUB_OFFLINE is set"
    host = "hub.invalid" if request.param == "unknown host" else f"127.0.0.1:{free_port()}"
    monkeypatch.setenv("HF_ENDPOINT", f"http://{host}")
    return "cannot be reached"


@pytest.mark.slow
@pytest.mark.parametrize("offline", ["unknown host", "refused", "told"], indirect=True)
@pytest.mark.parametrize("family", FAMILIES)
def test_offline_every_family_says_so_at_once_and_what_to_do(family: str, offline: str, capfd: pytest.CaptureFixture[str]):
    library, name = FAMILIES[family]
    if family == "siglip":
        pytest.importorskip("transformers").SiglipVisionModel  # noqa: B018  (it is imported when it is named)
    pytest.importorskip(library)
    config_class(find("model", family))  # imports the family, which takes its time on a busy machine
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        load_model(PluginRef(name=family, options={"checkpoint": name}), "cpu")
    line = str(caught.value)
    assert "\n" not in line
    assert "is not in the local cache and" in line
    assert offline in line
    assert "give its path as model.checkpoint" in line
    # The hub's own client would retry for 23 seconds.
    assert time.monotonic() - started < 10
    assert capfd.readouterr().err == ""


class Hub(BaseHTTPRequestHandler):
    """A hub that refuses in the ways the real one does."""

    def do_HEAD(self) -> None:
        repo = self.path.split("/resolve/")[0].strip("/")
        status, headers = {
            "owner/gated": (403, {"X-Error-Code": "GatedRepo"}),
            "owner/absent": (404, {"X-Error-Code": "RepoNotFound"}),
            "owner/private": (401, {}),
            "owner/renamed-branch": (404, {"X-Error-Code": "RevisionNotFound"}),
            "owner/empty": (404, {"X-Error-Code": "EntryNotFound"}),
            "owner/broken": (400, {}),
        }.get(repo, (404, {"X-Error-Code": "RepoNotFound"}))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield endpoint
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("owner/gated", r"owner/gated@v9 is gated: accept its terms at http://.*/owner/gated, then run `hf auth login` or set HF_TOKEN\."),
        ("owner/absent", r"owner/absent is not on http://.*, or is private: check the name, or run `hf auth login`"),
        ("owner/private", r"owner/private is not on http://.*, or is private"),
        ("owner/renamed-branch", r"owner/renamed-branch has no revision 'v9'; check model\.revision\."),
        ("owner/empty", r"owner/empty@v9 has no config\.json; it is not a checkpoint this plugin can read\."),
        ("owner/broken", r"owner/broken@v9 is not in the local cache and the hub answered 400; .*give its path as model\.checkpoint\."),
        ("what?", r"'what\?' is neither a local path nor a name like owner/model on the hub\."),
    ],
)
def test_each_refusal_of_the_hub_is_one_line(hub: str, name: str, says: str):
    with pytest.raises(ModelError, match=says) as caught:
        need(Repo(name, "v9"), "config.json")
    assert "\n" not in str(caught.value)


def test_a_cached_file_is_found_without_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    repo = tmp_path / "cache" / "models--owner--model"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    (snapshot / "config.json").write_text("{}")
    assert need(Repo("owner/model"), "other.json", "config.json").read_text() == "{}"


def test_a_path_that_is_not_there_is_no_hub_name(tmp_path: Path):
    with pytest.raises(ModelError, match="no such file or folder"):
        open_files(str(tmp_path / "absent"))
    assert [is_path(text) for text in ("./a", "~/a", "/a", "a/b/c", "a/b", "a")] == [True, True, True, True, False, False]


def test_safetensors_come_before_pickles_and_shards_are_all_needed(tmp_path: Path):
    files = Folder(tmp_path)
    with pytest.raises(ModelError, match=r"has no model\.safetensors or"):
        weight_files(files)
    (tmp_path / "pytorch_model.bin").touch()
    assert weight_files(files) == [tmp_path / "pytorch_model.bin"]
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "one", "b": "two", "c": "one"}}))
    (tmp_path / "one").touch()
    with pytest.raises(ModelError, match="has no two"):
        weight_files(files)
    (tmp_path / "two").touch()
    assert weight_files(files) == [tmp_path / "one", tmp_path / "two"]
    (tmp_path / "model.safetensors").touch()
    assert weight_files(files) == [tmp_path / "model.safetensors"]
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors.index.json").write_text("[")
    with pytest.raises(ModelError, match="not readable as JSON"):
        weight_files(files)
