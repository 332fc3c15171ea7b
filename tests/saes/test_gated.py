"""`gated`: against its equations in float64, and against its contract."""

from typing import Any, ClassVar

import pytest
import torch

from saev_core.sae.kernels import ROWS
from saev_core.sae.step import Progress
from saev_core.testing.sae_contract import SAEContract
from saev_saes.gated import Gated, GatedConfig


class TestGated(SAEContract):
    sae = Gated
    options: ClassVar[dict[str, Any]] = {"d_sae": 56}
    planted_options: ClassVar[dict[str, Any]] = {"d_sae": 128, "sparsity_coeff": 0.5}
    steps = 1000


def small() -> Gated:
    generator = torch.Generator().manual_seed(0)
    sae = Gated(GatedConfig(d_in=24, d_sae=56), generator).double()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return sae


@pytest.mark.parametrize("sparse", [True, False])
def test_loss_and_gradient_are_the_published_ones_in_float64(sparse: bool) -> None:
    """With the paper's own parts: two weight matrices tied by exp(r_mag), a hard gate, a frozen decoder."""
    sae, x = small(), torch.randn(150 if sparse else ROWS + 40, 24, generator=torch.Generator().manual_seed(1)).double()
    if sparse:
        with torch.no_grad():
            sae.b_enc.sub_(2.2)
            sae.b_mag.sub_(3)
    step = sae.backward(x, Progress(900, 1000))
    ours = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    W_gate, r_mag, b_gate, b_mag, W_dec, b_dec = (
        p.detach().clone().requires_grad_() for p in (sae.W_enc, sae.r_mag, sae.b_enc, sae.b_mag, sae.W_dec, sae.b_dec)
    )
    W_mag = W_gate * r_mag.exp()
    gate, magnitude = x @ W_gate + b_gate, torch.relu(x @ W_mag + b_mag)
    f = (gate > 0).double() * magnitude
    assert (float((gate > 0).double().mean()) < 0.1) == sparse
    assert bool(((gate > 0) & (magnitude == 0)).any()), "gates that are open on nothing were meant to be tested"
    x_hat = f @ W_dec + b_dec
    frozen = torch.relu(gate) @ W_dec.detach() + b_dec.detach()
    loss = (
        (x - x_hat).square().sum(1).mean()
        + 0.2 * 24**0.5 * torch.relu(gate).sum(1).mean()
        + (x - frozen).square().sum(1).mean()
    )  # fmt: skip
    loss.backward()
    torch.testing.assert_close(step.loss, loss.detach())
    torch.testing.assert_close(step.x_hat, x_hat.detach())
    assert torch.equal(step.counts(), (f > 0).sum(0))
    theirs = {"W_enc": W_gate, "r_mag": r_mag, "b_enc": b_gate, "b_mag": b_mag, "W_dec": W_dec, "b_dec": b_dec}
    assert ours.keys() == theirs.keys()
    for name, parameter in theirs.items():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-9, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), f.detach())
        torch.testing.assert_close(sae.codes(x).dense(), f.detach())


def test_magnitudes_start_as_the_gates_own() -> None:
    sae, x = Gated(GatedConfig(d_in=24, d_sae=56)), torch.randn(500, 24, generator=torch.Generator().manual_seed(1))
    sae.initialise(x, torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), sae.pre(x).relu(), rtol=1e-4, atol=1e-5)


def test_a_resampled_feature_has_the_magnitude_of_its_gate() -> None:
    sae, x = small(), torch.randn(150, 24, generator=torch.Generator().manual_seed(1)).double()
    sae.cfg = sae.cfg.model_copy(update={"resample_every": 10})
    with torch.no_grad():
        sae.b_enc[:5] = -100
    progress = Progress(9, 100, torch.arange(56) < 5, torch.Generator().manual_seed(0))
    anew = sae.resample(x, sae.backward(x, progress), progress)
    assert anew is not None
    assert anew.tolist() == [0, 1, 2, 3, 4]
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x)[:, :5], sae.pre(x)[:, :5].relu())
        assert bool((sae.encode(x)[:, :5] > 0).any(0).all())
