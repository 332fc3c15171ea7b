"""`crosscoder`: Lindsey et al. 2024; chosen by weighted value as Minder et al. 2025."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from saev_core.config.stages import TrainConfig
from saev_core.errors import ConfigError
from saev_core.sae.step import Progress
from saev_core.testing import ArraySource, SAEContract
from saev_core.testing.sae_contract import recovery
from saev_core.training.train import TrainSpec, train
from saev_saes.crosscoder import Crosscoder, CrosscoderConfig


def planted_sites(n: int, *, d: int = 32, n_true: int = 64, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Joined vectors of two sites and their true directions over both: the first eighth is the first site's alone, the next
    the second's, all others are as long at both."""
    generator = torch.Generator().manual_seed(seed)
    parts = F.normalize(torch.randn(n_true, 2, d, generator=generator), dim=2)
    parts[: n_true // 8, 1] = 0
    parts[n_true // 8 : n_true // 4, 0] = 0
    directions = F.normalize(parts.flatten(1), dim=1)
    z = (torch.rand(n, n_true, generator=generator) < 3 / n_true) * (0.5 + torch.rand(n, n_true, generator=generator))
    x = z @ directions + 0.01 * torch.randn(n, 2 * d, generator=generator)
    return 3 * x + torch.randn(2 * d, generator=generator), directions


class TestCrosscoder(SAEContract):
    sae = Crosscoder
    options: ClassVar = {"d_sae": 56, "k": 4, "n_sites": 2}
    planted_options: ClassVar = {"d_sae": 128, "k": 4, "n_sites": 2}

    def problem(self) -> tuple[torch.Tensor, torch.Tensor]:
        return planted_sites(20_000)


class TestUnderL1(TestCrosscoder):
    options: ClassVar = {"d_sae": 56, "n_sites": 3, "activation": "relu", "sparsity_coeff": 0.05}
    planted_options: ClassVar = {"d_sae": 128, "n_sites": 2, "activation": "relu", "sparsity_coeff": 0.2}


def small(**options: Any) -> Crosscoder:
    cfg = CrosscoderConfig.model_validate({"d_in": 12, "n_sites": 3, "d_sae": 20, "k": 3, **options})
    generator = torch.Generator().manual_seed(0)
    sae = Crosscoder(cfg, generator)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return sae.double()


@pytest.mark.parametrize("activation", ["topk", "relu"])
@pytest.mark.parametrize("lower", [0.0, 2.5])
def test_forward_loss_and_gradient_are_those_of_the_papers(activation: str, lower: float) -> None:
    sae = small(activation=activation, sparsity_coeff=0.3, n_sparsity_warmup=0)
    with torch.no_grad():
        sae.b_enc.sub_(lower)  # sparse enough for the lean step
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dead = torch.arange(20) % 3 == 0
    step = sae.backward(x, Progress(0, 10, dead))
    free = {name: p.detach().clone().requires_grad_() for name, p in sae.named_parameters()}
    h = (x @ free["W_enc"] + free["b_enc"]).relu()
    weight = sum(free["W_dec"][:, 4 * s : 4 * s + 4].square().sum(1).sqrt() for s in range(3))
    assert isinstance(weight, torch.Tensor)
    v = h * weight
    f = h if activation == "relu" else h * (v >= v.topk(3, dim=1).values[:, -1:])
    x_hat = f @ free["W_dec"] + free["b_dec"]
    e = (x - x_hat).detach()
    ghosts = h * dead
    ghosts = ghosts * (ghosts >= ghosts.topk(6, dim=1).values[:, -1:])  # k_aux: half of 12
    aux = (e - ghosts @ free["W_dec"]).square().sum() / (e - e.mean(0)).square().sum()
    loss = (x - x_hat).square().sum(1).mean() + 12 / 32 * aux
    if activation == "relu":
        loss = loss + 0.3 * math.sqrt(12) * (f * weight).sum(1).mean()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(step.x_hat, x_hat.detach(), rtol=1e-10, atol=1e-12)
    for name, p in free.items():
        mine = sae.get_parameter(name).grad
        assert mine is not None
        assert p.grad is not None
        torch.testing.assert_close(mine, p.grad, rtol=1e-9, atol=1e-12, msg=name)


def test_choice_goes_by_what_a_feature_writes_at_all_sites() -> None:
    sae = small(d_sae=2, k=1).float()
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.b_enc.copy_(torch.tensor([1.1, 1.0]))
        sae.W_dec.zero_()
        sae.W_dec[0, 0] = 1.0  # one site's own: weight 1
        sae.W_dec[1, ::4] = 3**-0.5  # all three sites': weight sqrt 3
    dense = sae.encode(torch.zeros(2, 12)).detach()
    torch.testing.assert_close(dense, torch.tensor([[0.0, 1.0]] * 2))
    torch.testing.assert_close(sae.codes(torch.zeros(2, 12)).dense(), dense)


def trained(**options: Any) -> tuple[Crosscoder, torch.Tensor]:
    x, directions = planted_sites(20_000)
    kind = CrosscoderConfig.model_validate({"d_in": 64, "n_sites": 2, "d_sae": 128, "k": 3, **options})
    sae = Crosscoder(kind, torch.Generator().manual_seed(0))
    cfg = TrainConfig(batch_size=256, n_tokens=256 * 1000, lr=3e-3)
    (checkpoint,) = train(ArraySource(x, n_sites=2), [TrainSpec("mine", sae)], cfg)
    assert isinstance(checkpoint.sae, Crosscoder)
    return checkpoint.sae, directions


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"activation": "relu", "sparsity_coeff": 0.2}])
def test_what_is_one_sites_own_is_told_from_what_is_shared(options: dict[str, Any]) -> None:
    sae, directions = trained(**options)
    assert recovery(sae, directions) > 0.9
    split = sae.by_site()
    assert split.W_dec.shape == (2, 128, 32)
    torch.testing.assert_close(split.share.sum(0), torch.ones(128))
    best = (directions @ F.normalize(sae.W_dec.detach(), dim=1).T).argmax(1)
    share = split.share[:, best]
    assert float(share[0, :8].mean()) > 0.9
    assert float(share[1, 8:16].mean()) > 0.9
    assert float((share[0, 16:] - 0.5).abs().mean()) < 0.1
    assert float(split.exclusive[0, best[:8]].double().mean()) > 0.7
    assert float(split.shared[best[16:]].double().mean()) > 0.5
    facts = sae.facts()
    assert facts["exclusive"] == [pytest.approx(float(own.double().mean())) for own in split.exclusive]
    assert facts["shared"] == pytest.approx(float(split.shared.double().mean()))


def test_rows_have_length_one_over_all_sites_together() -> None:
    sae, x = small().float(), torch.randn(64, 12)
    sae.after_step()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(20))
    weight = sae.lengths().sum(1)
    assert bool(((weight >= 1 - 1e-5) & (weight <= 3**0.5 + 1e-5)).all())
    assert sae(x).shape == x.shape


def test_one_site_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"read.layer names one; give two or more recorded blocks, such as --layer 6,10"):
        small(n_sites=1)
