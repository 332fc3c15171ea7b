"""The table of bad input, through the real command line: one line on stderr that says what to do, exit code 1 or 2,
no traceback, and nothing half-written that looks whole."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from commands import Saev
from PIL import Image

from saev_core.cli import main

TINY = ["--set", "model.pretrained=false", "record.chunk_images=4", "record.shard_images=8"]
SMALL = [*TINY, "sae.d_sae=128", "train.n_tokens=1000", "--n-images", "20", "--batch-size", "128"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be copied and damaged."""
    path = tmp_path_factory.mktemp("good") / "run"
    assert main(["run", *SMALL, "--out", str(path)]) == 0
    return path


@pytest.fixture
def run(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "run"))


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Runs a command that must fail; gives back its line. Relative paths, and `runs/`, lie in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def call(code: int, *argv: object) -> str:
        capsys.readouterr()
        assert main([str(arg) for arg in argv]) == code
        said = capsys.readouterr()
        lines = said.err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("saev: ")
        assert "Traceback" not in said.out + said.err
        assert "unexpected" not in lines[0], lines[0]
        return lines[0]

    return call


# Names.


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--model", "tinny"], ["no model plugin named 'tinny'", "did you mean tiny"]),
        (["--dataset", "shaps"], ["no dataset plugin named 'shaps'", "did you mean shapes"]),
        (["--sae", "topp"], ["no sae plugin named 'topp'", "did you mean topk"]),
        (["--tracker", "jsonn"], ["no tracker plugin named 'jsonn'", "did you mean jsonl"]),
        (["--set", "model=nonsense"], ["no model plugin named 'nonsense'", "Installed: "]),
        (["--set", "trian.lr=1"], ["trian: unknown; did you mean train?"]),
        (["--set", "train.lr=fast"], ["train.lr: ", "got 'fast'"]),
        (["--set", "train.lr"], ["expected KEY=VALUE, such as --set train.lr=3e-4"]),
        (["--set", "sae.kk=3"], ["sae.options.kk: unknown; did you mean k?"]),
        (["--set", "dataset.sed=3"], ["dataset.options.sed: unknown; did you mean seed?"]),
        (["--sae", "topk:many"], ["sae.options.k: ", "got 'many'"]),
        (["--dtype", "float8"], ["record.dtype: ", "float16"]),
        (["--device", "abacus"], ["--device abacus: not available"]),
        (["--config", "none.toml"], ["none.toml: No such file", "TOML"]),
        (["--frobnicate"], ["--frobnicate", "See saev run --help."]),
    ],
)
def test_what_does_not_exist_is_wrong_usage(fails, flags: list[str], parts: list[str], tmp_path: Path) -> None:
    line = fails(2, "run", *flags)
    assert all(part in line for part in parts), line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda is here")
def test_cuda_asked_for_and_absent(fails, tmp_path: Path) -> None:
    assert "use --device auto or cpu" in fails(2, "run", "--device", "cuda")
    assert list(tmp_path.iterdir()) == []


