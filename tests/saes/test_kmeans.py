"""`kmeans`: Sculley 2010 after Lloyd's algorithm."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as Sklearn

from saev_core.config.stages import TrainConfig
from saev_core.errors import ConfigError
from saev_core.sae.step import Progress
from saev_core.testing import ArraySource, SAEContract
from saev_core.training.train import TrainSpec, train
from saev_saes.kmeans import KMeans, KMeansConfig, centroids, nearest


class TestKMeans(SAEContract):
    """Also finds the planted dictionary: some vectors hold one direction alone, and twice as many centroids as directions find them."""

    sae = KMeans
    options: ClassVar = {"d_sae": 56}
    steps = 100


def small(d_sae: int = 20, **options: Any) -> KMeans:
    sae = KMeans(KMeansConfig(d_in=6, d_sae=d_sae, **options), torch.Generator().manual_seed(0)).double()
    sae.b_dec.copy_(torch.linspace(-0.5, 0.5, 6))
    return sae


def vectors(n: int = 200, d: int = 6) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def clusters(n: int = 4000, m: int = 12, d: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    centres = 4 * torch.randn(m, d, generator=generator)
    return centres[torch.randint(m, (n,), generator=generator)] + 0.1 * torch.randn(n, d, generator=generator), centres


def test_forward_and_loss_are_those_of_the_nearest_centroid() -> None:
    sae, x = small(), vectors()
    points = (sae.W_dec + sae.b_dec).numpy()
    distance = ((x.numpy()[:, None] - points) ** 2).sum(2)
    z = sae.encode(x)
    assert z.argmax(1).tolist() == distance.argmin(1).tolist()
    assert z.sum(1).tolist() == [1] * len(x)
    np.testing.assert_allclose(sae(x).numpy(), points[distance.argmin(1)], atol=1e-12)
    step = sae.loss(x, Progress(0, 10))
    assert float(step.loss) == pytest.approx(distance.min(1).mean(), rel=1e-12)
    np.testing.assert_allclose(nearest(x - sae.b_dec, sae.W_dec)[1].numpy(), distance.min(1), atol=1e-10)


def test_a_batch_moves_every_centroid_to_the_mean_of_all_that_came_to_it() -> None:
    sae, x = small(d_sae=3), vectors()
    before, where = sae.W_dec.clone(), sae.encode(x).argmax(1)
    sae.seen.fill_(7)
    sae.backward(x, Progress(0, 10))
    assert torch.equal(sae.W_dec, before), "nothing is learnt before after_step"
    sae.after_step()
    for j in range(3):
        mine = x[where == j] - sae.b_dec
        torch.testing.assert_close(sae.W_dec[j], (7 * before[j] + mine.sum(0)) / (7 + len(mine)))
        assert float(sae.seen[j]) == 7 + len(mine)


def test_true_clusters_are_found() -> None:
    x, centres = clusters()
    sae = KMeans(KMeansConfig(d_in=8, d_sae=12), torch.Generator().manual_seed(0))
    source = ArraySource(x)
    (checkpoint,) = train(source, [TrainSpec("k", sae)], TrainConfig(batch_size=200, n_tokens=6000))
    found = source.norm.inverse(sae.W_dec + sae.b_dec)
    assert float(torch.cdist(centres, found).min(1).values.max()) < 0.1
    codes = checkpoint.codes(x)
    assert codes.counts().min() > 0
    assert len(codes.feature) == len(x)


def test_inertia_is_that_of_scikit_learn() -> None:
    x = vectors(600, 6).float()
    rows, count = centroids(x, 20, torch.Generator().manual_seed(0), n_iter=50)
    theirs = Sklearn(20, n_init=3, random_state=0).fit(x.numpy()).inertia_
    assert float(nearest(x, rows)[1].sum()) < 1.03 * theirs
    assert float(count.sum()) == 600


def test_fewer_vectors_than_centroids_still_fit() -> None:
    sae, x = small(d_sae=20), vectors(5)
    sae.initialise(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sae(x), x)


def test_rows_of_length_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="rows of k-means are centroids"):
        small(normalize_w_dec=True)
