"""`nmf`: codes against scipy's NNLS, the gradient against finite differences of the minimum."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.optimize import nnls

from saev_core.errors import ConfigError
from saev_core.sae.step import Progress
from saev_core.testing import SAEContract
from saev_core.testing.sae_contract import planted
from saev_saes.nmf import NMF, NMFConfig


class TestNMF(SAEContract):
    """Plain semi-NMF, fewer features than directions."""

    sae = NMF
    options: ClassVar = {"d_sae": 20, "n_iter": 20}
    recovers = None


class TestSparseNMF(SAEContract):
    """With a penalty on codes it finds a dictionary larger than the space."""

    sae = NMF
    options: ClassVar = {"d_sae": 56, "sparsity_coeff": 0.1, "n_iter": 20}
    planted_options: ClassVar = {"d_sae": 128, "sparsity_coeff": 0.1, "n_iter": 20}
    steps = 500


def small(d_sae: int = 10, **options: Any) -> NMF:
    sae = NMF(NMFConfig(d_in=6, d_sae=d_sae, **{"n_iter": 1000, **options}), torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.b_dec.copy_(torch.linspace(-0.5, 0.5, 6))
    return sae.double()


def vectors(n: int = 15) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("d_sae", [4, 10, 30])
@pytest.mark.parametrize("sparsity_coeff", [0.0, 0.3])
def test_forward_and_loss_reach_the_minimum_that_nnls_finds(d_sae: int, sparsity_coeff: float) -> None:
    sae, x = small(d_sae, sparsity_coeff=sparsity_coeff), vectors()
    W, target = sae.W_dec.detach().numpy(), (x - sae.b_dec.detach()).numpy()
    # |t - z W|^2 + w sum z is NNLS of extra rows: |t' - z W'|^2 with a column c of W' such that the cross term is w sum z.
    big = 1e4
    column, extra = np.full((d_sae, 1), sae.weight / (2 * big)), np.full(1, -big)
    value = []
    for t in target:
        z, rest = nnls(np.hstack([W, column]).T, np.concatenate([t, extra]), maxiter=1000)
        value.append(((t - z @ W) ** 2).sum() + sae.weight * z.sum())
        assert rest >= 0
    step = sae.loss(x, Progress(0, 10))
    assert float(step.loss.detach()) == pytest.approx(np.mean(value), rel=1e-5)
    if d_sae == 4:  # fewer rows than dimensions: the minimum is unique
        z = np.stack([nnls(np.hstack([W, column]).T, np.concatenate([t, extra]))[0] for t in target])
        np.testing.assert_allclose(sae.encode(x).numpy(), z, atol=1e-6)


def test_gradient_is_that_of_the_minimum() -> None:
    sae, x = small(8, sparsity_coeff=0.2), vectors()
    sae.backward(x, Progress(0, 10))
    h = 1e-4
    for parameter, places in ((sae.W_dec, [(0, 0), (7, 5)]), (sae.b_dec, [(0,), (4,)])):
        assert parameter.grad is not None
        for place in places:
            values = []
            for sign in (h, -h):
                with torch.no_grad():
                    parameter[place] += sign
                    values.append(float(sae.loss(x, Progress(0, 10)).loss.detach()))
                    parameter[place] -= sign
            assert float(parameter.grad[place]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4, abs=1e-5)


def test_codes_of_few_features_are_never_worse_than_projecting_the_best_signed_ones() -> None:
    x = planted(200, 6, 12)[0].double()
    sae = small(4, n_iter=50)
    W = sae.W_dec.detach()
    signed = (torch.linalg.lstsq(W.T, (x - sae.b_dec.detach()).T).solution.T).relu()
    ours = (x - sae(x).detach()).square().sum()
    assert float(ours) <= float((x - sae.decode(signed).detach()).square().sum()) + 1e-9


def test_long_rows_under_a_penalty_are_refused() -> None:
    with pytest.raises(ConfigError, match="long rows would evade"):
        small(sparsity_coeff=0.1, normalize_w_dec=False)
