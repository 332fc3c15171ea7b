"""Sweeps: what a file expands to, what shares a pass, what memory allows, and one clear line for what cannot be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saev_core.config.base import PluginRef, validate
from saev_core.config.run import RunConfig
from saev_core.config.stages import ReadConfig, TrainConfig
from saev_core.errors import ConfigError, SaevError, UnknownPluginError
from saev_core.runs.sweep import Point, Sweep, check_size, count, expand, grouped
from saev_core.sae.checkpoint import Checkpoint
from saev_core.testing import ArraySource
from saev_core.testing.sae_contract import planted
from saev_core.training.cost import Need, available, cost_of, divided
from saev_core.training.passes import Pass, make_passes

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def sweep(text: str, **base: Any) -> Sweep:
    return expand(validate(RunConfig, {**base, "sweep": tomllib.loads(text)}))


def names(text: str, **base: Any) -> list[str]:
    return [point.name for point in sweep(text, **base).points]


# What a file expands to.


def test_lists_expand_to_a_grid_and_single_values_hold_for_all() -> None:
    points = sweep('[sae]\nname = ["topk", "relu"]\nd_sae = 64\n[train]\nlr = [1e-3, 2e-3]\nn_tokens = 1000').points
    assert [point.name for point in points] == ["topk-lr0.001", "topk-lr0.002", "relu-lr0.001", "relu-lr0.002"]
    assert {point.config.sae.options["d_sae"] for point in points} == {64}
    assert {point.config.train.n_tokens for point in points} == {1000}
    assert not any(point.config.sweep for point in points)


def test_without_a_sweep_there_is_one_point_named_after_its_variant() -> None:
    (point,) = expand(RunConfig(train=TrainConfig(seed=3))).points
    assert (point.name, point.seed, point.config.train.seed) == ("topk", 3, 3)
    assert count({}) == 1


def test_seeds_are_the_saes_own_and_the_stream_keeps_its_own() -> None:
    points = sweep("[train]\nseed = [0, 1, 2]", train={"seed": 7}).points
    assert [point.seed for point in points] == [0, 1, 2]
    assert {point.config.train.seed for point in points} == {7}
    assert len(grouped(points)) == 1
    assert [point.name for point in points] == ["topk-s0", "topk-s1", "topk-s2"]


def test_a_value_that_is_a_list_is_swept_by_a_list_of_lists() -> None:
    assert [p.config.read.labels for p in sweep("[read]\nlabels = [1, 2]").points] == [(1, 2)]
    assert [p.config.read.labels for p in sweep("[read]\nlabels = [[1, 2], [3]]").points] == [(1, 2), (3,)]
    assert [p.config.read.layer for p in sweep("[read]\nlayer = [-2, -1]").points] == [-2, -1]
    assert [p.config.read.layer for p in sweep("[read]\nlayer = [[6, 10], -1]").points] == [(6, 10), -1]


def test_a_plugin_may_be_written_short_and_what_that_sets_tells_points_apart() -> None:
    assert names('sae = ["topk:16", "topk:8", "relu"]') == ["topk-k16", "topk-k8", "relu"]
    assert names('sae = "relu"') == ["relu"]


POINTS = """
[train]
lr = [1e-3, 2e-3]
[[point]]
sae.name = "topk"
sae.k = [16, 32]
[[point]]
sae.name = "relu"
sae.sparsity_coeff = 1e-3
train.lr = 5e-4
"""


def test_each_point_table_is_laid_over_the_shared_settings() -> None:
    assert names(POINTS) == [
        "topk-lr0.001-k16",
        "topk-lr0.001-k32",
        "topk-lr0.002-k16",
        "topk-lr0.002-k32",
        "relu-lr0.0005-sparsity_coeff0.001",
    ]


RANDOM = "[sweep]\nn = {n}\nseed = {seed}\n[train]\nlr = {{min = 1e-4, max = 1e-2, log = true}}\n[sae]\nk = {{min = 4, max = 6}}\n{more}"


def test_ranges_are_drawn_reproducibly_whole_numbers_stay_whole_and_cross_the_grid() -> None:
    points = sweep(RANDOM.format(n=40, seed=0, more="d_sae = [64, 128]")).points
    assert len(points) == 80
    drawn = [(p.config.train.lr, p.config.sae.options["k"]) for p in points[:40]]
    assert drawn == [(p.config.train.lr, p.config.sae.options["k"]) for p in points[40:]]
    assert all(1e-4 <= lr <= 1e-2 and isinstance(k, int) for lr, k in drawn)
    assert {k for _, k in drawn} == {4, 5, 6}
    assert 8 <= sum(lr < 1e-3 for lr, _ in drawn) <= 32  # half of a logarithmic range lies below its middle
    assert [float(f"{lr:.4g}") for lr, _ in drawn] == [lr for lr, _ in drawn]


def test_more_draws_begin_with_the_same_ones_and_another_seed_gives_others() -> None:
    few, more = sweep(RANDOM.format(n=3, seed=0, more="")).points, sweep(RANDOM.format(n=5, seed=0, more="")).points
    assert more[:3] == few
    assert sweep(RANDOM.format(n=3, seed=1, more="")).points != few


def test_choices_are_drawn_too() -> None:
    points = sweep("[sweep]\nn = 30\n[train]\nlr = {choices = [1e-3, 2e-3]}\nseed = {min = 0, max = 9}").points
    assert {point.config.train.lr for point in points} == {1e-3, 2e-3}


def test_points_that_are_there_twice_are_dropped_and_named() -> None:
    found = sweep('sae = ["topk:8", "saev-core:topk:8"]\n[train]\nlr = [0.001, 1e-3, 2e-3]')
    assert [point.name for point in found.points] == ["topk-k8-lr0.001", "topk-k8-lr0.002"]
    assert sorted(found.dropped) == [*["topk-k8-lr0.001"] * 3, "topk-k8-lr0.002"]


def test_names_are_unique_even_where_their_short_values_agree() -> None:
    found = names("[train]\nlr = [0.00100000001, 0.00100000002]")
    assert len(set(found)) == 2
    assert found[0] == "topk-lr0.001"
    assert found[1].startswith("topk-lr0.001-")


values = {
    "train.lr": st.lists(st.floats(1e-5, 1e-1), min_size=1, max_size=3),
    "train.seed": st.lists(st.integers(0, 99), min_size=1, max_size=3),
    "train.optimizer": st.lists(st.sampled_from(["adam", "muon"]), min_size=1, max_size=2),
    "sae.d_sae": st.lists(st.integers(64, 512), min_size=1, max_size=3),
    "sae.data_init": st.lists(st.booleans(), min_size=1, max_size=2),
    "read.layer": st.lists(st.integers(-3, 11), min_size=1, max_size=2),
    "train.batch_size": st.lists(st.integers(1, 4096), min_size=1, max_size=2),
}


@settings(max_examples=40, deadline=None)
@given(st.fixed_dictionaries({}, optional=values).filter(bool))
def test_every_combination_is_a_point_once_in_one_group_under_a_safe_name(grid: dict[str, list[Any]]) -> None:
    nested: dict[str, Any] = {}
    for key, listed in grid.items():
        section, _, last = key.partition(".")
        nested.setdefault(section, {})[last] = listed
    found = expand(validate(RunConfig, {"sweep": nested}))
    n = 1
    for listed in grid.values():
        n *= len(set(listed))
    assert len(found.points) == n
    assert len(found.points) + len(found.dropped) == count(nested)
    assert len({point.name.lower() for point in found.points}) == n
    assert all(re.fullmatch(r"[\w.+-]+", point.name) for point in found.points)
    groups = grouped(found.points)
    assert sorted(point.name for group in groups for point in group) == sorted(point.name for point in found.points)
    apart = {(p.config.read.layer, p.config.train.batch_size) for p in found.points}
    assert len(groups) == len(apart)


# What it cannot be.


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[trian]\nlr = [1]", r"sweep: trian: unknown; did you mean train\?"),
        ("[train]\nlrr = [1e-3]", r"point train\.lrr=0\.001: train\.lrr: unknown; did you mean lr\?"),
        ('[sae]\nname = ["topk", "relu"]\nk = [4]', r"sae\.name=relu sae\.k=4: sae\.k: unknown; known keys: .*sparsity_coeff"),
        ('[[point]]\nsae.name = "topk"\nsae.kk = [16]', r"sae\.name=topk sae\.kk=16: sae\.kk: unknown; did you mean k\?"),
        ('[[point]]\ntrain.lr = "fast"', r"train\.lr=fast: train\.lr: Input should be a valid number"),
        ("[[point]]\nmodel = 1", "point 1: model cannot be swept: a sweep trains on one store; record another"),
        ("[[point]]\nseed = [0]", "point 1: seed: unknown; known keys: sae, read, train"),
        ("[train]\nlr = []", r"train\.lr is an empty list; add values or remove it"),
        ("sae = []", r"sae\.name is an empty list"),
        ('[model]\nname = ["tiny"]', r"model cannot be swept: a sweep trains on one store; record another store .*sweep there"),
        ("[record]\nlayers = [[-1]]", "record cannot be swept"),
        ('device = ["cpu"]', "device cannot be swept: it is the same for every SAE of a run; pass it with --set or --config"),
        ("[index]\ntop_k = [3]", "index cannot be swept"),
        ("[train]\nlog_every = [1, 2]", r"train\.log_every does not affect the trained SAE"),
        ("[train]\nlive = [true, false]", r"train\.live is the same for every SAE of a run; pass it with --set train\.live=\.\.\.$"),
        ("[train]\nlr = {min = 1e-4, max = 1e-2}", r"train\.lr is a range; set the number of points to sample: \[sweep\] n = 20"),
        ("[sweep]\nn = 3\n[train]\nlr = [1e-3]", "samples from ranges, but the file has none"),
        ("[sweep]\nn = 3\n[train]\nlr = {min = 1e-2, max = 1e-4}", "min <= max"),
        ("[sweep]\nn = 3\n[train]\nlr = {min = 0, max = 1e-4, log = true}", "needs min above 0"),
        ("[sweep]\nn = 3\n[train]\nlr = {choices = []}", "choices must be a non-empty list"),
        ("[sweep]\nm = 3", r"sweep\.m: unknown; known keys: n, seed"),
        ("[sweep]\nn = -3", r"sweep\.n: must be a whole number"),
        ("[sweep]\nn = 3", "the file contains no settings"),
        ("point = 3", r"write \[\[point\]\]"),
    ],
)
def test_what_a_sweep_cannot_be_is_one_clear_line(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        sweep(text)
    assert "\n" not in str(caught.value)


def test_a_variant_that_is_not_installed_is_named_with_the_nearest() -> None:
    with pytest.raises(UnknownPluginError, match="did you mean topk"):
        sweep('sae = ["tpok"]')


def test_ten_thousand_points_are_asked_for_and_counted_without_expanding_them() -> None:
    grid = {"train": {"lr": list(range(1, 101)), "seed": list(range(100))}}
    with pytest.raises(ConfigError, match=r"10,000 points; add --yes to confirm"):
        check_size(grid)
    check_size(grid, yes=True)
    with pytest.raises(ConfigError, match="the limit is 100,000"):
        check_size({"train": {**grid["train"], "clip_grad": list(range(100))}}, yes=True)


# What shares a pass.


CFG = TrainConfig(batch_size=64, n_tokens=64 * 40, n_init=500, checkpoint_every=6)


def points_of(n: int, d_sae: int = 40, **train: Any) -> list[Point]:
    config = RunConfig(
        sae=PluginRef(name="topk", options={"d_sae": d_sae, "k": 4}), train=CFG.model_copy(update=train), read=ReadConfig(buffer_mb=1)
    )
    return [Point(f"s{i}", config, i) for i in range(n)]


def passes(points: list[Point], folder: Path, limit: int = 10**12, n_timed: int = 0) -> list[Pass]:
    source = ArraySource(planted(700, 16)[0])
    return make_passes(points, lambda _: source, folder.joinpath, CPU, limit=limit, n_timed=n_timed)


def test_a_pass_larger_than_memory_is_divided_into_equal_ones_that_fit(tmp_path: Path) -> None:
    (whole,) = passes(points_of(10), tmp_path)
    assert whole.cost is not None
    limit = whole.cost.memory - 1
    halves = passes(points_of(10), tmp_path, limit)
    assert [len(one.points) for one in halves] == [5, 5]
    assert [one.part for one in halves] == [(1, 2), (2, 2)]
    assert all(one.cost is not None and one.cost.memory <= limit for one in halves)
    assert [name for one in halves for name in one.names] == [point.name for point in points_of(10)]
    alone = passes(points_of(3), tmp_path, 1)
    assert [one.names for one in alone] == [["s0"], ["s1"], ["s2"]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=12), st.integers(0, 20), st.integers(1, 200))
def test_divided_passes_hold_every_sae_once_and_fit_where_one_alone_does(sizes: list[tuple[int, int]], shared: int, limit: int) -> None:
    needs = [Need(own, passing, 1, 1) for own, passing in sizes]
    parts = divided(needs, shared, limit)
    assert [i for part in parts for i in part] == list(range(len(needs)))
    assert all(part for part in parts)
    assert all(len(part) == 1 or cost_of([needs[i] for i in part], shared).memory <= limit for part in parts)


def test_dividing_a_sweep_changes_no_bit(tmp_path: Path) -> None:
    for folder, limit in (("whole", 10**12), ("parts", 1)):
        for one in passes(points_of(3), tmp_path / folder, limit):
            assert one.train((tmp_path / folder).joinpath) == {}
    for name in ("s0", "s1", "s2"):
        first, second = (Checkpoint.load(tmp_path / folder / name) for folder in ("whole", "parts"))
        assert first.fingerprint == second.fingerprint


def test_a_pass_goes_on_apart_from_points_that_were_added(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stopping(hook: str, **told: Any) -> None:
        if hook == "checkpointed" and told["step"] == 12:
            raise Stop

    (first,) = passes(points_of(2), tmp_path)
    with pytest.raises(Stop):
        first.train(tmp_path.joinpath, emit=stopping)
    begun, new = passes(points_of(3), tmp_path)
    assert (begun.names, begun.resumes) == (["s0", "s1"], True)
    assert (new.names, new.resumes) == (["s2"], False)


def test_a_diverged_sae_is_named_and_a_pass_of_none_but_such_does_not_raise(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    points = [*points_of(1), Point("wild", points_of(1, lr=1e30)[0].config, 0)]
    (together,) = passes(points, tmp_path)
    stopped = together.train(tmp_path.joinpath)
    assert list(stopped) == ["wild"]
    assert "wild diverged at step" in stopped["wild"]
    assert (tmp_path / "s0" / "checkpoint.json").exists()
    (alone,) = passes(points[1:], tmp_path / "alone")
    assert list(alone.train((tmp_path / "alone").joinpath)) == ["wild"]


def test_what_cannot_be_built_is_refused_before_anything_trains(tmp_path: Path) -> None:
    config = points_of(1)[0].config
    wrong = Point("dense", config.model_copy(update={"sae": PluginRef(name="topk", options={"d_sae": 40, "k": 50})}), 0)
    with pytest.raises(SaevError, match="k is 50"):
        passes([*points_of(1), wrong], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_steps_are_timed_once_for_each_shape(tmp_path: Path) -> None:
    others = [Point("wide", points_of(1, d_sae=80)[0].config, 0), Point("fast", points_of(1, lr=1e-2)[0].config, 0)]
    points = [*points_of(3), *others]
    (one,) = passes(points, tmp_path, n_timed=3)
    assert all(need.step_s > 0 for need in one.needs)
    assert len(set(map(id, one.needs))) == 2
    assert one.seconds == pytest.approx(40 * sum(need.step_s for need in one.needs))
    assert one.to_json()["disk"] == sum(need.weights for need in one.needs)


def test_free_memory_is_a_plausible_number() -> None:
    assert 2**20 < available(CPU) < 2**50


MEASURE = """
import sys
from pathlib import Path
import torch
from test_sweep import memory_pass
torch.set_num_threads(1)
what, variant, n, folder = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
if what == "planned":
    print(memory_pass(variant, n, folder, 256, 4096, 1024).cost.memory)
