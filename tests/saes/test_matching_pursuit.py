"""`mp`: Costa et al. 2025."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch

from saev_core.errors import ConfigError
from saev_core.sae.scratch import Scratch
from saev_core.sae.step import Progress
from saev_core.testing import SAEContract
from saev_saes.matching_pursuit import MatchingPursuit, MatchingPursuitConfig


class TestMatchingPursuit(SAEContract):
    sae = MatchingPursuit
    options: ClassVar = {"d_sae": 56, "k": 5}
    planted_options: ClassVar = {"d_sae": 128, "k": 4}


class TestOneStep(SAEContract):
    sae = MatchingPursuit
    options: ClassVar = {"d_sae": 56, "k": 1}
    recovers = None


def small(**options: object) -> MatchingPursuit:
    sae = MatchingPursuit(
        MatchingPursuitConfig.model_validate({"d_in": 6, "d_sae": 20, "k": 8, **options}), torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        sae.b_dec.copy_(torch.linspace(-0.5, 0.5, 6))
    return sae.double()


def vectors(n: int = 50) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def reference(x: np.ndarray, D: np.ndarray, b: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and residuals, one vector and one step at a time."""
    z, rest = np.zeros((len(x), len(D))), x - b
    for i in range(len(x)):
        r = rest[i]
        for _ in range(k):
            inner = D @ r
            j = int(inner.argmax())
            if inner[j] <= 0:
                break
            z[i, j] += inner[j]
            r -= inner[j] * D[j]  # in place: `rest` holds it
    return z, rest


def test_forward_and_loss_are_the_plain_algorithm() -> None:
    sae, x = small(), vectors()
    z, rest = reference(x.numpy(), sae.W_dec.detach().numpy(), sae.b_dec.detach().numpy(), 8)
    np.testing.assert_allclose(sae.encode(x).detach().numpy(), z, atol=1e-12)
    codes = sae.codes(x)
    np.testing.assert_allclose(codes.dense().numpy(), z, atol=1e-12)
    assert codes.counts().tolist() == (z > 0).sum(0).tolist(), "a feature picked twice counts once"
    assert (z > 0).sum() < (sae.pursue(x)[1] > 0).sum(), "none was picked twice: the test is too easy"
    step = sae.loss(x, Progress(0, 10))
    assert float(step.loss.detach()) == pytest.approx((rest**2).sum() / len(x), rel=1e-12)
    np.testing.assert_allclose((x - step.x_hat.detach()).numpy(), rest, atol=1e-12)


def test_gradient_is_that_of_finite_differences() -> None:
    sae, x = small(), vectors(30)
    sae.backward(x, Progress(0, 10))
    h = 1e-6
    for parameter, places in ((sae.W_dec, [(0, 0), (3, 5), (11, 2)]), (sae.b_dec, [(0,), (4,)])):
        assert parameter.grad is not None
        for place in places:
            values = []
            for sign in (h, -h):
                with torch.no_grad():
                    parameter[place] += sign
                    values.append(float(sae.loss(x, Progress(0, 10)).loss.detach()))
                    parameter[place] -= sign
            assert float(parameter.grad[place]) == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5, abs=1e-7)


def test_a_longer_pursuit_leaves_less() -> None:
    x, rest = vectors(), []
    for k in (1, 2, 4, 8, 16):
        sae = small(k=k)
        rest.append((x - sae(x)).square().sum(1))
    for longer, shorter in zip(rest[1:], rest, strict=False):
        assert bool((longer <= shorter + 1e-12).all())


def test_both_ways_to_the_inner_products_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    sae, x = small(), vectors()
    with_gram = sae.codes(x).dense()
    monkeypatch.setattr("saev_saes.matching_pursuit.GRAM_WIDTH", 0)
    sae.share_scratch(Scratch())
    torch.testing.assert_close(sae.codes(x).dense(), with_gram, rtol=1e-12, atol=1e-12)


def test_a_vector_without_positive_products_gets_no_feature() -> None:
    sae = small()
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec.abs())
    assert int(sae.codes(sae.b_dec.detach() - torch.ones(3, 6, dtype=torch.float64)).counts().sum()) == 0


def test_bad_options_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"sae.k is 21, but there are only 20 features"):
        small(k=21)
    with pytest.raises(ConfigError, match="rows of length 1"):
        small(normalize_w_dec=False)
