"""Confidence intervals."""

from __future__ import annotations

import numpy as np
import pytest

from saev_tasks.shared.intervals import interval, wilson


def test_an_interval_holds_the_value_and_shrinks_with_more_images() -> None:
    rng = np.random.RandomState(0)

    def width(n: int) -> float:
        low, high = interval(np.stack([rng.binomial(50, 0.3, n), np.full(n, 50)], 1), lambda sums: sums[..., 0] / sums[..., 1])
        assert low < 0.3 < high
        return float(high - low)

    # 1.96 standard errors to either side, by the binomial law.
    assert width(400) == pytest.approx(2 * 1.96 * (0.21 / 50 / 400) ** 0.5, rel=0.15)
    assert width(50) > 2 * width(400)


@pytest.mark.parametrize(("hits", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)])
def test_wilson_is_as_published(hits: int, n: int, low: float, high: float) -> None:
    """The third: Newcombe 1998, Two-sided confidence intervals for the single proportion, table I."""
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
