"""`train`: many SAEs on one pass, resumable to the last bit, and one clear line for what cannot be trained."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saev_core.config.base import PluginRef, validate
from saev_core.config.stages import TrainConfig
from saev_core.errors import SaevError, ShapeError, StoreError, TrainError, UnknownPluginError
from saev_core.sae.base import SAE
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.relu import ReLU, ReLUConfig
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.testing import ArraySource
from saev_core.testing.sae_contract import planted
from saev_core.training.schedule import Schedule, base_lr
from saev_core.training.train import TrainSpec, train


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


CFG = TrainConfig(batch_size=64, n_tokens=64 * 40, n_init=500, checkpoint_every=6, log_every=5)


def source(seed: int = 0) -> ArraySource:
    return ArraySource(planted(700, 16, seed=seed)[0])


def topk(name: str = "topk", seed: int = 0, own: TrainConfig | None = None, **options: Any) -> TrainSpec:
    cfg = TopKConfig.model_validate({"d_in": 16, "d_sae": 40, "k": 4, **options})
    return TrainSpec(name, TopK(cfg, torch.Generator().manual_seed(seed)), own, seed=seed)


def relu(name: str = "relu", seed: int = 0, **options: Any) -> TrainSpec:
    cfg = ReLUConfig.model_validate({"d_in": 16, "d_sae": 40, **options})
    return TrainSpec(name, ReLU(cfg, torch.Generator().manual_seed(seed)), seed=seed)


def same(one: SAE, two: SAE) -> bool:
    return all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def changed(**update: Any) -> TrainConfig:
    return validate(TrainConfig, {**CFG.model_dump(), **update})


# Many at once.


def test_neighbours_change_nothing() -> None:
    alone = [train(source(), [make()], CFG)[0] for make in (topk, relu)]
    together = train(source(), [topk(), relu(), topk("other", seed=5, k=7)], CFG)
    assert same(alone[0].sae, together[0].sae)
    assert same(alone[1].sae, together[1].sae)


def test_each_has_its_own_seed_and_learning_rate() -> None:
    a, b, c = train(source(), [topk("a"), topk("b", seed=1), topk("c", own=changed(lr=7e-3))], CFG)
    assert not same(a.sae, b.sae)
    assert not same(a.sae, c.sae)
    assert c.train["lr"] == 7e-3
    assert b.train["seed"] == 1


def test_each_has_its_own_schedule_clipping_and_dead_window() -> None:
    """As if it had been trained alone with that configuration."""
    own = changed(n_lr_warmup=0, lr_decay=1.0, clip_grad=0.1, dead_after=20)
    (alone,) = train(source(), [topk("b")], own)
    a, b = train(source(), [topk("a"), topk("b", own=own)], CFG)
    assert same(alone.sae, b.sae)
    assert not same(a.sae, b.sae)
    assert b.train["config"] == own.model_dump(mode="json")
    assert (a.train["dead_after"], b.train["dead_after"]) == (25, 20)


def test_what_belongs_to_the_stream_is_the_groups() -> None:
    with pytest.raises(TrainError, match=r"b needs train.batch_size 32 \(the group's is 64\); SAEs on one pass share these settings"):
        train(source(), [topk("a"), topk("b", own=changed(batch_size=32))], CFG)


def test_rows_have_length_one_at_the_end_too() -> None:
    for checkpoint in train(source(), [topk(), relu()], CFG):
        torch.testing.assert_close(checkpoint.sae.W_dec.norm(dim=1), torch.ones(40), rtol=1e-5, atol=1e-5)


def test_the_checkpoint_takes_raw_activations() -> None:
    data = source()
    (checkpoint,) = train(data, [topk()], changed(n_tokens=64 * 400))
    x_hat = checkpoint.decode(checkpoint.codes(data.x))
    spread = (data.x - data.x.mean(0)).square().sum()
    assert float((x_hat - data.x).square().sum() / spread) < 0.3
    assert checkpoint.site == "resid.0"
    assert checkpoint.ref["name"] == "topk"


def test_metrics_are_told_every_few_steps(tmp_path: Path) -> None:
    told: list[tuple[str, str, int, dict[str, float]]] = []

    def emit(hook: str, *, name: str, step: int, metrics: dict[str, float] | None = None, path: Path | None = None) -> None:
        told.append((hook, name, step, metrics or {}))

    train(source(), [topk(), relu()], CFG, out=tmp_path, emit=emit)
    steps = [step for hook, name, step, _ in told if (hook, name) == ("stepped", "topk")]
    assert steps == [5, 10, 15, 20, 25, 30, 35, 40]
    assert [step for hook, name, step, _ in told if (hook, name) == ("checkpointed", "relu")] == [6, 12, 18, 24, 30, 36, 40]
    last = next(m for hook, name, step, m in reversed(told) if (hook, name, step) == ("stepped", "topk", 40))
    assert {"loss", "nmse", "l0", "dead", "lr", "vectors_per_s", "mse"} <= last.keys()
    assert 0 < last["nmse"] < 1
    assert 0 < last["l0"] <= 4


def test_the_sparsity_coefficient_decides_l0() -> None:
    few, many = train(source(), [relu("few", sparsity_coeff=7.0), relu("many", sparsity_coeff=0.02)], changed(n_tokens=64 * 300))
    x = source().x
    assert int(few.codes(x).counts().sum()) < int(many.codes(x).counts().sum()) / 3


def test_auxk_revives_dead_features() -> None:
    def trained(auxk: float) -> Checkpoint:
        trainee = topk(auxk=auxk, data_init=False)
        with torch.no_grad():
            trainee.sae.W_enc[:, :20] *= 0.02  # never among the k largest
        return train(source(), [trainee], changed(n_tokens=64 * 300))[0]

    x = source().x
    dead = {auxk: int((trained(auxk).codes(x).counts() == 0).sum()) for auxk in (0.0, 1 / 32)}
    assert dead[0.0] >= 15
    assert dead[1 / 32] < dead[0.0] / 2


# Schedules.


def test_the_learning_rate_rises_stays_and_falls() -> None:
    schedule = Schedule.of(TrainConfig(batch_size=10, n_tokens=10_000, n_lr_warmup=50, lr_decay=0.2), 5000)
    factors = [schedule.lr_factor(step) for step in range(1000)]
    assert factors[0] == pytest.approx(1 / 50)
    assert factors[49:800] == [1.0] * 751
    assert all(a > b for a, b in pairwise(factors[800:]))
    assert 0 < factors[-1] < 0.01


def test_windows_shrink_with_a_short_run() -> None:
    schedule = Schedule.of(TrainConfig(batch_size=10, n_tokens=1000), 5000)
    assert (schedule.n_steps, schedule.n_warmup, schedule.dead_after) == (100, 10, 10)
    long = Schedule.of(TrainConfig(batch_size=1000, n_tokens=100_000_000), 5000)
    assert (long.n_warmup, long.dead_after) == (500, 1_000_000)


def test_the_default_length_is_twenty_passes_up_to_a_cap() -> None:
    assert Schedule.of(TrainConfig(batch_size=10), 5000).n_steps == 10_000
    assert Schedule.of(TrainConfig(batch_size=1000), 50_000_000).n_steps == 100_000


# Interruption.


class Stop(Exception):
    """Ends a training from inside."""


def stopping(at: int, error: type[BaseException] = Stop) -> Any:
    def emit(hook: str, *, step: int, **rest: Any) -> None:
        if hook == "stepped" and step >= at:
            raise error

    return emit


def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path: Path) -> None:
    whole = train(source(), [topk(), relu()], CFG)
    with pytest.raises(Stop):
        train(source(), [topk(), relu()], CFG, out=tmp_path, emit=stopping(25))
    states = sorted(path.name for path in (tmp_path / "topk.training").glob("step-*"))
    assert states == ["step-00000018", "step-00000024"]  # the last two
    newest = tmp_path / "topk.training" / "step-00000024" / "state.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100] + bytes(100))
    (tmp_path / "relu.training" / "new-1").mkdir()  # a write that was cut off
    resumed = train(source(), [topk(), relu()], CFG, out=tmp_path)
    assert all(same(a.sae, b.sae) for a, b in zip(whole, resumed, strict=True))
    assert not list(tmp_path.glob("*.training"))


def test_states_that_only_some_have_are_not_used(tmp_path: Path) -> None:
    """Killed between one SAE's state and the next one's."""
    whole = train(source(), [topk(), relu()], CFG)
    with pytest.raises(Stop):
        train(source(), [topk(), relu()], CFG, out=tmp_path, emit=stopping(25))
    (tmp_path / "relu.training" / "step-00000024" / "state.json").unlink()
    resumed = train(source(), [topk(), relu()], CFG, out=tmp_path)
    assert all(same(a.sae, b.sae) for a, b in zip(whole, resumed, strict=True))


@pytest.mark.parametrize(
    ("cfg", "options", "data", "said"),
    [
        (changed(lr=0.5), {}, 0, "train.lr was"),
        (CFG, {"k": 5}, 0, "sae.k was 4, now 5"),
        (changed(n_tokens=64 * 50), {}, 0, "train.n_tokens was 2560, now 3200"),
        (CFG, {}, 1, "source.array was"),
    ],
)
def test_resuming_with_another_configuration_names_what_differs(
    tmp_path: Path, cfg: TrainConfig, options: dict[str, Any], data: int, said: str
) -> None:
    with pytest.raises(Stop):
        train(source(), [topk()], CFG, out=tmp_path, emit=stopping(10))
    with pytest.raises(TrainError, match=said) as caught:
        train(source(data), [topk(**options)], cfg, out=tmp_path)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_a_state_written_when_0_stood_for_auto_and_none_is_resumed(tmp_path: Path) -> None:
    whole = train(source(), [topk()], CFG)
    with pytest.raises(Stop):
        train(source(), [topk()], CFG, out=tmp_path, emit=stopping(10))
    (file,) = tmp_path.glob("*.training/config.json")
    held = json.loads(file.read_text())
    assert (held["train.ema"], held["sae.k_aux"], held["sae.resample_every"]) == (None, "auto", None)
    file.write_text(json.dumps(held | {"train.ema": 0.0, "sae.k_aux": 0, "sae.resample_every": 0}))
    assert same(whole[0].sae, train(source(), [topk()], CFG, out=tmp_path)[0].sae)


def test_how_often_it_is_kept_may_change_on_resuming(tmp_path: Path) -> None:
    whole = train(source(), [topk()], CFG)
    with pytest.raises(Stop):
        train(source(), [topk()], CFG, out=tmp_path, emit=stopping(10))
    resumed = train(source(), [topk()], changed(checkpoint_every=7, log_every=3), out=tmp_path)
    assert same(whole[0].sae, resumed[0].sae)


SCRIPT = """
import sys, time, torch
from pathlib import Path
from test_train import CFG, relu, source, topk
from saev_core.training.train import train
torch.set_num_threads(1)
train(source(), [topk(), relu()], CFG, out=Path(sys.argv[1]), emit=lambda hook, **rest: time.sleep(0.03))
"""


@pytest.mark.slow
def test_killed_with_signal_9_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    """A real process, killed twice wherever it happens to be; also in the middle of writing a state."""
    whole = train(source(), [topk(), relu()], CFG, out=tmp_path / "whole")
    for pause, state in ((0.011, "step-0000001*"), (0.004, "step-0000003*")):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "cut")], cwd=Path(__file__).parent)
        give_up = time.monotonic() + 120
        while not list((tmp_path / "cut" / "relu.training").glob(state)):
            assert process.poll() is None, "it ended before it was killed"
            assert time.monotonic() < give_up
            time.sleep(0.001)
        time.sleep(pause)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "cut" / "topk").exists()
    steps: list[int] = []
    resumed = train(source(), [topk(), relu()], CFG, out=tmp_path / "cut", emit=lambda hook, *, step, **rest: steps.append(step))
    assert min(steps) > 30
    assert all(same(a.sae, b.sae) for a, b in zip(whole, resumed, strict=True))
    for name in ("topk", "relu"):
        one, two = (tmp_path / run / name / "sae.safetensors" for run in ("whole", "cut"))
        assert one.read_bytes() == two.read_bytes()


def test_a_bare_run_of_any_length_has_a_sensible_learning_rate() -> None:
    narrow, wide = (TopK.training_defaults.lr * base_lr(width) for width in (256, 65_536))
    assert 1e-4 < wide < narrow < 1e-2


# Bad input.


def test_a_diverged_sae_is_named_and_its_neighbours_go_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    alone = train(source(), [topk()], CFG)
    left = train(source(), [topk(), topk("wild", own=changed(lr=1e30, clip_grad=0.0))], changed(clip_grad=0.0), out=tmp_path)
    calm = train(source(), [topk()], changed(clip_grad=0.0))
    assert [checkpoint.train["lr"] for checkpoint in left] == [alone[0].train["lr"]]
    assert same(left[0].sae, calm[0].sae)
    assert "wild diverged at step" in caplog.text
    why = json.loads((tmp_path / "wild.training" / "stopped.json").read_text())["why"]
    assert "lower its learning rate of 1e+30" in why
    assert (tmp_path / "topk" / "checkpoint.json").exists()
    assert not (tmp_path / "wild").exists()


def test_if_every_sae_diverges_it_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(TrainError, match=r"every SAE diverged: a diverged.*b diverged"):
        train(source(), [topk("a"), topk("b")], changed(clip_grad=0.0, lr=1e30))


def test_nan_that_turns_up_in_a_batch_is_not_the_saes_fault() -> None:
    data = source()
    data.x = data.x.clone()
    data.x[3, 2] = float("nan")
    with pytest.raises(TrainError, match="activations contain NaN or infinity"):
        train(data, [topk()], CFG)
    with pytest.raises(TrainError, match="activations contain NaN or infinity"):
        train(data, [topk()], changed(n_init=1, seed=1))


def raises(error: type[SaevError], said: str, data: ArraySource, trainees: list[TrainSpec], cfg: TrainConfig) -> None:
    with pytest.raises(error, match=said) as caught:
        train(data, trainees, cfg)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_trained_is_one_clear_line() -> None:
    raises(TrainError, "there is no SAE", source(), [], CFG)
    raises(TrainError, "duplicate SAE names topk", source(), [topk(), topk()], CFG)
    raises(TrainError, "takes activations of width 16, the source has 8", ArraySource(torch.randn(700, 8)), [topk()], CFG)
    raises(TrainError, "700 training vectors, fewer than one batch of 1000", source(), [topk()], changed(batch_size=1000))
    raises(TrainError, "n_tokens 32 is less than one batch of 64", source(), [topk()], changed(n_tokens=32))
    with pytest.raises(StoreError, match="are equal"):
        ArraySource(torch.ones(700, 16))
    with pytest.raises(StoreError, match="not finite"):
        ArraySource(torch.full((700, 16), float("nan")))


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainError, match="cannot be used"):
        train(source(), [topk()], CFG, out=tmp_path / "file")


# Arrays, one SAE, and settings that need not be said twice.


@pytest.mark.parametrize("kind", [torch.Tensor, np.ndarray])
def test_an_array_is_trained_on_as_its_source_is(kind: type) -> None:
    x = source().x
    assert isinstance(x, torch.Tensor)
    (wanted,) = train(source(), [topk()], CFG)
    found = train(x if kind is torch.Tensor else x.numpy(), topk().sae, CFG)
    assert isinstance(found, Checkpoint)
    assert same(found.sae, wanted.sae)
    assert found.ref["name"] == "topk"
    assert found.codes(x).counts().sum() > 0
    assert found.train["source"] == {"kind": "array", "n_vectors": 700}


def test_half_precision_and_strided_vectors_are_converted_batch_by_batch(tmp_path: Path) -> None:
    x = source().x
    assert isinstance(x, torch.Tensor)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for given, equal in (
        (x.bfloat16(), x.bfloat16().float()),
        (x.half().numpy(), x.half().float()),
        (x.double().numpy(), x),
        (x.T.contiguous().T, x),
        (mapped, x),
        (x.clone().requires_grad_(), x),
    ):
        found, wanted = (train(each, topk().sae, CFG) for each in (given, equal))
        assert same(found.sae, wanted.sae)
        assert torch.equal(found.norm.mean, wanted.norm.mean)


def test_a_plugin_by_name_is_built_for_the_vectors(tmp_path: Path) -> None:
    x = source().x
    for given in ("topk:4", PluginRef(name="topk", options={"k": 4})):
        found = train(x, given, CFG, out=tmp_path)
        assert isinstance(found.sae, TopK)
        assert (found.sae.d_in, found.sae.cfg.k) == (16, 4)
        assert same(Checkpoint.load(tmp_path / "topk").sae, found.sae)
    with pytest.raises(UnknownPluginError, match="no sae plugin named 'topkk'"):
        train(x, "topkk", CFG)


def test_without_settings_a_batch_is_no_larger_than_the_vectors(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "saev_core"):
        found = train(source(), topk().sae)
    assert found.train["config"]["batch_size"] == 700
    assert found.train["n_vectors"] == 20 * 700
    assert "train.batch_size reduced to 700 from 4096" in caplog.text


def test_a_trainees_own_settings_need_not_repeat_the_stream() -> None:
    (wanted,) = train(source(), [topk()], changed(lr=7e-3))
    (short,) = train(source(), [topk(own=TrainConfig(lr=7e-3))], CFG)
    assert same(short.sae, wanted.sae)
    assert short.train["config"]["batch_size"] == CFG.batch_size
    (alone,) = train(source(), [topk(own=changed(lr=7e-3))])
    assert same(alone.sae, wanted.sae)
    with pytest.raises(TrainError, match=r"topk needs train.batch_size 32 \(the group's is 64\)"):
        train(source(), [topk(own=TrainConfig(batch_size=32))], CFG)


def test_arrays_that_are_no_training_vectors_are_one_clear_line() -> None:
    with pytest.raises(ShapeError, match=r"training vectors must be \[n, d_model\].*got \[2, 3, 4\]"):
        train(torch.zeros(2, 3, 4), "topk")
    with pytest.raises(ShapeError, match="a multiple of 3"):
        ArraySource(torch.zeros(20, 16), n_sites=3)
    with pytest.raises(StoreError, match="the array is empty"):
        train(np.zeros((0, 16), np.float32), "topk")
