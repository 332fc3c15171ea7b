"""One-to-one matching of dictionaries: exact where it can be, close to it where it cannot."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from saev_core.evaluation.match_features import match


def half_shared(n: int, d: int, *, share: float = 0.6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Two dictionaries, of which a share of rows differ by noise of every size, the rest wholly; b's order is `order`."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (F.normalize(torch.randn(n, d, generator=generator), dim=1) for _ in range(2))
    m = int(n * share)
    noise = F.normalize(torch.randn(m, d, generator=generator), dim=1) * torch.rand(m, 1, generator=generator) * 1.2
    b[:m] = F.normalize(a[:m] + noise, dim=1)
    order = torch.randperm(n, generator=generator)
    return a, b[order], order


@pytest.mark.parametrize("exact", [2048, 0])
def test_a_permutation_is_undone(exact: int) -> None:
    a = F.normalize(torch.randn(300, 24, generator=torch.Generator().manual_seed(1)), dim=1)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(2))
    partner, cosine = match(a, 3 * a[order], exact=exact)
    assert (order.numpy()[partner] == np.arange(300)).all()
    np.testing.assert_allclose(cosine, 1, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 5), m=st.integers(1, 5), seed=st.integers(0, 10_000), exact=st.sampled_from([0, 2048]))
def test_no_other_pairing_has_a_larger_sum(n: int, m: int, seed: int, exact: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (F.normalize(torch.randn(k, 3, generator=generator, dtype=torch.float64), dim=1) for k in (n, m))
    near = (a @ b.T).clamp_min(0)
    wide = F.pad(near, (0, n))  # a row may stay alone
    best = max(sum(float(wide[i, j]) for i, j in enumerate(columns)) for columns in permutations(range(m + n), n))
    partner, cosine = match(a, b, exact=exact)
    assert float(cosine.sum()) == pytest.approx(best, abs=1e-5)
    taken = partner[partner >= 0]
    assert len(set(taken)) == len(taken)
    for i, j in enumerate(partner):
        assert cosine[i] == pytest.approx(float(near[i, j]) if j >= 0 else 0.0, abs=1e-5)


def test_candidates_come_close_to_the_exact_matching() -> None:
    a, b, order = half_shared(800, 48)
    exact_partner, exact = match(a, b)
    partner, cosine = match(a, b, exact=0)
    assert exact.sum() * 0.999 <= cosine.sum() <= exact.sum() + 1e-3
    # What is truly shared is paired the same way.
    sure = exact > 0.8
    assert sure.sum() > 200
    assert (partner[sure] == exact_partner[sure]).all()
    assert (order.numpy()[partner[sure]] == np.flatnonzero(sure)).mean() > 0.99


def test_sides_of_different_size_and_empty_ones() -> None:
    a, b, _ = half_shared(60, 16)
    for exact in (0, 2048):
        partner, cosine = match(a, b[:20], exact=exact)
        assert (partner >= 0).sum() <= 20
        assert (cosine[partner < 0] == 0).all()
        assert (match(a, b[:0], exact=exact)[0] == -1).all()
        assert len(match(a[:0], b, exact=exact)[0]) == 0
    assert (match(a[:5], -a[:5])[1] >= 0).all(), "an opposite direction is no partner"
