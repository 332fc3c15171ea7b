"""Schedules reach what they schedule: the learning rate, the weight of sparsity, k."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from saev_core.config.stages import TrainConfig
from saev_core.errors import ConfigError
from saev_core.sae.base import SAE
from saev_core.sae.ramp import Shape, ramp
from saev_core.sae.relu import ReLU, ReLUConfig
from saev_core.sae.step import Progress
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.testing import ArraySource
from saev_core.testing.sae_contract import planted
from saev_core.training.schedule import Schedule
from saev_core.training.train import TrainSpec, train


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def topk(**options: Any) -> TopK:
    return TopK(TopKConfig.model_validate({"d_in": 16, "d_sae": 40, "k": 4, **options}), seeded())


def gradient(sae: SAE, step: int, how: str = "backward") -> Tensor:
    getattr(sae, how)(torch.randn(50, 16, generator=seeded(1)), Progress(step, 10_000, None, seeded(2)))
    assert sae.W_enc.grad is not None
    return sae.W_enc.grad.clone()


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_ramps_rise_from_nought_to_one(shape: Shape) -> None:
    values = [ramp(i / 10, shape) for i in range(11)]
    assert values[0] == 0
    assert values[5] == pytest.approx(0.5)
    assert values[10] == 1
    assert all(a < b for a, b in pairwise(values))
    assert ramp(-1, shape) == 0
    assert ramp(7, shape) == 1
    assert ramp(0.25, "cosine") == pytest.approx(0.1464466)


def test_the_learning_rate_falls_as_a_cosine() -> None:
    cfg = TrainConfig(batch_size=10, n_tokens=10_000, n_lr_warmup=50, lr_decay=1.0, decay="cosine")
    schedule = Schedule.of(cfg, 5000)
    factors = [schedule.lr_factor(step) for step in range(1000)]
    assert factors[0] == pytest.approx(1 / 50)
    assert factors[500] == pytest.approx(0.5, abs=0.01)
    assert factors[750] == pytest.approx(0.1464, abs=0.01)
    assert all(a > b for a, b in pairwise(factors[60:]))


def test_schedule_free_does_not_decay() -> None:
    schedule = Schedule.of(TrainConfig(batch_size=10, n_tokens=10_000, optimizer="schedule-free"), 5000)
    assert [schedule.lr_factor(step) for step in (200, 900, 999)] == [1, 1, 1]


@pytest.mark.parametrize("how", ["backward", "backward_autograd"])
def test_sparsitys_warmup_changes_the_gradient(how: str) -> None:
    def relu(**options: Any) -> ReLU:
        return ReLU(
            ReLUConfig.model_validate({"d_in": 16, "d_sae": 40, "n_sparsity_warmup": 100, "sparsity_coeff": 1.0, **options}), seeded()
        )

    early, half, late, after = (gradient(relu(), step, how) for step in (0, 50, 100, 5000))
    assert not torch.equal(early, half)
    torch.testing.assert_close(half, (early + late) / 2)  # the gradient is affine in the weight
    assert torch.equal(late, after)
    quarter = gradient(relu(warmup_shape="cosine"), 25, how)
    torch.testing.assert_close(quarter, early + 0.1464466 * (late - early))


def test_k_falls_to_its_value() -> None:
    sae = topk(k_warmup=20, n_k_warmup=100)
    ks = [sae.k_at(Progress(step, 1000)) for step in range(0, 121)]
    assert (ks[0], ks[25], ks[50], ks[100], ks[120]) == (20, 16, 12, 4, 4)
    assert all(a >= b for a, b in pairwise(ks))
    assert topk(k_warmup=20, n_k_warmup=100, warmup_shape="cosine").k_at(Progress(25, 1000)) == 18
    assert sae.k_at(Progress(25, 100)) == 12  # over at most half of the run
    assert topk().k_at(Progress(0, 1000)) == 4


@pytest.mark.parametrize("how", ["backward", "backward_autograd"])
def test_the_step_uses_the_k_of_its_place_and_inference_the_last(how: str) -> None:
    sae = topk(k_warmup=20, n_k_warmup=100)
    for step, k in ((0, 20), (50, 12), (100, 4)):
        torch.testing.assert_close(gradient(sae, step, how), gradient(topk(k=k), step, how))
        x = torch.randn(50, 16, generator=seeded(1))
        done = getattr(sae, how)(x, Progress(step, 10_000))
        assert float(done.counts().sum()) / 50 <= k
        with torch.no_grad():
            assert int(sae.codes(x).counts().sum()) == int(sae.frozen().codes(x).counts().sum()) <= 4 * 50
            assert torch.equal(sae.encode(x), topk().encode(x))


def test_a_falling_k_is_resumed_to_the_last_bit(tmp_path: Path) -> None:
    cfg = TrainConfig(batch_size=64, n_tokens=64 * 40, n_init=500, checkpoint_every=6, log_every=5)
    source = ArraySource(planted(700, 16)[0])

    def run(out: Path | None = None, **more: Any) -> SAE:
        return train(source, [TrainSpec("mine", topk(k_warmup=20))], cfg, out=out, **more)[0].sae

    def interrupt(hook: str, *, step: int, **rest: Any) -> None:
        if hook == "stepped" and step == 15:
            raise KeyboardInterrupt

    told: list[float] = []
    whole = run(emit=lambda hook, *, metrics=None, **rest: told.append(metrics["l0"]) if metrics else None)
    assert told[0] > 14
    assert told[-1] <= 4
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, emit=interrupt)
    assert all(torch.equal(tensor, run(tmp_path).state_dict()[name]) for name, tensor in whole.state_dict().items())


def test_k_starts_between_k_and_d_sae() -> None:
    for wrong in (3, 41):
        with pytest.raises(
            ConfigError, match=rf"sae.k_warmup is {wrong}, but k decreases from it; set it between k \(4\) and d_sae \(40\)"
        ):
            topk(k_warmup=wrong)
