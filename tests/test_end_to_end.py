"""`saev run` from images to report, through the real command line: repeated, interrupted, killed, extended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from commands import Saev

from saev_core.activations.store.store import ActivationStore
from saev_core.cli import main
from saev_core.features.index import FeatureIndex
from saev_core.runs.run import Run
from saev_core.sae.checkpoint import Checkpoint

SMALL = ["--n-images", "60", "--n-tokens", "20000", "--batch-size", "256"]
SET = ["--set", "model.pretrained=false", "sae.d_sae=128", "record.shard_images=16", "train.checkpoint_every=10"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # As in the processes that are started here; the last bits of a matrix product depend on it.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    path = tmp_path_factory.mktemp("e2e") / "run"
    assert main(["run", *SMALL, *SET, "--out", str(path)]) == 0
    return Run.open(path)


def test_a_run_leaves_store_checkpoint_index_metrics_truth_and_report(run: Run) -> None:
    store = ActivationStore.open(run.store_url)
    assert store.n_images == 60
    assert all(store.complete(site) for site in store.sites)
    checkpoint = Checkpoint.load(run.sae_dir("topk"))
    checkpoint.check(store)
    assert 0 < checkpoint.card["nmse"] < 1
    assert checkpoint.card["l0"] <= 32
    assert FeatureIndex.open(run.features_path("topk")).d_sae == 128
    assert 0 <= run.result("recovery")["topk"]["mean"] <= 1
    events = [json.loads(line)["event"] for line in run.metrics_path.read_text().splitlines()]
    assert events[0] == "run_started"
    assert events[-1] == "run_ended"
    assert {"recorded", "stepped", "checkpointed", "indexed"} <= set(events)
    page = run.report_path.read_text()
    assert "<html" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_store_opens_with_plain_zarr(run: Run) -> None:
    group = zarr.open(run.store_url, mode="r")
    site = ActivationStore.open(run.store_url).sites[0]
    patches = group[f"{site}/patches"]
    assert patches.shape == (60, 144, 128)
    assert np.isfinite(np.asarray(patches[59], np.float32)).all()


def test_the_same_command_again_skips_every_stage_and_changes_nothing(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    def state() -> dict[str, int]:
        return {str(p): p.stat().st_mtime_ns for p in run.path.rglob("*") if p.is_file() and p.name not in ("config.json", "metrics.jsonl")}

    before = state()
    assert main(["run", *SMALL, *SET, "--out", str(run.path)]) == 0
    out = capsys.readouterr().out
    assert out.count("skipped.") == 5
    assert "nmse" in out
    assert f"report: {run.report_path}" in out
    assert state() == before


def test_the_summary_is_machine_readable(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *SMALL, *SET, "--out", str(run.path), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["n_images"] == 60
    assert summary["n_missing"] == 0
    assert summary["report"] == str(run.report_path)
    assert set(summary["seconds"]) == {"record", "train:topk", "evaluate:topk", "index:topk", "names:topk", "report"}
    assert summary["recovery"]["topk"]["factors"].keys() == {"shape", "colour", "texture", "size", "place"}


def test_another_index_is_made_again_and_nothing_before_it(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(run.path), "--top-k", "5"]) == 0
    assert FeatureIndex.open(run.features_path("topk")).top_index.shape[1] == 5
    assert main(["evaluate", str(run.path)]) == 0
    assert "evaluate: topk already there, skipped." in capsys.readouterr().out


def test_a_damaged_artifact_is_made_again(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.features_path("topk") / "zarr.json").write_text("{}")
    run.report_path.unlink()
    assert main(["index", str(run.path)]) == 0
    out = capsys.readouterr().out
    assert "index: re-running because " in out
    assert FeatureIndex.open(run.features_path("topk")).d_sae == 128
    assert run.report_path.exists()


def test_single_stages_give_what_one_command_gives(run: Run, tmp_path: Path) -> None:
    path = str(tmp_path / "run")
    keep = [*SET[:1], *SET[1:]]
    assert main(["record", path, "--n-images", "60", *keep]) == 0
    assert main(["train", path, "--n-tokens", "20000", "--batch-size", "256"]) == 0
    assert main(["evaluate", path]) == 0
    assert main(["index", path]) == 0
    one, two = Checkpoint.load(run.sae_dir("topk")), Checkpoint.load(Run.open(path).sae_dir("topk"))
    assert one.fingerprint == two.fingerprint
    assert one.card["nmse"] == two.card["nmse"]


def test_layers_may_be_added_and_several_after_one_flag_give_one_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--n-images", "20", "--set", "model.pretrained=false"]
    assert main(["record", str(tmp_path / "a"), "--record-layers", "-1", "-2", *small]) == 0
    assert main(["record", str(tmp_path / "b"), "--record-layers", "3", *small]) == 0
    files = {p: p.stat().st_mtime_ns for p in (tmp_path / "b" / "store").rglob("*") if p.is_file() and p.name != "zarr.json"}
    assert main(["record", str(tmp_path / "b"), "--record-layers", "2"]) == 0
    assert {p: p.stat().st_mtime_ns for p in files} == files
    a, b = (ActivationStore.open(str(tmp_path / name / "store")) for name in "ab")
    assert a.meta.fingerprint == b.meta.fingerprint
    assert a.sites == b.sites
    for site in a.sites:
        np.testing.assert_array_equal(a.read(site, slice(0, 20)), b.read(site, slice(0, 20)))


def _start(*args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "saev_core.cli", *map(str, args)]
    pipe = subprocess.PIPE
    # What a shell starts in the background ignores SIGINT, and hands that down to all that is started from it.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, preexec_fn=heard)  # noqa: PLW1509


def _wait_for(there: Path, pattern: str, process: subprocess.Popen[str]) -> None:
    """Until something in a folder matches, while the process lives."""
    deadline = time.monotonic() + 120
    while not any(there.glob(pattern)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_a_run_killed_in_training_goes_on_to_the_same_bits(run: Run, tmp_path: Path, saev: Saev) -> None:
    path = tmp_path / "run"
    command = ["run", *SMALL, *SET, "--out", path]
    process = _start(*command)
    _wait_for(path / "sae", "*training*/*", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert Run.open(path).sae_names == []
    again = saev(*command)
    assert again.returncode == 0, again.stderr
    assert "record: already there" in again.stdout
    killed, whole = Checkpoint.load(Run.open(path).sae_dir("topk")), Checkpoint.load(run.sae_dir("topk"))
    assert killed.fingerprint == whole.fingerprint


@pytest.mark.slow
def test_an_interrupted_recording_exits_130_in_one_line_and_resumes(run: Run, tmp_path: Path, saev: Saev) -> None:
    path = tmp_path / "run"
    command = ["record", path, "--n-images", "400", *SET]
    process = _start(*command)
    _wait_for(path / "store", "resid.2/patches/c/*", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, err
    assert err == "saev: interrupted; re-run the same command to resume.\n"
    store = ActivationStore.open(str(path / "store"))
    (site,) = store.sites
    assert not store.complete(site)
    first = next((path / "store" / "resid.2" / "patches" / "c").rglob("*.*"), None)
    assert first is None or first.suffix != ".tmp"
    again = saev(*command)
    assert again.returncode == 0, again.stderr
    assert store.complete(site)
    assert store.verify() == []
    whole = ActivationStore.open(run.store_url)
    np.testing.assert_array_equal(store.read(site, slice(0, 60)), whole.read(site, slice(0, 60)))
