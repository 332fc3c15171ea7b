"""Both trackers from the command line, on a training straight from the model that is killed and goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import Saev, environment
from logged import tensorboard_logged, wandb_begun, wandb_logged, wandb_parts

from saev_core.activations.store.store import ActivationStore
from saev_core.runs.run import Run

LIVE = ["train", "--live", "--layer", "1", "--n-images", "60", "--n-tokens", "20000", "--batch-size", "256"]
SET = ["--set", "model.pretrained=false", "sae.d_sae=128", "train.checkpoint_every=10", "train.log_every=5", "read.buffer_mb=1"]
TRACKERS = ["--tracker", "tensorboard", "--tracker", "wandb"]


def until(happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait for something while the process lives."""
    give_up = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < give_up
        time.sleep(0.002)


@pytest.mark.slow
def test_live_training_killed_with_signal_9_goes_on_with_the_same_bits_and_in_the_same_tracked_runs(saev: Saev, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = saev(*LIVE, *SET, "--out", whole)
    assert done.returncode == 0, done.stderr
    assert not (whole / "store").exists()

    command = [sys.executable, "-m", "saev_core.cli", *LIVE, *SET, *TRACKERS, "--out", str(cut)]
    process = subprocess.Popen(command, env=environment(WANDB_MODE="offline"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # Held at its second state: wandb's own process writes its file in its own time, and training would be over before.
    until(lambda: any(cut.glob("sae/topk.training/step-0000002*")), process)
    process.send_signal(signal.SIGSTOP)
    until(lambda: wandb_begun(cut / "wandb"), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = saev(*LIVE, *SET, *TRACKERS, "--out", cut, WANDB_MODE="offline")
    assert done.returncode == 0, done.stderr
    for file in ("sae.safetensors", "checkpoint.json"):
        assert (cut / "sae/topk" / file).read_bytes() == (whole / "sae/topk" / file).read_bytes()

    run = Run.open(cut)
    steps = [*range(5, 78, 5), 78]
    assert sorted(tensorboard_logged(cut / "tensorboard", "train")["topk"]) == steps
    first, second = wandb_parts(run, ended=False)["topk"]
    assert len({record.run.run_id for part in (first, second) for record in part if record.WhichOneof("record_type") == "run"}) == 1
    assert sorted(wandb_logged(run, "train", ended=False)["topk"]) == steps


@pytest.mark.slow
def test_a_live_run_is_evaluated_at_once_and_indexed_when_it_is_recorded(saev: Saev, tmp_path: Path) -> None:
    path = tmp_path / "run"
    done = saev("run", *LIVE[1:], *SET, "--out", path)
    assert done.returncode == 0, done.stderr
    assert f"index and report need a recording; make one with saev record {path}, then saev index {path}." in done.stdout
    card = json.loads((path / "sae/topk/checkpoint.json").read_text())["card"]
    assert card["n_images"] == 6
    assert 0 < card["nmse"] < 1.5
    assert "topk" in Run.open(path).result("recovery")

    done = saev("index", path)
    assert done.returncode == 1
    assert done.stderr == f"saev: {path} has no activations yet; record them with saev record {path}.\n"

    assert saev("record", path).returncode == 0
    assert [str(site) for site in ActivationStore.open(path / "store").sites] == ["resid.1"]
    done = saev("index", path)
    assert done.returncode == 0, done.stderr
    assert (path / "features/topk.zarr").is_dir()
    done = saev("evaluate", path)
    assert "evaluate: topk up to date, skipping." in done.stdout
