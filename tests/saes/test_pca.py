"""`pca`: against numpy's SVD and scikit-learn."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA as Sklearn

from saev_core.config.base import PluginRef
from saev_core.config.stages import TrainConfig
from saev_core.errors import ConfigError
from saev_core.sae.base import make_sae
from saev_core.sae.step import Progress
from saev_core.testing import ArraySource, SAEContract
from saev_core.testing.sae_contract import planted
from saev_core.training.train import TrainSpec, train
from saev_saes.pca import PCA, PCAConfig


class TestPCA(SAEContract):
    """More planted directions than dimensions: orthogonal components cannot be they."""

    sae = PCA
    options: ClassVar = {"k": 9}
    recovers = None


def fitted(x: torch.Tensor, **options: Any) -> PCA:
    sae = PCA(PCAConfig(d_in=x.shape[1], **options))
    sae.initialise(x, torch.Generator())
    return sae


def test_reconstruction_is_that_of_the_singular_vectors() -> None:
    x = planted(3000)[0].double()
    centred = (x - x.mean(0)).numpy()
    u, s, v = np.linalg.svd(centred, full_matrices=False)
    for k in (1, 5, 20, 32):
        sae = fitted(x, k=k).double()
        # Weights are float32 whatever the sums are.
        np.testing.assert_allclose((sae(x) - x.mean(0)).numpy(), (u[:, :k] * s[:k]) @ v[:k], atol=2e-5)
        step = sae.loss(x, Progress(0, 10))
        assert float(step.loss) == pytest.approx((s[k:] ** 2).sum() / len(x), rel=1e-6, abs=1e-9)


def test_codes_are_the_positive_and_negative_halves_of_scores() -> None:
    x = planted(2000)[0]
    sae, theirs = fitted(x, k=6), Sklearn(6).fit_transform(x.numpy())
    z = sae.encode(x)
    assert bool((z >= 0).all())
    assert int((z > 0).sum(1).max()) <= 6
    np.testing.assert_allclose(np.abs((z[:, :6] - z[:, 6:]).numpy()), np.abs(theirs), atol=1e-3)


def test_training_ends_with_the_components_of_all_it_saw() -> None:
    x = planted(4000)[0]
    source = ArraySource(x)
    sae = PCA(PCAConfig(d_in=32, k=8))
    # 250 steps: neither the first sample nor the last round number of steps is all.
    (checkpoint,) = train(source, [TrainSpec("p", sae)], TrainConfig(batch_size=160, n_tokens=160 * 250, n_init=300))
    assert int(sae.count) == 300 + 160 * 250
    s = np.linalg.svd((x - x.mean(0)).double().numpy(), compute_uv=False)
    rest = (x - checkpoint.decode(checkpoint.codes(x))).double().square().sum()
    assert float(rest) == pytest.approx((s[8:] ** 2).sum(), rel=1e-3)
    assert float(rest) >= (s[8:] ** 2).sum() * (1 - 1e-6), "nothing of rank 8 is better than the SVD"


def test_width_follows_from_k() -> None:
    sae = make_sae("pca:5", 24)
    assert sae.d_sae == 10
    with pytest.raises(ConfigError, match=r"pca has 2 sae.k = 10 features, not 11"):
        make_sae(PluginRef(name="pca", options={"k": 5, "d_sae": 11}), 24)
    with pytest.raises(ConfigError, match=r"sae.k is 25, but activations of width 24"):
        make_sae("pca:25", 24)
    assert make_sae("pca", 24).d_sae == 48
    assert make_sae(PluginRef(name="pca", options={"d_sae": 6}), 24).d_sae == 6
