"""huggingface: real `datasets` data sets, written here and read back; the hub is a local server, or nowhere."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from saev_core.config.base import PluginRef
from saev_core.data.dataset import load_dataset
from saev_core.errors import BadImageError, DatasetError

datasets = pytest.importorskip("datasets")
N = 7
BAD = 3


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, shade, shade)).save(file, "PNG")
    return file.getvalue()


def rows(**more: Any) -> Any:
    """Seven pictures, shade 10 x row; row 3 is cut in the middle; labels fish, bird, fish, ..."""
    bytes_ = [png(10 * i) for i in range(N)]
    bytes_[BAD] = bytes_[BAD][:40]
    columns: dict[str, Any] = {
        "image": [{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(bytes_)],
        "label": [i % 2 for i in range(N)],
    }
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["fish", "bird"])}
    for name, (values, feature) in more.items():
        columns[name], features[name] = values, feature
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def write(root: Path, kind: str) -> str:
    if kind == "parquet folder":
        (root / "data").mkdir(parents=True)
        rows().to_parquet(root / "data" / "train-00000-of-00001.parquet")
        rows().select(range(2)).to_parquet(root / "data" / "test-00000-of-00001.parquet")
    elif kind == "parquet file":
        root.mkdir()
        rows().to_parquet(root / "some.parquet")
        return str(root / "some.parquet")
    elif kind == "save_to_disk":
        rows().save_to_disk(root)
    else:
        datasets.DatasetDict({"train": rows(), "test": rows().select(range(2))}).save_to_disk(root)
    return str(root)


KINDS = ["parquet folder", "parquet file", "save_to_disk", "splits on disk"]


def load(name: str, **options: Any) -> Any:
    return load_dataset(PluginRef(name="huggingface", options={"name": name, **options}))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_keep_their_number_and_a_bad_one_its_place(tmp_path: Path, kind: str) -> None:
    data = load(write(tmp_path / "data", kind))
    assert len(data) == N
    assert data.classes == ["fish", "bird"]
    assert not data.sequential
    for index, found in enumerate(data.examples(0, N)):
        if index == BAD:
            assert isinstance(found, BadImageError)
            assert "row 3" in found.path
            assert "3.png" in found.path
        else:
            assert (found.index, found.label) == (index, index % 2)
            assert np.asarray(found.image).tolist() == np.full((4, 6, 3), 10 * index).tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_moved_copy_is_the_same_data_set_and_another_is_not(tmp_path: Path, kind: str) -> None:
    first = write(tmp_path / "data", kind)
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    copy = first.replace(str(tmp_path / "data"), str(tmp_path / "copy"))
    assert load(first).identity() == load(copy).identity()
    assert load(first).identity() != load(copy, n=5).identity()
    if "splits" in kind or "folder" in kind:
        assert load(first).identity() != load(first, split="test").identity()


@pytest.mark.slow
def test_a_stream_is_read_in_order_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path = write(tmp_path / "data", "parquet folder")
    data = load(path, streaming=True, n=N)
    assert data.sequential
    assert len(data) == N
    seen = []
    for start in (0, 2, 4, 5):  # the last goes back: it begins anew
        seen += [BAD if isinstance(f, BadImageError) else f.index for f in data.examples(start, min(start + 2, N))]
    assert seen == [0, 1, 2, 3, 4, 5, 5, 6]
    assert data.identity() == load(path).identity()
    assert data[6].image.getpixel((0, 0)) == (60, 60, 60)
    with pytest.raises(BadImageError):
        data[BAD]


def test_a_stream_that_does_not_say_its_length_asks_for_it(tmp_path: Path) -> None:
    path = write(tmp_path / "data", "parquet folder")
    with pytest.raises(DatasetError, match=r"dataset\.options\.n"):
        load(path, streaming=True)
    data = load(path, streaming=True, n=N + 5)
    with pytest.raises(DatasetError, match="ended after 7 images, not 12"):
        list(data.examples(0, N + 5))


def test_columns_may_be_named(tmp_path: Path) -> None:
    masks = [{"bytes": None, "path": None}] * N
    for i in range(N):
        file = io.BytesIO()
        Image.fromarray(np.full((4, 6), i, np.uint8)).save(file, "PNG")
        masks[i] = {"bytes": file.getvalue(), "path": None}  # type: ignore[dict-item]
    data = rows(
        seg=(masks, datasets.Image()),
        raw=([png(200)] * N, datasets.Value("binary")),
        place=(["sea" if i % 3 else "air" for i in range(N)], datasets.Value("string")),
    )
    data.save_to_disk(tmp_path / "data")
    path = str(tmp_path / "data")
    assert load(path)[0].label == 0  # `image` is the usual name, though `seg` holds images too
    other = load(path, image="raw", label="place", mask="seg")
    assert other.classes == ["air", "sea"]
    assert [other[i].label for i in range(4)] == [0, 1, 1, 0]
    assert other[2].image.getpixel((0, 0)) == (200, 200, 200)
    assert other[2].mask.tolist() == np.full((4, 6), 2).tolist()
    assert load(path, label="none").classes is None


def test_a_hidden_label_is_no_label(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict(
        {"img": [{"bytes": png(1), "path": None}], "label": [-1]},
        features=datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a"])}),
    )
    data.save_to_disk(tmp_path / "data")
    assert load(str(tmp_path / "data"))[0].label is None


def test_threads_read_the_same_rows(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    data = load(write(tmp_path / "data", "save_to_disk"))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: data[i % 3].image.getpixel((0, 0))[0], range(96)))
    assert found == [10 * (i % 3) for i in range(96)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"split": "validation"}, "no split 'validation'; it has"),
        ({"image": "picture"}, "no column 'picture'; it has image, label"),
        ({"image": "label"}, "contains int64, not images"),
        ({"label": "kind"}, "no column 'kind'"),
        ({"mask": "seg"}, "no column 'seg'"),
    ],
)
def test_what_is_not_there_is_named_beside_what_is(tmp_path: Path, options: dict[str, str], says: str) -> None:
    path = write(tmp_path / "data", "splits on disk")
    with pytest.raises(DatasetError, match=says.replace(".", r"\.")) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["missing", "empty", "damaged", "text", "no images"])
def test_a_path_that_will_not_do_gives_one_line_that_names_it(tmp_path: Path, what: str) -> None:
    path = tmp_path / "data"
    if what == "text":
        path.write_text("hello")
    elif what != "missing":
        path.mkdir()
    if what == "damaged":
        rows().to_parquet(path / "train.parquet")
        (path / "train.parquet").write_bytes((path / "train.parquet").read_bytes()[:-50])
    if what == "no images":
        datasets.Dataset.from_dict({"x": [1, 2]}).to_parquet(path / "train.parquet")
    with pytest.raises(DatasetError, match=str(path)) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)


ASK = """
import sys, time
from saev_core.data.dataset import load_dataset
from saev_core.errors import DatasetError
import datasets
for name in sys.argv[1:]:
    begin = time.monotonic()
    try:
        print("ok", len(load_dataset("huggingface:" + name)), flush=True)
    except DatasetError as error:
        print(f"{time.monotonic() - begin:.1f} {error}", flush=True)
