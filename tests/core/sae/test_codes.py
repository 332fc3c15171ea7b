"""`Codes`: the sparse form says what the dense form says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saev_core.errors import ShapeError
from saev_core.sae.codes import Codes


def dense(n: int, m: int, density: float, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, m, generator=generator) * (torch.rand(n, m, generator=generator) < density)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 9), m=st.integers(1, 30), density=st.floats(0, 1), seed=st.integers(0, 99))
def test_dense_to_codes_and_back(n: int, m: int, density: float, seed: int) -> None:
    z = dense(n, m, density, seed)
    codes = Codes.from_dense(z)
    assert len(codes) == n
    assert torch.equal(codes.dense(), z)
    assert torch.equal(codes.counts(), (z > 0).sum(0))
    assert torch.equal(codes.rows, z.nonzero()[:, 0])


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 9), m=st.integers(1, 30), seed=st.integers(0, 99), data=st.data())
def test_a_slice_is_those_rows(n: int, m: int, seed: int, data: st.DataObject) -> None:
    z = dense(n, m, 0.3, seed)
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    assert torch.equal(Codes.from_dense(z).slice(start, stop).dense(), z[start:stop])


def test_decoding_equals_the_matrix_product() -> None:
    z, W, b = dense(20, 30, 0.2, 0).double(), torch.randn(30, 7, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    torch.testing.assert_close(Codes.from_dense(z).decode(W, b), z @ W + b)


def test_entries_of_value_zero_are_not_active() -> None:
    codes = Codes.from_topk(torch.tensor([[0, 2], [2, 1]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 3)
    assert codes.counts().tolist() == [1, 0, 0]


def test_codes_of_a_vector_alone_are_refused() -> None:
    with pytest.raises(ShapeError, match="codes must be"):
        Codes.from_dense(torch.zeros(5))
