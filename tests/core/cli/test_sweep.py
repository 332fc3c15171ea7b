"""Sweeps through the real command line: planned, trained, extended, killed, with a variant of somebody else's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from commands import BuildWheel, Saev

from saev_core.cli import main
from saev_core.cli.options import Flags
from saev_core.features.index import FeatureIndex
from saev_core.runs.run import Run
from saev_core.sae.checkpoint import Checkpoint

SMALL = ["--n-tokens", "10000", "--batch-size", "256"]
SET = ["--set", "model.pretrained=false", "record.shard_images=16", "train.checkpoint_every=8"]
SWEEP = """
[sae]
d_sae = 96
[train]
seed = [0, 1]
[[point]]
sae.name = "topk"
sae.k = [4, 8]
[[point]]
sae.name = "relu"
read.heldout = 0.2
"""
SAES = ["relu-heldout0.2-s0", "relu-heldout0.2-s1", "topk-k4-s0", "topk-k4-s1", "topk-k8-s0", "topk-k8-s1"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that every test here trains on."""
    path = tmp_path_factory.mktemp("store") / "recorded"
    assert main(["record", str(path), "--n-images", "40", *SET]) == 0
    return path / "store"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path, SWEEP)


def written(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def flags(out: Path, store: Path, file: Path, *more: str) -> list[str]:
    return ["train", str(out), "--store", str(store), "--n-images", "40", "--sweep", str(file), *SMALL, *SET, *more]


@pytest.fixture(scope="module")
def swept(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the sweep trained, which tests only read."""
    folder = tmp_path_factory.mktemp("swept")
    assert main(flags(folder / "run", recorded, written(folder, SWEEP))) == 0
    return folder / "run"


def fingerprints(path: Path) -> dict[str, str]:
    run = Run.open(path)
    return {name: Checkpoint.load(run.sae_dir(name)).fingerprint for name in run.sae_names}


def test_a_sweep_trains_what_agrees_in_its_data_together(swept: Path) -> None:
    assert Run.open(swept).sae_names == SAES
    assert len(set(fingerprints(swept).values())) == len(SAES)
    trains = {name: Checkpoint.load(Run.open(swept).sae_dir(name)).train for name in SAES}
    assert [trains[name]["seed"] for name in SAES] == [0, 1] * 3
    assert {train["config"]["seed"] for train in trains.values()} == {0}
    events = [json.loads(line) for line in (swept / "metrics.jsonl").read_text().splitlines()]
    order = [event["sae"] for event in events if event["event"] == "checkpointed"]
    assert set(order[: len(order) // 2]) & {name for name in SAES if "relu" in name} == set()


def test_a_point_of_a_sweep_is_bit_for_bit_what_it_is_alone(swept: Path, recorded: Path, tmp_path: Path) -> None:
    alone = written(tmp_path, '[sae]\nname = "topk"\nd_sae = 96\nk = [8]\n[train]\nseed = [1]')
    assert main(flags(tmp_path / "run", recorded, alone)) == 0
    assert fingerprints(tmp_path / "run") == {"topk-k8-s1": fingerprints(swept)["topk-k8-s1"]}


def test_a_dry_run_tells_the_plan_and_writes_nothing(
    recorded: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(flags(tmp_path / "run", recorded, file, "--dry-run")) == 0
    text = capsys.readouterr().out
    assert "6 SAEs; 2 passes over the data" in text
    assert "pass 1: 4 SAEs on resid.2 (patches), 39 steps of 256 vectors" in text
    assert all(name in text for name in SAES)
    assert main(flags(tmp_path / "run", recorded, file, "--dry-run", "--json")) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {len(one["saes"]) for one in plan["passes"]} == {4, 2}
    assert plan["seconds"] > 0
    assert plan["memory_limit"] > plan["passes"][0]["memory"] > 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_needs_no_recording(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", "--out", str(tmp_path / "run"), "--n-images", "40", "--sweep", str(file), *SMALL, *SET, "--dry-run", "--json"]
    assert main(command) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [one["site"] for one in plan["passes"]] == ["resid.2", "resid.2"]
    assert [one["n_steps"] for one in plan["passes"]] == [39, 39]
    assert sum(len(one["saes"]) for one in plan["passes"]) == 6
    assert not (tmp_path / "run").exists()


def test_what_a_sweep_reads_is_recorded_unless_layers_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = written(tmp_path, "[read]\nlayer = [-1, -2]")
    command = ["run", "--out", str(tmp_path / "run"), "--n-images", "40", "--sweep", str(layers), *SMALL, *SET, "--dry-run", "--json"]
    assert main(command) == 0
    assert [one["site"] for one in json.loads(capsys.readouterr().out)["passes"]] == ["resid.3", "resid.2"]
    given = {"--sweep": str(layers)}
    assert Flags(given, whole=True).config().record.layers == (-1, -2)
    assert Flags({**given, "--record-layers": [-3]}, whole=True).config().record.layers == (-3,)


def test_adding_points_trains_only_the_new_ones_and_a_changed_one_is_refused(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    first = '[sae]\nname = "topk"\nd_sae = 96\nk = [4]\n'
    assert main(flags(out, recorded, written(tmp_path, first))) == 0
    before = fingerprints(out)
    # What was one value becomes a list: the point that is there keeps its name, and its bits.
    grown = first.replace("[4]", "[4, 8]") + "[train]\nseed = [0, 1]\n"
    assert main(flags(out, recorded, written(tmp_path, grown))) == 0
    assert "1 of 4 SAEs up to date, skipping" in capsys.readouterr().out
    assert Run.open(out).sae_names == ["topk-k4", "topk-k4-s1", "topk-k8-s0", "topk-k8-s1"]
    assert fingerprints(out)["topk-k4"] == before["topk-k4"]
    # Without --sweep the run goes on with the one it has.
    assert main(["train", str(out)]) == 0
    assert "4 of 4 SAEs up to date, skipping" in capsys.readouterr().out
    assert main(["run", "--out", str(out), "--store", str(recorded), "--n-images", "40", *SMALL, *SET]) == 1
    assert "it has a sweep, but none was given" in capsys.readouterr().err
    # The same name with other settings contradicts what is there.
    assert main(flags(out, recorded, written(tmp_path, grown + "lr = 5e-3\n"))) == 1
    line = capsys.readouterr().err
    assert "topk-k4-s1: train.lr is unset, not 0.005" in line
    assert len(line.splitlines()) == 1
    assert fingerprints(out)["topk-k4"] == before["topk-k4"]


def test_a_diverged_sae_is_named_the_rest_completes_and_it_is_not_tried_again(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, '[sae]\nname = "topk"\nd_sae = 96\n[train]\nlr = [1e-3, 1e30]\n[read]\nheldout = [0.1, 0.2]')
    command = flags(tmp_path / "run", recorded, file, "--json")
    assert main(command) == 0
    stopped = json.loads(capsys.readouterr().out)["stopped"]
    assert sorted(stopped) == ["topk-lr1e+30-heldout0.1", "topk-lr1e+30-heldout0.2"]
    assert all("diverged at step" in why for why in stopped.values())
    assert Run.open(tmp_path / "run").sae_names == ["topk-lr0.001-heldout0.1", "topk-lr0.001-heldout0.2"]
    n_lines = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["stopped"] == stopped
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == n_lines + 2  # started, ended: no step


def test_memory_divides_a_sweep_and_it_says_so(
    swept: Path, recorded: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*flags(tmp_path / "run", recorded, file), "train.memory_gb=0.0001"]) == 0
    text = capsys.readouterr().out
    assert "6 SAEs in 6 passes over the data" in text
    assert "4 of them read the same data, because 0.0001 GB cannot hold all their SAEs at once" in text
    assert fingerprints(tmp_path / "run") == fingerprints(swept)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("[train]\nlrr = [1]", 2, "train.lrr: unknown; did you mean lr?"),
        ("[train]\nlr = []", 2, "train.lr is an empty list"),
        ("[sae]\nd_sae = [96, 2]\nk = 4", 2, "k is 4"),
        (f"[train]\nlr = {list(range(1, 101))}\nseed = {list(range(100))}", 2, "10,000 points; add --yes"),
        ("lr = [", 2, "is not valid TOML"),
    ],
)
def test_a_wrong_sweep_is_one_line_before_anything_runs(
    text: str, code: int, said: str, recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(flags(tmp_path / "run", recorded, written(tmp_path, text))) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not list((tmp_path / "run").glob("sae/*/checkpoint.json"))


@pytest.mark.slow
def test_a_sweep_is_evaluated_and_of_many_saes_the_best_is_indexed(swept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    run = shutil.copytree(swept, tmp_path / "run")
    assert main(["index", str(run)]) == 1
    assert "none of the 6 SAEs" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--set", "evaluate.consensus=none"]) == 0
    best = Run.open(run).best
    assert best in SAES
    assert main(["index", str(run)]) == 0
    assert f"of 6 SAEs only {best}, the best" in capsys.readouterr().out
    assert [path.name for path in (run / "features").glob("*.zarr")] == [f"{best}.zarr"]
    other = next(name for name in SAES if name != best)
    assert main(["index", str(run), "--only", other]) == 0
    assert FeatureIndex.open(Run.open(run).features_path(other)).d_sae == 96
    assert main(["index", str(run), "--only", "topk-k5-s0"]) == 1
    assert "has no SAE 'topk-k5-s0'; did you mean topk-k" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_killed_in_its_second_pass_goes_on_to_the_same_bits(
    swept: Path, recorded: Path, file: Path, tmp_path: Path, saev: Saev
) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "saev_core.cli", *flags(out, recorded, file)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 200
    # The second pass is the ReLUs': killed once it has a state, and with the first one's SAEs complete.
    while not list(out.glob("sae/relu-*.training/step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert Run.open(out).sae_names == SAES[2:]
    again = saev(*flags(out, recorded, file))
    assert again.returncode == 0, again.stderr
    assert "4 of 6 SAEs up to date, skipping" in again.stdout
    assert fingerprints(out) == fingerprints(swept)
    assert not list(out.glob("sae/*.training"))


THEIRS = """
import torch
from pydantic import Field
from saev_core import SAE, SAEConfig

class Config(SAEConfig):
    power: float = Field(default=1.0, gt=0)
    '''Exponent of the penalty.'''

class Power(SAE):
    Config = Config
    def encode(self, x):
        return self.pre(x).relu()
    def penalty(self, z, progress):
        return 1e-3 * z.clamp_min(1e-6).pow(self.cfg.power).sum(-1).mean()
"""


@pytest.mark.slow
def test_a_third_partys_variant_sweeps_its_own_options(
    recorded: Path, tmp_path: Path, build_wheel: BuildWheel, install: Callable[..., Path], saev: Saev
) -> None:
    wheel = build_wheel("saev-power", {"saev.saes": {"power": "saev_power:Power"}}, {"saev_power.py": THEIRS})
    file = written(tmp_path, '[sae]\nd_sae = 96\n[[point]]\nsae.name = "power"\nsae.power = [0.5, 1.0]\n[[point]]\nsae.name = "topk"')
    done = saev(*flags(tmp_path / "run", recorded, file), path=install(wheel))
    assert done.returncode == 0, done.stderr
    assert "3 SAEs on resid.2" in done.stdout
    assert Run.open(tmp_path / "run").sae_names == ["power-power0.5", "power-power1", "topk"]
    assert Run.open(tmp_path / "run").plugins["sae:power"] == "saev-power 0.1.0"