else:
    memory_pass(variant, 1, folder / "warm", 16, 64, 32).train((folder / "warm").joinpath)
    one = memory_pass(variant, n, folder, 256, 4096, 1024, measure=False)
    def held(key):
        return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    Path("/proc/self/clear_refs").write_text("5")
    before = held("VmRSS")
    one.train((folder / "saes").joinpath)
    print(held("VmHWM") - before)
"""


def memory_pass(variant: str, n: int, folder: Path, d_in: int, d_sae: int, batch: int, *, measure: bool = True) -> Pass:
    """A pass over random vectors that takes states after every second of four steps."""
    source = ArraySource(torch.randn(3 * batch, d_in, generator=torch.Generator().manual_seed(0)))
    train = TrainConfig(batch_size=batch, n_tokens=4 * batch, n_init=2 * batch, checkpoint_every=2)
    config = RunConfig(sae=PluginRef(name=variant, options={"d_sae": d_sae}), train=train, read=ReadConfig(buffer_mb=1))
    points = [Point(f"s{i}", config, i) for i in range(n)]
    if not measure:
        return Pass(tuple(points), source)
    (one,) = make_passes(points, lambda _: source, folder.joinpath, CPU, limit=10**12, n_timed=1)
    return one


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(("variant", "n"), [("topk", 4), ("relu", 2)])
def test_the_memory_that_is_planned_is_within_a_quarter_of_what_is_taken(variant: str, n: int, tmp_path: Path) -> None:
    def measured(what: str) -> int:
        # Apart: what measuring has freed would hide what training takes.
        command = [sys.executable, "-c", MEASURE, what, variant, str(n), str(tmp_path)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False, env=env)
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    planned, taken = measured("planned"), measured("taken")
    assert 0.75 < planned / taken < 1.25, (planned, taken)