def test_a_mistyped_key_in_a_file_is_named_with_the_nearest(fails, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[train]\nbatchsize = 3\n")
    assert "train.batchsize: unknown; did you mean batch_size?" in fails(2, "run", "--config", "run.toml")
    (tmp_path / "run.toml").write_text("[train\n")
    assert "run.toml is not valid TOML" in fails(2, "run", "--config", "run.toml")


def test_a_layer_that_the_model_does_not_have(fails, tmp_path: Path) -> None:
    line = fails(1, "run", *TINY, "--record-layers", 9, "--out", "r")
    assert "layer 9" in line
    assert "blocks 0 to 3" in line
    assert not (tmp_path / "r" / "store").exists()
    assert "no such module" in fails(1, "run", *TINY, "--stream", "mlpp", "--out", "r2")


def test_a_layer_that_was_not_recorded(fails, run: Path) -> None:
    line = fails(
        1, "train", run, "--set", "sae.d_sae=128", "--layer", 0, "--out", run.with_name("other"), "--store", run / "store", *TINY[:2]
    )
    assert "resid.0" in line
    assert "saev record" in line


# Images.


def test_a_folder_that_is_missing_empty_or_no_folder(fails, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    for name, said in {"missing": "missing", "empty": "empty", "file": "file"}.items():
        line = fails(1, "run", *TINY, "--dataset", f"image-folder:{name}", "--out", f"run-{name}")
        assert said in line
        assert not (tmp_path / f"run-{name}" / "store").exists()


def test_a_folder_with_an_unreadable_image(fails, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    for i in range(6):
        Image.new("RGB", (40, 30), (i * 40, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")
    (tmp_path / "pictures" / "3.png").write_bytes(b"not a picture")
    record = ["record", *TINY, "--dataset", "image-folder:pictures"]
    line = fails(1, *record, "--on-bad-image", "stop", "--out", "stopped")
    assert "3.png is not a readable image" in line
    assert "--on-bad-image missing" in line
    assert main([*record, "--out", "missing"]) == 0
    assert "3.png" in capsys.readouterr().out
    assert main(["store", "info", "missing", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["sites"]["resid.2"] == {"complete": True, "missing": 1}


class _Hub(BaseHTTPRequestHandler):
    """A hub on which everything is gated."""

    def do_HEAD(self) -> None:
        self.send_response(200 if self.path == "/" else 401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "2")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"{}")

    do_GET = do_HEAD

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.mark.slow
def test_a_gated_data_set_without_a_token_and_a_hub_that_is_not_reachable(saev: Saev, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    home = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": ""}
    try:
        here = f"http://127.0.0.1:{server.server_port}"
        gated = saev("run", *TINY, "--dataset", "huggingface:a/b", "--out", tmp_path / "g", HF_ENDPOINT=here, **home)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    nowhere = {**home, "HF_ENDPOINT": "http://127.0.0.1:9"}
    away = saev("run", *TINY, "--dataset", "huggingface:a/b", "--out", tmp_path / "h", **nowhere)
    model = saev("run", "--model", "dinov2:facebook/dinov2-small", "--out", tmp_path / "m", **nowhere)
    for done, part in ((gated, "HF_TOKEN"), (away, "not reachable"), (model, "facebook/dinov2-small")):
        assert done.returncode == 1
        assert part in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "unexpected" not in done.stderr


# Places.


def test_an_output_folder_that_cannot_be_written(fails, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "choose another --out" in fails(1, "run", *TINY, "--out", "file/run")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    assert "not empty and is not a run" in fails(1, "run", *TINY, "--out", "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "other.bin").touch()
    line = fails(1, "record", *TINY, "--out", "r", "--store", "taken")
    assert "taken" in line
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["other.bin"]


def test_what_is_not_a_run(fails, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for command in ("evaluate", "index"):
        assert "folder is not a run" in fails(1, command, "folder")
        assert "nowhere does not exist" in fails(1, command, "nowhere")
    assert "has no activations yet" in (fails(1, "train", *TINY, "--out", "new"))
    assert "not an activation store" in fails(1, "store", "info", "folder")
    assert "not an activation store" in fails(1, "store", "verify", "nowhere")
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_run_without_an_sae(fails, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", *TINY, "--n-images", "8", "--out", "r"]) == 0
    for command in ("evaluate", "index"):
        assert "no trained SAE; train one with saev train" in fails(1, command, "r")


def test_a_run_of_another_configuration_names_what_differs(fails, run: Path) -> None:
    before = (run / "config.json").read_bytes()
    line = fails(1, "run", *SMALL, "--lr", "0.5", "--out", run)
    assert 'train.lr is "auto", not 0.5' in line
    assert (run / "config.json").read_bytes() == before


def test_a_full_disk(fails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, left = os.pwrite, 100_000

    def until_full(fd: int, data: bytes, offset: int) -> int:
        nonlocal left
        left -= len(data)
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", until_full)
    line = fails(1, "record", *TINY, "--n-images", 20, "--out", "r")
    assert "space" in line.lower()
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert list((tmp_path / "r").rglob("*.tmp")) == []
    assert main(["record", *TINY, "--n-images", "20", "--out", "r"]) == 0
    assert main(["store", "verify", "r"]) == 0


# Stores.


def chunk_of(run: Path) -> Path:
    """The largest chunk file of a run's store."""
    return max((p for p in (run / "store" / "resid.2" / "patches").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_a_damaged_chunk_is_named_by_its_file(fails, run: Path, damage: str) -> None:
    chunk = chunk_of(run)
    if damage == "truncated":
        chunk.write_bytes(chunk.read_bytes()[:-5000])
    elif damage == "flipped":
        data = bytearray(chunk.read_bytes())
        data[1000] ^= 4
        chunk.write_bytes(data)
    else:
        chunk.unlink()
    named = str(chunk.relative_to(run / "store"))
    assert named in fails(1, "store", "verify", run)
    line = fails(1, "index", run, "--top-k", "3")
    assert named in line
    assert "saev store verify" in line


def edit(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_a_store_of_another_format_model_or_data_set(fails, run: Path) -> None:
    meta = run / "store" / "zarr.json"
    saved = meta.read_text()

    def attributes(key: str, value: object):
        return lambda data: data["attributes"]["saev"].update({key: value})

    edit(meta, attributes("format", 7))
    assert "store format 7, this saev reads 1" in fails(1, "index", run)
    meta.write_text(saved)
    edit(meta, lambda data: data["attributes"]["saev"]["model"].update(name="clip"))
    assert 'recorded with another model: its name is "clip", not "tiny"' in fails(1, "index", run)
    meta.write_text(saved)
    edit(meta, lambda data: data["attributes"]["saev"]["dataset"]["options"].update(seed=77))
    assert "recorded with another dataset" in fails(1, "evaluate", run)
    meta.write_text("{}")
    assert "not an activation store" in fails(1, "index", run)
    meta.write_text("{")
    assert "store" in fails(1, "index", run)


def test_a_checkpoint_of_another_store_layer_or_format_or_damaged(fails, run: Path) -> None:
    meta = run / "sae" / "topk" / "checkpoint.json"
    saved = meta.read_text()
    edit(meta, lambda data: data.update(saev_checkpoint=9))
    assert "checkpoint format 9" in fails(1, "index", run)
    meta.write_text(saved)
    edit(meta, lambda data: data["store"].update(fingerprint="0" * 64, transform="another"))
    assert "trained on transform another" in fails(1, "evaluate", run)
    meta.write_text(saved)
    weights = run / "sae" / "topk" / "sae.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 1
    weights.write_bytes(data)
    assert "checksum mismatch" in fails(1, "index", run)


def test_an_sae_that_cannot_be_built_is_refused_before_anything_is_recorded(fails, tmp_path: Path) -> None:
    assert "sae.k is 99999, but there are only" in fails(2, "run", *TINY, "--sae", "topk:99999", "--out", "r")
    assert not (tmp_path / "r" / "store").exists()
