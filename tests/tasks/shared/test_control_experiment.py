"""The baselines of control experiments."""

from __future__ import annotations

import numpy as np

from saev_tasks.shared.control_experiment import matched


def test_random_features_match_in_frequency() -> None:
    frequency = np.geomspace(1e-4, 1, 400)
    chosen = matched(frequency, [50, 300], [51, 301], np.random.RandomState(0))
    assert len(set(chosen)) == 2
    assert not set(chosen) & {50, 51, 300, 301}
    assert all(abs(one - f) < 25 for one, f in zip(chosen, [50, 300], strict=True))


def test_random_features_are_of_about_the_same_frequency() -> None:
    frequency = np.concatenate([np.full(30, 0.5), np.full(30, 0.01), np.zeros(10)])
    found = matched(frequency, [0, 40], [1, 41], np.random.RandomState(0))
    assert frequency[found].tolist() == [0.5, 0.01]
    assert not set(found) & {0, 1, 40, 41}
