"""`relu`: Bricken et al. 2023, sparsity by an L1 penalty."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from saev_core.sae.relu import ReLU, ReLUConfig
from saev_core.sae.step import Progress
from saev_core.testing import SAEContract


class TestReLU(SAEContract):
    """About half of the features are active: the dense step."""

    sae = ReLU
    planted_options: ClassVar = {"d_sae": 128, "sparsity_coeff": 0.5}


class TestSparseReLU(SAEContract):
    """Few features are active: the sparse step."""

    sae = ReLU
    recovers = None

    def make(self, seed: int = 0, **options: object) -> ReLU:
        sae = super().make(seed, **options)
        with torch.no_grad():
            sae.b_enc -= 1.7
        assert isinstance(sae, ReLU)
        return sae


class TestReLUWithFreeRows(SAEContract):
    """Decoder rows of any length, weighing the penalty."""

    sae = ReLU
    options: ClassVar = {"d_sae": 56, "normalize_w_dec": False}
    recovers = None


def small(**options: object) -> ReLU:
    return ReLU(ReLUConfig.model_validate({"d_in": 6, "d_sae": 20, **options}), torch.Generator().manual_seed(0)).double()


def test_the_loss_is_the_formula() -> None:
    sae, x = small(sparsity_coeff=0.7), torch.randn(30, 6, dtype=torch.float64)
    f = (x @ sae.W_enc + sae.b_enc).relu()
    expected = (f @ sae.W_dec + sae.b_dec - x).square().sum(1).mean() + 0.7 * 6**0.5 * f.abs().sum(1).mean()
    for step in (sae.loss(x, Progress(999, 1000)), sae.backward(x, Progress(999, 1000))):
        assert float(step.loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)


@pytest.mark.parametrize("fast", [False, True])
def test_the_sparsity_warm_up_reaches_the_loss_and_the_gradient(fast: bool) -> None:
    sae, x = small(n_sparsity_warmup=50), torch.randn(30, 6, dtype=torch.float64)
    run = sae.backward if fast else sae.backward_autograd
    gradients, losses = [], []
    for step in (0, 25, 50, 900):
        losses.append(float(run(x, Progress(step, 1000)).loss))
        assert sae.b_enc.grad is not None
        gradients.append(sae.b_enc.grad.clone())
    assert losses[0] < losses[1] < losses[2] == losses[3]
    torch.testing.assert_close(gradients[1] - gradients[0], (gradients[2] - gradients[0]) / 2)
    assert not torch.equal(gradients[0], gradients[2])


def test_the_warm_up_takes_at_most_a_tenth_of_a_short_run() -> None:
    sae = small(n_sparsity_warmup=500, sparsity_coeff=2.0)
    assert sae.weight(Progress(10, 100)) == pytest.approx(2 * 6**0.5)
    assert sae.weight(Progress(5, 100)) == pytest.approx(6**0.5)


def test_long_rows_do_not_escape_the_penalty() -> None:
    sae, x = small(normalize_w_dec=False), torch.randn(30, 6, dtype=torch.float64)
    end = Progress(1000, 1000)
    before = sae.penalty(sae.encode(x), end)
    with torch.no_grad():
        sae.W_enc *= 0.5
        sae.W_dec *= 2
    torch.testing.assert_close(sae.penalty(sae.encode(x), end), before)
