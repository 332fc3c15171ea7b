"""`archetypal`: Fel et al. 2025."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from saev_core.config.stages import TrainConfig
from saev_core.errors import ConfigError
from saev_core.sae.auxk import auxk_loss
from saev_core.sae.step import Progress
from saev_core.testing import ArraySource, SAEContract
from saev_core.testing.sae_contract import planted
from saev_core.training.train import TrainSpec, train
from saev_saes.archetypal import Archetypal, ArchetypalConfig, project_simplex


class TestArchetypal(SAEContract):
    sae = Archetypal
    options: ClassVar = {"d_sae": 56, "k": 4}
    planted_options: ClassVar = {"d_sae": 128, "k": 3}


class TestOfFewPoints(SAEContract):
    """Fewer centroids than features, and no way off their hull."""

    sae = Archetypal
    options: ClassVar = {"d_sae": 56, "k": 4, "n_points": 30, "delta": 0}
    recovers = None


def small(**options: Any) -> Archetypal:
    cfg = ArchetypalConfig.model_validate({"d_in": 6, "d_sae": 20, "k": 3, "n_points": 12, "delta": 0.1, **options})
    generator = torch.Generator().manual_seed(0)
    sae = Archetypal(cfg, generator)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        sae.double().after_step()
    return sae


def vectors(n: int = 50) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_forward_loss_and_gradient_are_those_of_the_definition() -> None:
    sae, x = small(), vectors()
    dead = torch.arange(20) % 3 == 0
    step = sae.backward(x, Progress(0, 10, dead))
    ours = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    assert ours.keys() == {"W_enc", "b_enc", "b_dec", "A", "R", "m"}

    free = {name: p.detach().clone().requires_grad_() for name, p in sae.named_parameters()}
    W_dec = (free["A"] @ sae.points + free["R"]) * free["m"].exp()
    f = (x @ free["W_enc"] + free["b_enc"]).relu()
    f = f * (f >= f.topk(3, dim=1).values[:, -1:])
    x_hat = f @ W_dec + free["b_dec"]
    # AuxK as tested with `topk`; here only that its gradient reaches A, R and m.
    stand = small()
    for name in ("W_enc", "b_enc"):
        delattr(stand, name)
        setattr(stand, name, free[name])
    stand.W_dec = W_dec
    aux = auxk_loss(stand, x, x - x_hat, dead, sae.k_aux)
    loss = (x - x_hat).square().sum(1).mean() + sae.cfg.auxk * 6 * aux
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(step.x_hat, x_hat.detach(), rtol=1e-10, atol=1e-12)
    for name, p in free.items():
        assert p.grad is not None
        torch.testing.assert_close(ours[name], p.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_every_row_stays_within_delta_of_the_hull_of_data() -> None:
    x = planted(3000)[0]
    source = ArraySource(x)
    sae = Archetypal(ArchetypalConfig(d_in=32, d_sae=60, k=4, n_points=40, delta=0.1))
    train(source, [TrainSpec("a", sae)], TrainConfig(batch_size=128, n_tokens=128 * 60, lr=1e-2))
    A, limit = sae.A.detach(), 0.1 * math.sqrt(32)
    assert bool((A >= 0).all())
    torch.testing.assert_close(A.sum(1), torch.ones(60), rtol=0, atol=1e-5)
    away = (sae.W_dec / sae.m.detach().exp() - A @ sae.points).norm(dim=1)
    assert float(away.max()) <= limit * 1.0001
    assert float(away.max()) > 0.5 * limit, "the relaxation is not used: the test is too easy"
    # The points themselves lie in the hull of the data: no direction reaches further than the data do.
    directions = F.normalize(torch.randn(500, 32, generator=torch.Generator().manual_seed(2)), dim=1)
    reach = ((source.norm(x) - source.norm(x).mean(0)) @ directions.T).amax(0)
    assert bool(((sae.points @ directions.T).amax(0) <= reach + 1e-3).all())


def test_the_projection_is_the_nearest_point_of_the_simplex() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 9, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, 40, dtype=torch.float64)[:, None]
    rows[0] = -1e3
    rows[1] = 0
    rows[2] = torch.eye(9, dtype=torch.float64)[4]
    ours = rows.clone()
    project_simplex(ours)
    for row, found in zip(rows.numpy(), ours.numpy(), strict=True):
        falling = np.sort(row)[::-1]
        excess = (falling.cumsum() - 1) / np.arange(1, 10)
        t = excess[np.flatnonzero(falling > excess)[-1]]
        np.testing.assert_allclose(found, np.maximum(row - t, 0), atol=1e-10)


def test_rows_start_at_centroids_and_reconstruct() -> None:
    x = ArraySource(planted(3000)[0])
    normalised = x.norm(x.x)
    sae = Archetypal(ArchetypalConfig(d_in=32, d_sae=60, k=4, n_points=40))
    sae.initialise(normalised, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sae.W_dec[:40], sae.points)
    torch.testing.assert_close(sae.A.detach().sum(1), torch.ones(60))
    error = (normalised - sae(normalised).detach()).square().sum() / normalised.square().sum()
    assert float(error) < 0.8


def test_unit_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match="are in the hull"):
        small(normalize_w_dec=True)


@pytest.mark.parametrize("option", [{"ghost": 1.0}, {"resample_every": 10}])
def test_ways_to_revive_features_outside_the_hull_are_refused(option: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="cannot revive dead features"):
        small(**option)
