"""Classifiers against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from saev_core.tasks.fit_probes import Scaling
from saev_tasks.classification.train import accuracy_and_loss, by_logistic


def test_logistic_regression_is_that_of_scikit_learn_on_raw_vectors() -> None:
    from sklearn.linear_model import LogisticRegression

    x = torch.randn(120, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0, 0.1, 1.0, 1.0]) + 3
    for n_classes in (2, 3):
        y = ((x[:, 0] > 3).long() + (x[:, 1] > 9).long()).clamp(max=n_classes - 1)
        scaling = Scaling.of([x])
        (one,) = by_logistic(x, y, n_classes + 1, [0.5], scaling=scaling)
        scaled = ((x - scaling.mean) * scaling.scale).float().numpy()
        model = LogisticRegression(C=0.5, max_iter=1000).fit(scaled, y.numpy())
        p = (x @ one.weight.T + one.bias).softmax(-1)
        np.testing.assert_allclose(p[:, :n_classes].numpy(), model.predict_proba(scaled), atol=2e-5)
        assert float(p[:, n_classes].max()) == 0  # no image shows it
        ((accuracy, loss),) = accuracy_and_loss([one], x, y)
        assert accuracy == pytest.approx(model.score(scaled, y.numpy()))
        assert loss == pytest.approx(float(-p.gather(1, y[:, None]).log().mean()), rel=1e-4)


def test_what_does_not_converge_is_told() -> None:
    x, y = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    assert [one.converged for one in by_logistic(x, y, 2, [1e-2], scaling=Scaling.of([x]))] == [True]
