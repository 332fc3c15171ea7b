"""Downloads from a real HTTP server on this machine: whole, broken, changed, malicious; and the random split."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import json
import re
import resource
import struct
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from saev_core.cli import main
from saev_core.config.base import PluginRef
from saev_core.data.dataset import ImageDataset, load_dataset
from saev_core.data.download import Archive, download
from saev_core.data.http import fetch
from saev_core.data.split_folders import divide, write_split
from saev_core.data.unpack import unpack
from saev_core.errors import DatasetError, DownloadError
from saev_core.plugins.registry import find
from saev_core.support.progress import Meter


class Server:
    """Files by path, each served as told, and every request that was made."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str | None]] = []
        """Path and Range of every request."""
        self.cut: list[int] = []
        """Bytes after which the next answers break off, one of these for each."""
        self.ranges = self.etags = True
        self.refuse: list[int] = []
        """Status codes of the next answers."""
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                wanted = self.headers.get("Range")
                server.asked.append((self.path, wanted))
                if server.refuse:
                    self.send_error(server.refuse.pop(0))
                    return
                if self.path not in server.files:
                    self.send_error(404)
                    return
                data = server.files[self.path]
                etag = f'"{hashlib.md5(data).hexdigest()}"'
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0  # type: ignore[index]
                if start and self.headers.get("If-Range") not in (None, etag):
                    start = 0
                if start >= len(data):
                    self.send_error(416)
                    return
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
                if server.etags:
                    self.send_header("ETag", etag)
                self.send_header("Content-Length", str(len(data) - start))
                self.end_headers()
                self.wfile.write(data[start:][: server.cut.pop(0)] if server.cut else data[start:])

            def log_message(self, format: str, *args: object) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def archive(self, name: str, data: bytes, **more: Any) -> Archive:
        """A file that is served, with its true checksum."""
        self.files[f"/{name}"] = data
        return Archive(f"{self.url}/{name}", **{"checksum": f"md5:{hashlib.md5(data).hexdigest()}", "size": len(data), **more})

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def picture(shade: int = 0, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(out, kind)
    return out.getvalue()


def tar(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as made:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            made.addfile(member, io.BytesIO(data))
    return out.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return out.getvalue()


NOISE = np.random.default_rng(0).bytes(400_000)


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# --- one file


def test_a_file_comes_whole_and_is_told_by_its_sha256(server: Server, tmp_path: Path) -> None:
    archive = server.archive("a.bin", NOISE)
    found = fetch(archive.url, tmp_path / "a.bin", checksum=archive.checksum)
    assert (tmp_path / "a.bin").read_bytes() == NOISE
    assert found == {"url": archive.url, "sha256": hashlib.sha256(NOISE).hexdigest(), "size": 400_000, "checked": archive.checksum}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin"]
    fetch(archive.url, tmp_path / "a.bin", checksum=archive.checksum)
    assert len(server.asked) == 1, "what is there is not fetched again"


@pytest.mark.parametrize("etags", [True, False])
def test_a_broken_transfer_is_gone_on_with(server: Server, tmp_path: Path, etags: bool) -> None:
    server.etags, server.cut = etags, [150_000, 100_000]
    archive = server.archive("a.bin", NOISE)
    fetch(archive.url, tmp_path / "a.bin", checksum=archive.checksum, pause_s=0)
    assert (tmp_path / "a.bin").read_bytes() == NOISE
    assert [asked for _, asked in server.asked] == [None, "bytes=150000-", "bytes=250000-"]


def test_another_process_goes_on_where_the_first_was_left(server: Server, tmp_path: Path) -> None:
    archive = server.archive("a.bin", NOISE)
    server.cut = [200_000]
    with pytest.raises(DownloadError, match=r"connection lost after 200,000 of 400,000.*0\.2 MB received so far are kept"):
        fetch(archive.url, tmp_path / "a.bin", checksum=archive.checksum, tries=1, pause_s=0)
    assert (tmp_path / "a.bin.part").stat().st_size == 200_000
    fetch(archive.url, tmp_path / "a.bin", checksum=archive.checksum)
    assert server.asked[-1] == ("/a.bin", "bytes=200000-")
    assert (tmp_path / "a.bin").read_bytes() == NOISE


def test_progress_counts_what_came_before_apart(server: Server, tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []

    class Told(Meter):
        def update(self, n: int = 1, **facts: float) -> None:
            told.append(("update", n))

        def skip(self, n: int) -> None:
            told.append(("skip", n))

    def track(title: str, total: int, unit: str) -> Meter:
        told.append((f"{title} {unit}", total))
        return Told()

    archive, server.cut = server.archive("a.bin", bytes(5_000_000)), [3_000_000]
    fetch(archive.url, tmp_path / "a.bin", checksum=archive.checksum, track=track, pause_s=0)
    assert [each for each in told if each[0] != "update"] == [("fetch a.bin MB", 5), ("skip", 0), ("fetch a.bin MB", 5), ("skip", 3)]
    assert sum(n for what, n in told if what == "update") == 5


def test_a_server_without_ranges_is_asked_from_the_beginning(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cut = False, [300_000]
    archive = server.archive("a.bin", NOISE)
    fetch(archive.url, tmp_path / "a.bin", checksum=archive.checksum, pause_s=0)
    assert (tmp_path / "a.bin").read_bytes() == NOISE


@pytest.mark.parametrize(("etags", "longer"), [(True, 0), (True, 10), (False, 10)])
def test_a_file_that_changed_meanwhile_is_not_glued_to_the_old_one(server: Server, tmp_path: Path, etags: bool, longer: int) -> None:
    server.etags, server.cut = etags, [200_000]
    archive = server.archive("a.bin", NOISE)
    with pytest.raises(DownloadError):
        fetch(archive.url, tmp_path / "a.bin", tries=1, pause_s=0)
    other = server.archive("a.bin", NOISE[::-1] + bytes(longer))
    fetch(other.url, tmp_path / "a.bin", checksum=other.checksum, pause_s=0)
    assert (tmp_path / "a.bin").read_bytes() == NOISE[::-1] + bytes(longer)


def test_a_part_of_another_address_is_begun_anew(server: Server, tmp_path: Path) -> None:
    archive = server.archive("a.bin", NOISE)
    (tmp_path / "a.bin.part").write_bytes(bytes(100))
    (tmp_path / "a.bin.part.json").write_text('{"url": "http://elsewhere/a.bin", "total": 400000}')
    fetch(archive.url, tmp_path / "a.bin", checksum=archive.checksum)
    (tmp_path / "b.bin.part").write_bytes(bytes(100))
    (tmp_path / "b.bin.part.json").write_text('{"url"')
    fetch(archive.url, tmp_path / "b.bin", checksum=archive.checksum)


def test_a_wrong_checksum_is_one_line_and_the_file_is_kept_aside(server: Server, tmp_path: Path) -> None:
    archive = server.archive("a.bin", NOISE)
    server.files["/a.bin"] = NOISE[:-1] + b"x"
    with pytest.raises(DownloadError, match=r": md5 is [0-9a-f]{32}, expected [0-9a-f]{32}.*kept as .*a\.bin\.bad") as caught:
        fetch(archive.url, tmp_path / "a.bin", checksum=archive.checksum)
    one_line(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin.bad"]


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server: Server, tmp_path: Path) -> None:
    archive = server.archive("a.bin", NOISE)
    server.refuse = [503, 429]
    fetch(archive.url, tmp_path / "a.bin", checksum=archive.checksum, pause_s=0)
    assert len(server.asked) == 3
    with pytest.raises(DownloadError, match=r"returned 404 Not Found; if it has moved, save the file as .*b\.bin and re-run"):
        fetch(f"{server.url}/b.bin", tmp_path / "b.bin", pause_s=0)
    assert len(server.asked) == 4


def test_no_network_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"cannot be fetched.*is this machine online") as caught:
        fetch("http://127.0.0.1:9/a.bin", tmp_path / "a.bin", tries=2, pause_s=0)
    one_line(caught.value)
    with pytest.raises(DownloadError, match=r"cannot be fetched.*is this machine online"):
        fetch("http://no-such-host.invalid/a.bin", tmp_path / "a.bin", pause_s=0)
    with pytest.raises(DownloadError, match="only http"):
        fetch("file:///etc/passwd", tmp_path / "a.bin")
    assert list(tmp_path.iterdir()) == []


def test_much_more_than_was_declared_is_not_fetched(server: Server, tmp_path: Path) -> None:
    archive = server.archive("a.bin", bytes(4_000_000))
    with pytest.raises(DownloadError, match="is 4 MB, expected about 0 MB"):
        fetch(archive.url, tmp_path / "a.bin", size=1000)


def test_a_full_disk_is_one_line_and_what_came_is_kept(server: Server, tmp_path: Path) -> None:
    archive = server.archive("a.bin", NOISE)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))  # what a full disk does, for this process alone
    try:
        with pytest.raises(DownloadError, match=r"cannot be written.*free some disk space and re-run the same command") as caught:
            fetch(archive.url, tmp_path / "a.bin", checksum=archive.checksum)
        one_line(caught.value)
        (tmp_path / "big.tar").write_bytes(b"")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert 0 < (tmp_path / "a.bin.part").stat().st_size <= 300_000
    fetch(archive.url, tmp_path / "a.bin", checksum=archive.checksum)
    assert (tmp_path / "a.bin").read_bytes() == NOISE


def test_too_small_a_disk_is_told_before_anything_is_fetched(server: Server, tmp_path: Path) -> None:
    archive = server.archive("a.zip", b"", size=10**17)
    with pytest.raises(DownloadError, match=r"has .* GB free, and 200,000,000\.0 GB are needed"):
        download([archive], tmp_path / "set")
    assert server.asked == []


# --- archives of strangers


def hostile_tar(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as made:
        first = tarfile.TarInfo("good.txt")
        first.size = 2
        made.addfile(first, io.BytesIO(b"ok"))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        made.addfile(member)
    return out.getvalue()


OUTSIDE = ["../evil.txt", "a/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:/evil.txt", "C:evil.txt"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_member_leaves_the_folder(tmp_path: Path, name: str, kind: str) -> None:
    file = tmp_path / f"a.{kind}"
    file.write_bytes(hostile_tar(name) if kind == "tar" else zipped({"good.txt": b"ok", name: b"evil"}))
    with pytest.raises(DownloadError, match="written outside its folder") as caught:
        unpack(file, tmp_path / "deep" / "out", 10**6)
    one_line(caught.value)
    assert not list(tmp_path.rglob("*evil*"))
    assert not Path("/evil.txt").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    (tmp_path / "a.tgz").write_bytes(hostile_tar("odd", kind, "/etc/passwd"))
    with pytest.raises(DownloadError, match="'odd', a link or a device"):
        unpack(tmp_path / "a.tgz", tmp_path / "out", 10**6)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.txt"]


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as made:
        link = zipfile.ZipInfo("odd")
        link.external_attr = 0o120777 << 16
        made.writestr(link, "/etc/passwd")
    with pytest.raises(DownloadError, match="'odd', a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out", 10**6)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_bomb_is_stopped_at_the_limit(tmp_path: Path, kind: str) -> None:
    files = {f"{i}.txt": bytes(3_000_000) for i in range(4)}
    (tmp_path / f"a.{kind}").write_bytes(zipped(files) if kind == "zip" else tar(files))
    assert (tmp_path / f"a.{kind}").stat().st_size < 20_000
    with pytest.raises(DownloadError, match="unpacks to more than 5 MB"):
        unpack(tmp_path / f"a.{kind}", tmp_path / "out", 5_000_000)
    assert sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) <= 5_000_000
    assert unpack(tmp_path / f"a.{kind}", tmp_path / "all", 12_000_000) == 12_000_000


def test_a_damaged_archive_is_one_line(tmp_path: Path) -> None:
    good = {"a.tgz": tar({"a": NOISE}), "b.tar": tar({"a": NOISE}, "w"), "c.zip": zipped({"a": NOISE})}
    for name, data in good.items():
        for damaged in (data[: len(data) // 2], b"not at all", b""):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(DownloadError, match="is damaged") as caught:
                unpack(tmp_path / name, tmp_path / "out", 10**7)
            one_line(caught.value)


# --- a whole data set


def small(server: Server, **more: Any) -> list[Archive]:
    return [server.archive("set.tar.gz", tar({"set/a/1.jpg": picture(1), "set/b/2.jpg": picture(2)}), **more)]


def test_a_data_set_is_unpacked_once_and_leaves_a_receipt(server: Server, tmp_path: Path) -> None:
    said: list[str] = []
    archives = small(server)
    found = download(archives, tmp_path / "s", say=said.append)
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["downloaded.json", "set"]
    assert json.loads((tmp_path / "s" / "downloaded.json").read_text()) == found
    assert found["archives"]["set.tar.gz"]["checked"] == archives[0].checksum
    assert download(archives, tmp_path / "s", say=said.append) == found
    assert said[-1].endswith("is up to date, skipping.")
    assert len(server.asked) == 1
    assert len(load_dataset(f"image-folder:{tmp_path / 's' / 'set'}")) == 2


def test_without_a_published_checksum_the_next_time_is_compared_with_this_one(server: Server, tmp_path: Path) -> None:
    said: list[str] = []
    download(small(server, checksum=""), tmp_path, say=said.append)
    assert any("no checksum is published for set.tar.gz; its sha256" in line for line in said)
    download(small(server, checksum=""), tmp_path, again=True)
    changed = [server.archive("set.tar.gz", tar({"set/a/1.jpg": picture(9)}), checksum="")]
    with pytest.raises(DownloadError, match=r"has changed: its sha256 is .*, and was .*set\.tar\.gz\.bad"):
        download(changed, tmp_path, again=True)
    assert (tmp_path / "set" / "b" / "2.jpg").read_bytes() == picture(2), "what was there stays"


def test_what_is_already_there_and_not_ours_is_not_overwritten(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "mine.txt").write_text("mine")
    with pytest.raises(DownloadError, match=r"set already exists and was not downloaded here"):
        download(small(server), tmp_path)
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["mine.txt"]


def test_a_process_that_died_while_unpacking_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    archives = small(server)
    download(archives, tmp_path, keep=True)
    receipt = json.loads((tmp_path / "downloaded.json").read_text())
    (tmp_path / "downloaded.json").write_text(json.dumps({**receipt, "complete": False}))
    (tmp_path / ".download" / "unpacked" / "set").mkdir(parents=True)
    (tmp_path / ".download" / "unpacked" / "set" / "half.jpg").write_bytes(b"half")
    download(archives, tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.jpg")) == ["1.jpg", "2.jpg"]
    assert len(server.asked) == 1


def test_two_downloads_into_one_folder_do_not_mix(server: Server, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / ".download").mkdir()
    with (tmp_path / ".download" / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="another process is downloading into"):
            download(small(server), tmp_path)
    assert download(small(server), tmp_path)["complete"]


def mats(labels: list[int], ids: dict[str, list[int]]) -> tuple[bytes, bytes]:
    from scipy.io import savemat

    first, second = io.BytesIO(), io.BytesIO()
    savemat(first, {"labels": np.array(labels)[None]})
    savemat(second, {key: np.array(value)[None] for key, value in ids.items()})
    return first.getvalue(), second.getvalue()


def idx(values: np.ndarray) -> bytes:
    return gzip.compress(bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes())


def files_of(name: str) -> list[bytes]:
    """Small files in the layout of a data set's archives, in the order of its `sources`."""
    if name == "caltech101":
        inside = tar({f"101_ObjectCategories/{c}/image_000{i}.jpg": picture(i) for c in ("ant", "Bee") for i in range(5)})
        return [zipped({"caltech-101/101_ObjectCategories.tar.gz": inside, "caltech-101/show_annotation.m": b"%"})]
    if name == "flowers102":
        labels, ids = mats([1, 1, 1, 2, 2, 2], {"trnid": [1, 4], "valid": [2, 5], "tstid": [3, 6]})
        return [tar({f"jpg/image_0000{i}.jpg": picture(i) for i in range(1, 7)}), labels, ids]
    if name == "cub200":
        files = {f"CUB_200_2011/images/00{1 + i // 4}.Bird/{i}.jpg": picture(i) for i in range(8)}
        lists = {"images.txt": [f"{i + 1} 00{1 + i // 4}.Bird/{i}.jpg" for i in range(8)], "classes.txt": ["1 001.Bird", "2 002.Owl"]}
        lists["image_class_labels.txt"] = [f"{i + 1} {1 + i // 4}" for i in range(8)]
        lists["train_test_split.txt"] = [f"{i + 1} {i % 2}" for i in range(8)]
        texts = {f"CUB_200_2011/{file}": "\n".join(lines).encode() for file, lines in lists.items()}
        return [tar({"./CUB_200_2011/README": b"", "attributes.txt": b"", **files, **texts})]
    if name == "ade20k":
        top = "ADEChallengeData2016"
        return [zipped({f"{top}/images/training/a.jpg": picture(), f"{top}/annotations/training/a.png": _mask()})]
    if name == "imagenette":
        wnids = ("n03425413", "n03888257")
        return [tar({f"imagenette2-320/{part}/{wnid}/{wnid}_1.JPEG": picture() for part in ("train", "val") for wnid in wnids})]
    if name == "fashion-mnist":
        return [idx(np.zeros(shape, np.uint8)) for shape in ((3, 28, 28), (3,), (2, 28, 28), (2,))]
    record = bytes(3072)
    if name == "cifar10":
        names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
        return [
            tar({f"cifar-10-batches-bin/{each}": b"\0" + record for each in names} | {"cifar-10-batches-bin/batches.meta.txt": b"plane"})
        ]
    names100 = {f"cifar-100-binary/{kind}_label_names.txt": b"one" for kind in ("fine", "coarse")}
    return [tar({f"cifar-100-binary/{part}.bin": b"\0\0" + record for part in ("train", "test")} | names100)]


def _mask() -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 6), 3).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def served(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], type[ImageDataset]]:
    """Lets a data set's archives be small ones of the same names and layout, on the server."""

    def serve(name: str) -> type[ImageDataset]:
        kind: type[ImageDataset] = find("dataset", name).load()
        files = files_of(name)
        assert len(files) == len(kind.sources)
        monkeypatch.setattr(
            kind, "sources", [server.archive(each.name, data, inner=each.inner) for each, data in zip(kind.sources, files, strict=True)]
        )
        return kind

    return serve


ALL = {"caltech101": 10, "flowers102": 2, "cub200": 4, "ade20k": 1, "imagenette": 2, "fashion-mnist": 3, "cifar10": 5, "cifar100": 1}


@pytest.mark.parametrize("name", ALL)
def test_what_is_downloaded_is_what_the_plugin_reads(
    name: str, served: Callable[[str], type[ImageDataset]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served(name)
    assert main(["data", "download", name, str(tmp_path / "here"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["images"] == ALL[name]
    dataset = load_dataset(PluginRef(name=name, options={"root": str(tmp_path / "here")}))
    assert len(dataset) == ALL[name]
    assert dataset[0].image.mode == "RGB"
    if name == "imagenette":
        assert [dataset.classes[dataset[i].label] for i in range(2)] == ["gas pump", "parachute"]  # type: ignore[index]


def test_every_declared_archive_has_a_place_a_size_and_a_checksum() -> None:
    for name in ALL:
        for each in find("dataset", name).load().sources:
            assert re.fullmatch(r"https?://\S+/[\w.-]+", each.url)
            assert re.fullmatch(r"md5:[0-9a-f]{32}|sha1:[0-9a-f]{40}|sha256:[0-9a-f]{64}", each.checksum)
            assert each.size > 0


def test_the_library_that_reads_them_agrees_on_the_checksums() -> None:
    where = importlib.util.find_spec("torchvision")
    if where is None or where.origin is None:
        pytest.skip("torchvision is not installed")
    known = "".join(path.read_text() for path in (Path(where.origin).parent / "datasets").glob("*.py"))
    for name in ("caltech101", "flowers102", "fashion-mnist", "imagenette"):
        for each in find("dataset", name).load().sources:
            assert each.checksum.removeprefix("md5:") in known, each


# --- the random split


@pytest.mark.parametrize(("name", "n"), [("caltech101", 10), ("flowers102", 6), ("cub200", 8)])
def test_a_split_is_two_trees_of_all_images_with_the_same_classes(
    name: str, n: int, served: Callable[[str], type[ImageDataset]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served(name)
    command = ["data", "download", name, str(tmp_path / "d"), "--split", ".7", "--seed", "3", "--json"]
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out)["split"]
    assert told["train"] + told["test"] == n
    train, test = (load_dataset(f"image-folder:{tmp_path / 'd' / 'split-0.7-3' / part}") for part in ("train", "test"))
    assert train.classes == test.classes
    assert len(train.classes or ()) == 2
    names = [{Path(tree.name(i)).name for i in range(len(tree))} for tree in (train, test)]
    assert all(names)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["split"] == told
    assert len(load_dataset(PluginRef(name=name, options={"root": str(tmp_path / "d")}))) == ALL[name], "the data set itself is as before"


def test_a_split_is_decided_by_its_seed_and_stays_within_classes() -> None:
    labels = np.repeat(np.arange(5), [2, 10, 50, 7, 31])
    train, test = divide(labels, 0.8, 42)
    assert np.array_equal(np.sort(np.concatenate([train, test])), np.arange(100))
    assert np.bincount(labels[train]).tolist() == [1, 8, 40, 6, 25]
    assert all(np.array_equal(a, b) for a, b in zip(divide(labels, 0.8, 42), (train, test), strict=True))
    assert not np.array_equal(divide(labels, 0.8, 43)[0], train)
    with pytest.raises(DatasetError, match="class 5 has only one image"):
        divide(np.append(labels, 5), 0.8, 42)


def test_what_cannot_be_split_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DatasetError, match="is not an image file"):
        write_split(load_dataset("shapes:8"), tmp_path / "s", 0.8, 0)
    assert main(["data", "download", "cifar10", "--split", "80"]) == 2
    assert "--split takes a share between 0 and 1" in capsys.readouterr().err
    assert main(["data", "download", "shapes"]) == 2
    assert "shapes has nothing to download; these do: ade20k" in capsys.readouterr().err


def test_a_third_party_data_set_downloads_by_declaring_archives(server: Server, tmp_path: Path) -> None:
    class Mine(ImageDataset):
        sources: ClassVar = small(server)

    assert download(Mine.sources, tmp_path)["entries"] == ["set"]
