"""Samples of the images that fire a feature, and how alike those are: against plain float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saev_core.features.accumulate import FeatureAccumulator, concentrated
from saev_core.features.monosemanticity import Monosemanticity
from saev_core.features.random_images import N_COACTIVE, hash_pair
from saev_core.sae.codes import Codes

N, T, D = 300, 6, 30


def activations(seed: int = 0, n: int = N) -> np.ndarray:
    """Sparse values `[n, T, D]`; feature 0 never fires, feature 1 fires everywhere, feature 2 on few images."""
    rng = np.random.default_rng(seed)
    z = rng.gamma(2.0, 1.0, (n, T, D)) * (rng.random((n, T, D)) < 0.1)
    z[:, :, 0] = 0
    z[:, :, 1] = 0.5 + rng.random((n, T))
    z[5:, :, 2] = 0
    return np.asarray(z.astype(np.float32))


def accumulate(z: np.ndarray, batch: int, n_samples: int) -> FeatureAccumulator:
    found = FeatureAccumulator(z.shape[2], z.shape[1], 4, n_samples=n_samples)
    for a in range(0, len(z), batch):
        part = torch.from_numpy(z[a : a + batch])
        found.add(np.arange(a, a + len(part)), Codes.from_dense(part.reshape(-1, z.shape[2])))
    found.samples.merge()
    return found


@pytest.mark.parametrize("batch", [1, 7, 64, N])
def test_the_smallest_draws_of_all_that_fire_stay_whatever_the_batches(batch: int) -> None:
    z = activations()
    samples = accumulate(z, batch, 12).samples
    for feature in range(D):
        fires = np.flatnonzero(z[:, :, feature].max(1) > 0)
        key = hash_pair(fires, np.full(len(fires), feature))
        want = fires[np.argsort(key, kind="stable")][:12]
        got = samples.image[feature]
        assert got[: len(want)].tolist() == want.tolist()
        assert (got[len(want) :] == -1).all()
        for place, image in enumerate(want):
            patch = int(z[image, :, feature].argmax())
            assert samples.token[feature, place] == patch
            assert samples.value[feature, place] == z[image, patch, feature]
            others = sorted((-z[image, patch, f], f) for f in np.flatnonzero(z[image, patch]) if f != feature)[:N_COACTIVE]
            assert samples.coactive[feature, place].tolist() == [f for _, f in others] + [-1] * (N_COACTIVE - len(others))


def test_draws_are_even() -> None:
    """Of 2,000 images, each tenth of the numbers holds a tenth of the sample."""
    z = np.ones((2000, 1, 40), np.float32)
    image = accumulate(z, 256, 50).samples.image
    counts, _ = np.histogram(image, 10, (0, 2000))
    assert counts.sum() == 2000
    assert abs(counts - 200).max() < 60  # four standard deviations


def test_none_asked_for_costs_nothing() -> None:
    assert accumulate(activations(), 32, 0).samples.image.shape == (D, 0)


def reference(a: np.ndarray, e: np.ndarray) -> float:
    """The definition: a double sum over pairs, in float64."""
    a = (a - a.min()) / (a.max() - a.min())
    e = e / np.linalg.norm(e, axis=1, keepdims=True)
    above = below = 0.0
    for i in range(len(a)):
        for j in range(i):
            above += a[i] * a[j] * float(e[i] @ e[j])
            below += a[i] * a[j]
    return above / below


def test_monosemanticity_is_the_double_sum_over_pairs() -> None:
    rng = np.random.default_rng(1)
    peak = activations(n=60).max(1)
    peak[:, 3] = rng.random(60) + 2.0  # fires on all, far from zero: the shift matters
    e = rng.standard_normal((60, 5)).astype(np.float32) + peak[:, 4:5]
    found = Monosemanticity(D, 5)
    for a in range(0, 60, 16):
        found.add(peak[a : a + 16], e[a : a + 16])
    got = found.result()
    assert np.isnan(got[0])
    for feature in range(1, D):
        if (peak[:, feature] > peak[:, feature].min()).sum() > 1:
            assert got[feature] == pytest.approx(reference(peak[:, feature].astype(np.float64), e.astype(np.float64)), abs=2e-5)


def test_alike_images_give_one_and_a_single_image_nothing() -> None:
    peak = np.zeros((10, 2), np.float32)
    peak[:4, 0] = [1, 2, 3, 4]
    peak[7, 1] = 1
    e = np.tile(np.eye(1, 3, dtype=np.float32), (10, 1))
    e[4:] = np.eye(3, dtype=np.float32)[1]
    found = Monosemanticity(2, 3)
    found.add(peak, e)
    got = found.result()
    assert got[0] == pytest.approx(1, abs=1e-6)
    assert np.isnan(got[1])


def test_concentration_tells_one_patch_from_all() -> None:
    maps = np.zeros((3, 2, 16), np.float16)
    maps[0, :, 5] = 2  # one patch of sixteen
    maps[1] = 1  # all alike
    got = concentrated(maps)
    assert got[0] == pytest.approx(1 - 1 / 16)
    assert got[1] == pytest.approx(0)
    assert np.isnan(got[2])
    assert np.isnan(concentrated(maps[:, :, :1])).all()