"""


def ask(endpoint: str, cache: Path, *names: str) -> list[str]:
    """What loading each name from a hub at `endpoint` says, in a process of its own: the hub's address is read at import."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    env = {k: v for k, v in env.items() if k not in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE")}
    done = subprocess.run([sys.executable, "-c", ASK, *names], env=env, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()


@pytest.mark.slow
def test_no_network_is_one_quick_line_and_a_downloaded_copy_is_used(tmp_path: Path) -> None:
    # What a finished download leaves behind, made by the library's own builder.
    write(tmp_path / "data", "parquet folder")
    from datasets.packaged_modules.parquet.parquet import Parquet

    home = tmp_path / "home" / "datasets"
    Parquet(
        cache_dir=str(home),
        dataset_name="fishes",
        hash="0123456789abcdef",
        data_files={"train": [str(tmp_path / "data/data/train-00000-of-00001.parquet")]},
    ).download_and_prepare()
    # The builder was given local files; one that was given the hub's names the folder after owner and configuration.
    (made,) = (home / "fishes").iterdir()
    (home / "someone___fishes").mkdir()
    made.rename(home / "someone___fishes" / "default")
    nowhere = "http://127.0.0.1:9"
    copy, absent = ask(nowhere, tmp_path / "home", "someone/fishes", "someone/absent")
    assert copy == "ok 7"
    seconds, said = absent.split(" ", 1)
    assert float(seconds) < 12
    assert "someone/absent: the hub is not reachable" in said


class Hub(BaseHTTPRequestHandler):
    """A hub that has one gated data set and nothing else."""

    def do_HEAD(self) -> None:
        gated = "closed" in self.path
        self.send_response(200 if self.path == "/" else 401 if gated else 404)
        if self.path != "/":
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        body = json.dumps({"error": "no"}).encode()
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_a_gated_and_an_unknown_data_set_each_say_what_to_do(tmp_path: Path, hub: str) -> None:
    gated, unknown = ask(hub, tmp_path / "home", "someone/closed", "someone/unheard-of")
    assert "someone/closed is a gated data set" in gated
    assert "HF_TOKEN" in gated
    assert "someone/unheard-of is neither on the hub" in unknown
    assert max(float(line.split(" ", 1)[0]) for line in (gated, unknown)) < 12
