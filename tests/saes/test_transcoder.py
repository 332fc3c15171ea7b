"""`transcoder`: Dunefsky et al. 2024, with the skip connection of Paulo et al. 2025."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from saev_core.config.stages import TrainConfig
from saev_core.errors import ConfigError, TrainError
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.norm import Norm
from saev_core.sae.step import Progress
from saev_core.testing import ArraySource, SAEContract
from saev_core.testing.sae_contract import recovery
from saev_core.training.train import TrainSpec, train
from saev_saes.transcoder import Transcoder, TranscoderConfig


def two_sites(n: int, *, linear: float = 0.0, d: int = 32, n_true: int = 64, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Vectors of two sites that share few active directions, those of each drawn by itself: (joined, of the one, of the other).

    Args:
        linear: how much of the later site is a linear map of other dimensions of the earlier one.
    """
    generator = torch.Generator().manual_seed(seed)
    one, other = (F.normalize(torch.randn(n_true, d, generator=generator), dim=1) for _ in range(2))
    z = (torch.rand(n, n_true, generator=generator) < 3 / n_true) * (0.5 + torch.rand(n, n_true, generator=generator))
    noise = torch.randn(2, n, d, generator=generator)
    early, late = z @ one + 0.01 * noise[0], z @ other + 0.01 * noise[1]
    if linear:
        spread = torch.randn(n, d, generator=generator)
        early = early + linear * spread
        late = late + linear * early @ (torch.randn(d, d, generator=generator) / d**0.5)
    shift = torch.randn(2 * d, generator=generator)
    return torch.cat([3 * early, 20 * late], 1) + shift, one, other


class TestTranscoder(SAEContract):
    sae = Transcoder
    options: ClassVar = {"d_sae": 56, "k": 4, "n_sites": 2}
    planted_options: ClassVar = {"d_sae": 128, "k": 3, "n_sites": 2}

    def problem(self) -> tuple[torch.Tensor, torch.Tensor]:
        x, _, other = two_sites(20_000)
        return x, other


class TestWithASkipConnection(TestTranscoder):
    options: ClassVar = {"d_sae": 56, "k": 4, "n_sites": 2, "skip": True}
    recovers = None


def small(**options: Any) -> Transcoder:
    cfg = TranscoderConfig.model_validate({"d_in": 12, "n_sites": 2, "d_sae": 20, "k": 3, **options})
    generator = torch.Generator().manual_seed(0)
    sae = Transcoder(cfg, generator)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return sae.double()


def test_its_skip_connection_has_no_features_though_it_may_be_as_long() -> None:
    assert small(skip=True, d_sae=6).feature_axes() == {"W_enc": 1, "b_enc": 0, "W_dec": 0, "b_dec": None, "W_skip": None}
    assert "W_skip" not in small(d_sae=6).feature_axes()


