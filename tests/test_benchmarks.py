"""Benchmarks are not timed here; but they must run, whether or not other libraries are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, cwd=BENCHMARKS, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("bench") / "steps.json"
    run("steps.py", "--check", "--json", str(path))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


@pytest.mark.slow
def test_table_of_steps_has_every_row_and_says_what_was_asked(steps: dict[str, Any]) -> None:
    assert {line["row"] for line in steps["table"]} == {"topk", "batchtopk", "relu", "relu-sparse", "auxk", "four", "loop"}
    reached = [line["reached"] for line in steps["table"] if line["aim"].startswith("at most")]
    assert reached
    assert all(len(each) == 1 for each in reached)


@pytest.mark.slow
def test_memory_of_a_step_counts_its_weights_and_its_optimiser(steps: dict[str, Any]) -> None:
    # d 64, d_sae 512: weights, gradients and two moments of 2 * 64 * 512 float32 numbers are 1 MB.
    assert all(1 < peak["ours"] < 200 for peak in steps["peak_mb"].values())


@pytest.mark.slow
def test_lean_steps_are_exact_where_the_gpu_benchmark_checks_them() -> None:
    told = run("gpu.py", "--device", "cpu", "--small", "--rounds", "1", "--modes", "float32", "--variants", "topk")
    line = next(line for line in told.splitlines() if line.startswith("lean step against float64"))
    errors = [float(word) for word in line.replace(",", "").split() if "e-" in word]
    assert len(errors) == 3
    assert max(errors) < 1e-5


def test_peers_say_how_to_get_them_where_none_is_installed() -> None:
    told = run("-m", "peers")
    assert "make bench-setup" in told or "L0" in told


@pytest.mark.slow
@pytest.mark.skipif(not Path("/usr/share/tuxpaint/stamps").is_dir(), reason="needs Debian's tuxpaint-stamps-default")
def test_stamps_become_pictures_with_a_scene_and_its_mask(tmp_path: Path) -> None:
    import numpy as np

    from saev_core.data.dataset import load_dataset

    run("-c", f"import pathlib, proof; proof.draw_stamps(pathlib.Path({str(tmp_path)!r}), most=5)")
    stamps = load_dataset(f"ade20k:{tmp_path}")
    assert stamps.classes
    assert stamps.mask_classes == ["other", *stamps.classes]
    assert len(stamps) == 5 * len(stamps.classes)
    for index in range(len(stamps)):
        example = stamps[index]
        assert example.mask is not None
        assert set(np.unique(example.mask)) == {0, example.label + 1}  # the scene's own class, on white
        outside = np.asarray(example.image)[:10, :10]
        assert (outside == 255).all()
        assert not example.mask[:10, :10].any()
