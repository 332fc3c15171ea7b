"""`jumprelu`: against its equations in float64, against its contract, and the L0 that it was asked for."""

from typing import Any, ClassVar

import pytest
import torch

from saev_core.config.stages import TrainConfig
from saev_core.errors import ConfigError
from saev_core.sae.step import Progress
from saev_core.testing.sae_contract import ArraySource, SAEContract, planted
from saev_core.training.train import TrainSpec, train
from saev_saes.jumprelu import JumpReLU, JumpReLUConfig


class TestJumpReLU(SAEContract):
    sae = JumpReLU
    options: ClassVar[dict[str, Any]] = {"d_sae": 56, "l0": 5, "bandwidth": 0.05}
    planted_options: ClassVar[dict[str, Any]] = {"d_sae": 128, "l0": 4}


def small(**options: object) -> JumpReLU:
    cfg = JumpReLUConfig.model_validate({"d_in": 24, "d_sae": 56, "l0": 4, "bandwidth": 0.1, "theta": 0.4, **options})
    generator = torch.Generator().manual_seed(0)
    sae = JumpReLU(cfg, generator).double()
    with torch.no_grad():
        sae.theta.add_(torch.rand(56, generator=generator, dtype=torch.float64))
    return sae


def vectors(n: int = 150) -> torch.Tensor:
    return torch.randn(n, 24, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("sparsity", ["target", "l0", "tanh"])
def test_loss_and_gradient_are_the_published_ones_in_float64(sparsity: str) -> None:
    """Against derivatives written out by hand, one by one."""
    sae, x = small(sparsity=sparsity, sparsity_coeff=0.7), vectors()
    step = sae.backward(x, Progress(900, 1000))
    W_enc, W_dec, theta, n, d = sae.W_enc.detach(), sae.W_dec.detach(), sae.theta.detach(), len(x), 24
    h = x @ W_enc + sae.b_enc.detach()
    on = (h > theta).double()
    f = h * on
    x_hat = f @ W_dec + sae.b_dec.detach()
    epsilon, lam, c = 0.1 * d**0.5, 0.7 * d, 4 / d**0.5
    window = ((h - theta).abs() < epsilon / 2).double()
    assert 0 < float(on.mean()) < 0.1, "the sparse step was meant to be tested"
    l0 = on.sum() / n
    s, by_l0 = {
        "target": ((l0 / 4 - 1) ** 2, 2 * (l0 / 4 - 1) / 4),
        "l0": (l0, torch.tensor(1.0)),
        "tanh": ((c * f).tanh().sum() / n, torch.tensor(0.0)),
    }[sparsity]
    torch.testing.assert_close(step.loss, (x - x_hat).square().sum() / n + lam * s)
    by_f = 2 / n * (x_hat - x) @ W_dec.T
    if sparsity == "tanh":
        by_f = by_f + lam / n * c * (1 - (c * f).tanh() ** 2)
    by_h = by_f * on
    wanted = {
        "W_enc": x.T @ by_h,
        "b_enc": by_h.sum(0),
        "W_dec": f.T @ (2 / n * (x_hat - x)),
        "b_dec": (2 / n * (x_hat - x)).sum(0),
        "theta": (-(theta / epsilon) * window * by_f).sum(0) - (window / epsilon).sum(0) * lam * by_l0 / n,
    }
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")
    autograd = sae.backward_autograd(x, Progress(900, 1000))
    torch.testing.assert_close(step.loss, autograd.loss)
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")


def test_dense_codes_take_the_dense_step() -> None:
    sae, x = small(), vectors()
    with torch.no_grad():
        sae.theta.zero_()
    step = sae.backward(x, Progress(900, 1000))
    assert isinstance(step.z, torch.Tensor)
    assert float((step.z > 0).double().mean()) > 0.4


@pytest.mark.parametrize("target", [3.0, 6.0])
def test_training_arrives_at_the_l0_that_was_asked_for(target: float) -> None:
    x = planted(4000)[0]
    sae = JumpReLU(JumpReLUConfig(d_in=32, d_sae=96, l0=target), torch.Generator().manual_seed(0))
    (checkpoint,) = train(ArraySource(x), [TrainSpec("mine", sae)], TrainConfig(batch_size=256, n_tokens=256 * 400, lr=3e-3, n_init=2000))
    assert float(checkpoint.codes(x).counts().sum()) / len(x) == pytest.approx(target, rel=0.15)


def test_thresholds_start_at_four_times_the_wanted_l0_unless_one_is_given() -> None:
    x = planted(4000)[0]
    x = ArraySource(x).norm(x)
    for theta in (0.0, 0.3):
        sae = JumpReLU(JumpReLUConfig(d_in=32, d_sae=96, l0=3, theta=theta))
        sae.initialise(x, torch.Generator().manual_seed(0))
        if theta:
            torch.testing.assert_close(sae.theta.detach(), torch.full((96,), 0.3 * 32**0.5))
        else:
            assert float(sae.codes(x).counts().sum()) / len(x) == pytest.approx(12, rel=0.1)


def test_a_resampled_feature_is_active_on_something() -> None:
    sae, x = small(resample_every=10), vectors()
    with torch.no_grad():
        sae.theta[:5] = 100
    progress = Progress(9, 100, torch.arange(56) < 5, torch.Generator().manual_seed(0))
    anew = sae.resample(x, sae.backward(x, progress), progress)
    assert anew is not None
    assert anew.tolist() == [0, 1, 2, 3, 4]
    assert bool((sae.codes(x).counts()[:5] > 0).all())


def test_a_target_above_the_number_of_features_is_refused() -> None:
    with pytest.raises(ConfigError, match="lower l0"):
        small(l0=57)
