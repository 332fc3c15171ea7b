"""`Norm`: mean 0, mean squared length d, and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saev_core.errors import StoreError
from saev_core.sae.norm import Norm


def of(x: torch.Tensor) -> Norm:
    x = x.double()
    return Norm.from_moments(len(x), x.sum(0), float(x.square().sum()))


@settings(max_examples=40, deadline=None)
@given(d=st.integers(1, 20), scale=st.floats(1e-3, 1e3), shift=st.floats(-50, 50), seed=st.integers(0, 99))
def test_mean_becomes_zero_and_mean_squared_length_d(d: int, scale: float, shift: float, seed: int) -> None:
    x = (torch.randn(200, d, generator=torch.Generator().manual_seed(seed)) + shift) * scale
    y = of(x)(x).double()
    assert float(y.mean(0).abs().max()) < 1e-3
    # The SQUARED length: the plain mean length would be smaller than sqrt(d).
    assert float(y.square().sum(1).mean()) == pytest.approx(d, rel=1e-3)
    torch.testing.assert_close(of(x).inverse(of(x)(x)), x, rtol=1e-4, atol=1e-4 * scale * (1 + abs(shift)))


def test_moments_equal_those_of_the_whole() -> None:
    x = torch.randn(1000, 5, dtype=torch.float64) * 3 + 7
    norm = of(x)
    torch.testing.assert_close(norm.mean, x.mean(0).float())
    assert norm.scale == pytest.approx((5 / (x - x.mean(0)).square().sum(1).mean().item()) ** 0.5)


def test_identity_changes_nothing() -> None:
    x = torch.randn(4, 3)
    assert torch.equal(Norm.identity(3)(x), x)


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (torch.zeros(0, 4), "contains no vectors"),
        (torch.full((9, 4), 2.5), "are equal"),
        (torch.full((9, 4), float("nan")), "not finite"),
        (torch.full((9, 4), float("inf")), "not finite"),
    ],
)
def test_what_cannot_be_normalised_is_refused_in_one_line(x: torch.Tensor, said: str) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        of(x)
    assert "\n" not in str(caught.value)
