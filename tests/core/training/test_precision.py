"""Less precise matmuls and compiled losses: what they change, and what they leave as it was."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from saev_core.config.base import validate
from saev_core.config.stages import TrainConfig
from saev_core.sae.base import SAE
from saev_core.sae.kernels import encode_above, encode_top_k
from saev_core.sae.relu import ReLU, ReLUConfig
from saev_core.sae.scratch import Scratch
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.testing import ArraySource
from saev_core.testing.sae_contract import planted
from saev_core.training.precision import precision
from saev_core.training.sae_trainer import SAETrainer
from saev_core.training.schedule import Schedule
from saev_core.training.train import TrainSpec, train

CFG = TrainConfig(batch_size=64, n_tokens=64 * 40, n_init=500, checkpoint_every=6, log_every=5)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def changed(**update: Any) -> TrainConfig:
    return validate(TrainConfig, {**CFG.model_dump(), **update})


def source() -> ArraySource:
    return ArraySource(planted(700, 16)[0])


def topk() -> TopK:
    return TopK(TopKConfig(d_in=16, d_sae=40, k=4), torch.Generator().manual_seed(0))


def relu() -> ReLU:
    return ReLU(ReLUConfig(d_in=16, d_sae=40), torch.Generator().manual_seed(0))


class Plain(TopK):
    """Differentiated by torch, as a third party's variant."""

    selects = False


def same(one: SAE, two: SAE) -> bool:
    return all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())


def test_bf16_encodes_to_about_three_digits_and_only_inside() -> None:
    generator = torch.Generator().manual_seed(0)
    x, W = (torch.randn(shape, generator=generator) for shape in ((300, 64), (64, 500)))
    b, work = torch.randn(500, generator=generator), Scratch()
    wanted = x.double() @ W.double() + b.double()
    with precision("bf16", CPU, work):
        codes, picked = encode_above(x, W, b, work), encode_top_k(x, W, b, 8, work)
    assert codes is not None
    for found, dense in ((codes, wanted.relu()), (picked, wanted.relu())):
        assert found.value.dtype == torch.float32
        error = (found.value.double() - dense[found.rows, found.feature]).abs()
        assert 1e-4 < float(error.max()) < 0.2  # of values near 8 that are sums of 64 products
        assert float(error.mean()) < 0.05
    after = encode_top_k(x, W, b, 8, work)
    torch.testing.assert_close(after.value.double(), wanted[after.rows, after.feature].relu(), rtol=1e-5, atol=1e-4)


def test_bf16_leaves_weights_gradients_and_state_in_float32() -> None:
    trainee = TrainSpec("mine", topk())
    job = SAETrainer(trainee, changed(precision="bf16"), Schedule.of(CFG, 700), CPU)
    data = source()
    done = job.step(data.norm(data.x)[:64], 0)
    assert done.x_hat.dtype == done.loss.dtype == torch.float32
    kept = [*job.sae.parameters(), *(p.grad for p in job.sae.parameters() if p.grad is not None)]
    assert {tensor.dtype for tensor in [*kept, *job.optimizer.tensors().values()]} == {torch.float32}
    assert not job.scratch.bf16


def test_an_error_inside_restores_the_precision() -> None:
    work = Scratch()
    with pytest.raises(KeyError), precision("bf16", CPU, work):
        raise KeyError
    assert not work.bf16


def test_each_sae_of_a_group_has_its_own_precision(tmp_path: Path) -> None:
    def group(**more: Any) -> list[TrainSpec]:
        half = changed(precision="bf16", **more)
        return [TrainSpec("half", topk(), half), TrainSpec("full", topk()), TrainSpec("relu", relu(), half)]

    alone = [train(source(), [trainee], CFG)[0].sae for trainee in group()]
    together = [checkpoint.sae for checkpoint in train(source(), group(), CFG)]
    assert all(same(one, two) for one, two in zip(alone, together, strict=True))
    assert not same(together[0], together[1])
    data = source()
    spread = float((data.x - data.x.mean(0)).square().sum())
    nmse = []
    for checkpoint in train(data, group(n_tokens=64 * 300)[:2], changed(n_tokens=64 * 300)):
        nmse.append(float((checkpoint.decode(checkpoint.codes(data.x)) - data.x).square().sum()) / spread)
    assert nmse[0] == pytest.approx(nmse[1], rel=0.05)

    def interrupt(hook: str, *, step: int, **rest: Any) -> None:
        if hook == "stepped" and step == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(source(), group(), CFG, out=tmp_path, emit=interrupt)
    resumed = train(source(), group(), CFG, out=tmp_path)
    assert all(same(one, two.sae) for one, two in zip(alone, resumed, strict=True))


def test_tf32_is_float32_on_the_cpu_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="saev_core"):
        (one,) = train(source(), [TrainSpec("mine", topk())], changed(precision="tf32"))
    assert "mine: train.precision tf32 needs CUDA; using float32 on cpu" in caplog.text
    (two,) = train(source(), [TrainSpec("mine", topk())], CFG)
    assert same(one.sae, two.sae)


@pytest.mark.slow
def test_a_compiled_loss_trains_as_the_plain_one(caplog: pytest.LogCaptureFixture) -> None:
    data = source()
    x = data.norm(data.x)[:64]
    jobs = [SAETrainer(TrainSpec("plain", Plain(topk().cfg)), changed(compile=on), Schedule.of(CFG, 700), CPU) for on in (False, True)]
    plain, compiled = jobs
    compiled.sae.load_state_dict(plain.sae.state_dict())
    assert plain.loss is None
    assert compiled.loss is not None
    for step in range(4):
        one, two = (job.step(x, step) for job in jobs)
        torch.testing.assert_close(one.loss, two.loss)
        torch.testing.assert_close(one.x_hat, two.x_hat, rtol=1e-3, atol=1e-3)
        assert one.metrics == pytest.approx(two.metrics, rel=1e-4)


def test_a_gradient_of_its_own_has_nothing_to_compile(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="saev_core"):
        (one,) = train(source(), [TrainSpec("mine", topk())], changed(compile=True))
    assert "TopK uses a hand-written gradient on the CPU; train.compile has no effect" in caplog.text
    (two,) = train(source(), [TrainSpec("mine", topk())], CFG)
    assert same(one.sae, two.sae)
