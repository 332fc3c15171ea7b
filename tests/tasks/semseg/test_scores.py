"""Segmentation scores against a plain count in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saev_core.types import Grid
from saev_tasks.semseg.scores import Counts, majority, predict
from saev_tasks.shared.patch_vectors import Classes


def plain_iou(predicted: np.ndarray, truth: np.ndarray, n_classes: int, ignored: set[int]) -> dict[int, float]:
    """By sets of pixels, in float64, without ignored ones."""
    counts = ~np.isin(truth, list(ignored)) & (truth < n_classes)
    out: dict[int, float] = {}
    for c in set(range(n_classes)) - ignored:
        p, t = set(np.flatnonzero((predicted == c) & counts)), set(np.flatnonzero((truth == c) & counts))
        if p | t:
            out[c] = len(p & t) / len(p | t)
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sets(st.integers(0, 4), max_size=3), st.integers(1, 4))
def test_iou_is_that_of_a_plain_count_with_ignored_classes_left_out(seed: int, ignored: set[int], n: int) -> None:
    rng, classes = np.random.RandomState(seed), Classes(list("abcde"), frozenset(ignored))
    grid = Grid(2, 3, 2)
    logits = torch.from_numpy(rng.standard_normal((n, 6, 5)))
    said = predict(logits, grid, classes).numpy()
    raw = rng.choice([0, 1, 2, 3, 4, 255], (n, 4, 6)).astype(np.uint16)
    truth = np.where(np.isin(raw, list(ignored)) | (raw == 255), 65535, raw)
    counts = Counts.of(said, truth, 5)
    want = plain_iou(said.reshape(-1), raw.reshape(-1), 5, ignored)
    have = {c: v for c, v in enumerate(counts.iou) if np.isfinite(v)}
    assert have == pytest.approx(want, abs=1e-12)
    assert not np.isin(said, list(ignored)).any()
    if want:
        assert counts.miou == pytest.approx(float(np.mean(list(want.values()))), abs=1e-12)
        inside = truth < 5
        assert counts.accuracy == pytest.approx(float((said[inside] == truth[inside]).mean()), abs=1e-12)


def test_an_ignored_class_is_no_false_positive() -> None:
    # The argmax is 0 everywhere; 0 is ignored, and the second largest logit is correct.
    logits = torch.tensor([9.0, 5.0, 1.0]).expand(1, 4, 3)
    said = predict(logits, Grid(2, 2, 2), Classes(list("abc"), frozenset({0}))).numpy()
    truth = np.full((1, 4, 4), 1, np.uint16)
    truth[0, 0] = 65535
    counts = Counts.of(said, truth, 3)
    assert (said == 1).all()
    assert counts.miou == counts.accuracy == counts.iou[1] == 1
    assert np.isnan(counts.iou[[0, 2]]).all()


def test_a_class_that_is_nowhere_has_no_iou_and_one_that_is_only_predicted_has_none_of_it() -> None:
    counts = Counts.of(np.array([[1, 1, 0]]), np.array([[1, 1, 1]]), 3)
    assert counts.iou[:2].tolist() == [0, pytest.approx(2 / 3)]
    assert np.isnan(counts.iou[2])
    assert counts.miou == pytest.approx(1 / 3)
    assert np.isnan(counts.class_accuracy[0])


def test_the_majority_oracle_is_right_where_patches_are_whole() -> None:
    shares = np.eye(3, dtype=np.float32)[np.array([[0, 1], [2, 0]])]
    assert (majority(shares).argmax(-1) == [[0, 1], [2, 0]]).all()