@pytest.mark.parametrize("skip", [False, True])
def test_forward_loss_and_gradient_are_those_of_the_papers(skip: bool) -> None:
    sae = small(skip=skip)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dead = torch.arange(20) % 3 == 0
    step = sae.backward(x, Progress(0, 10, dead))
    free = {name: p.detach().clone().requires_grad_() for name, p in sae.named_parameters()}
    x_in, y = x[:, :6], x[:, 6:]
    h = (x_in @ free["W_enc"] + free["b_enc"]).relu()
    f = h * (h >= h.topk(3, dim=1).values[:, -1:])
    y_hat = f @ free["W_dec"] + free["b_dec"]
    if skip:
        y_hat = y_hat + x_in @ free["W_skip"]
    e = (y - y_hat).detach()
    ghosts = h * dead
    ghosts = ghosts * (ghosts >= ghosts.topk(3, dim=1).values[:, -1:])  # k_aux: half of 6
    aux = (e - ghosts @ free["W_dec"]).square().sum() / (e - e.mean(0)).square().sum()
    loss = (y - y_hat).square().sum(1).mean() + 6 / 32 * aux
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(step.x_hat, y_hat.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(sae(x).detach(), y_hat.detach(), rtol=1e-10, atol=1e-12)
    assert ("W_skip" in free) == skip
    for name, p in free.items():
        mine = sae.get_parameter(name).grad
        assert mine is not None
        assert p.grad is not None
        torch.testing.assert_close(mine, p.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.slow
def test_encoder_columns_find_the_earlier_sites_directions_of_the_same_features() -> None:
    x, one, other = two_sites(20_000)
    sae = Transcoder(TranscoderConfig(d_in=64, n_sites=2, d_sae=128, k=3), torch.Generator().manual_seed(0))
    source = ArraySource(x, n_sites=2)
    cfg = TrainConfig(batch_size=256, n_tokens=256 * 1000, lr=3e-3)
    (checkpoint,) = train(source, [TrainSpec("mine", sae)], cfg)
    assert recovery(checkpoint.sae, other) > 0.9
    rows = F.normalize(checkpoint.sae.W_dec.detach(), dim=1)
    best = (other @ rows.T).argmax(1)
    columns = F.normalize(checkpoint.sae.W_enc.detach().T, dim=1)
    seen = (columns[best] @ one.T).argmax(1)
    assert float((seen == torch.arange(64)).double().mean()) > 0.95
    y_hat = checkpoint.reconstruct(x)
    target = x[:, 32:]
    assert float((target - y_hat).square().sum() / (target - target.mean(0)).square().sum()) < 0.25
    torch.testing.assert_close(checkpoint.decode(checkpoint.codes(x)), y_hat)


@pytest.mark.slow
def test_the_skip_connection_takes_what_is_linear() -> None:
    x, _, _ = two_sites(8000, linear=1.0)
    cfg = TrainConfig(batch_size=256, n_tokens=256 * 300, lr=2e-3)
    source = ArraySource(x, n_sites=2)

    def error(skip: bool) -> float:
        sae = Transcoder(TranscoderConfig(d_in=64, n_sites=2, d_sae=96, k=3, skip=skip), torch.Generator().manual_seed(0))
        (checkpoint,) = train(source, [TrainSpec("mine", sae)], cfg)
        target = x[:, 32:]
        return float((target - checkpoint.reconstruct(x)).square().sum() / (target - target.mean(0)).square().sum())

    assert error(True) < 0.5 * error(False)


@pytest.mark.parametrize("skip", [False, True])
def test_it_begins_no_worse_than_the_mean(skip: bool) -> None:
    x = ArraySource(two_sites(4000, linear=0.5)[0], n_sites=2)
    sae = Transcoder(TranscoderConfig(d_in=64, n_sites=2, d_sae=96, k=3, skip=skip))
    normalised = x.norm(x.x)
    sae.initialise(normalised, torch.Generator().manual_seed(0))
    target = normalised[:, 32:]
    assert float((target - sae(normalised).detach()).square().sum() / target.square().sum()) < 1.0


def test_dead_features_start_anew_from_pairs_of_input_and_target() -> None:
    sae = small(resample_every=1)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    dead = torch.arange(20) == 7
    step = sae.backward(x, Progress(0, 10, dead, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        sae.b_enc[7] = -100.0
    step = sae.backward(x, Progress(0, 10, dead, torch.Generator().manual_seed(0)))
    anew = sae.resample(x, step, Progress(0, 10, dead, torch.Generator().manual_seed(0)))
    assert anew is not None
    assert anew.tolist() == [7]
    cosines = F.normalize(x[:, :6], dim=1) @ F.normalize(sae.W_enc.detach()[:, 7], dim=0)
    chosen = int(cosines.argmax())
    assert float(cosines[chosen]) == pytest.approx(1.0)
    torch.testing.assert_close(sae.W_dec.detach()[7], F.normalize(x[chosen, 6:] - sae.b_dec.detach(), dim=0))


def test_ghost_gradients_reach_the_encoder_of_the_earlier_site() -> None:
    sae = small(ghost=1.0, auxk=0)
    x = torch.randn(50, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        sae.b_enc[7] = -100.0
    progress = Progress(0, 10, torch.arange(20) == 7)
    sae.revive(x, sae.backward(x, progress), progress)
    assert sae.W_enc.grad is not None
    assert float(sae.W_enc.grad[:, 7].abs().max()) > 0


@pytest.mark.parametrize("n_sites", [1, 3])
def test_other_than_two_sites_are_refused_in_one_line(n_sites: int) -> None:
    with pytest.raises(ConfigError, match=r"names \d; give two recorded blocks, such as --layer 6,10"):
        small(n_sites=n_sites)


def test_a_source_that_joins_nothing_is_refused() -> None:
    with pytest.raises(TrainError, match="takes 2 joined sites, the source has 1"):
        train(ArraySource(torch.randn(300, 12)), [TrainSpec("mine", small().float())], TrainConfig(batch_size=64, n_tokens=640))


def test_raw_predictions_are_in_the_later_sites_units() -> None:
    x = torch.cat([torch.randn(40, 6), 100 * torch.randn(40, 6) + 1000], 1)
    norm = Norm.of(x, 2)
    assert isinstance(norm.scale, tuple)
    sae = small().float()
    checkpoint = Checkpoint(sae, norm, {"name": "transcoder", "dist": "", "version": ""}, "resid.1+3")
    wanted = sae(norm(x)).detach() / norm.scale[1] + x[:, 6:].mean(0)
    torch.testing.assert_close(checkpoint.reconstruct(x), wanted)
