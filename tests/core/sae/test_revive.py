"""Ghost gradients and resampling: what they compute, and that they bring dead features back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from saev_core.config.stages import TrainConfig
from saev_core.errors import ConfigError
from saev_core.sae.base import SAE
from saev_core.sae.relu import ReLU, ReLUConfig
from saev_core.sae.revive import ghost_backward, ghost_loss, resample
from saev_core.sae.step import Progress
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.testing import ArraySource
from saev_core.testing.sae_contract import planted
from saev_core.training.optim import Adam
from saev_core.training.train import TrainSpec, train


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small(**options: Any) -> ReLU:
    sae = ReLU(ReLUConfig.model_validate({"d_in": 6, "d_sae": 20, **options}), torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        sae.b_dec.copy_(torch.linspace(-0.5, 0.5, 6))
        sae.b_enc.copy_(torch.linspace(-1, 1, 20))
    return sae


def vectors(n: int = 50) -> torch.Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


DEAD = torch.arange(20) % 3 == 0


def test_ghost_loss_is_the_published_formula() -> None:
    sae, x = small(), vectors()
    error = (x - sae(x)).detach()
    W_enc, b_enc, W_dec = (w.detach().clone().requires_grad_() for w in (sae.W_enc[:, DEAD], sae.b_enc[DEAD], sae.W_dec[DEAD]))
    ghost_loss(x, error, W_enc, b_enc, W_dec).backward()  # type: ignore[no-untyped-call]
    ours = [w.grad.clone() for w in (W_enc, b_enc, W_dec) if w.grad is not None]

    for w in (W_enc, b_enc, W_dec):
        w.grad = None
    ghost = torch.exp(x @ W_enc + b_enc) @ W_dec
    ghost = ghost * (error.norm(dim=1) / (2 * ghost.norm(dim=1))).detach()[:, None]
    loss = (error - ghost).square().sum(1).mean()
    loss = loss * (error.square().sum(1).mean() / loss.detach())
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(error.square().sum(1).mean()), rel=1e-12)
    for mine, w in zip(ours, (W_enc, b_enc, W_dec), strict=True):
        assert w.grad is not None
        torch.testing.assert_close(mine, w.grad, rtol=1e-9, atol=1e-12)


def test_ghost_gradients_reach_dead_features_alone_and_add_to_what_is_there() -> None:
    sae, x = small(ghost=2.0), vectors()
    progress = Progress(5, 100, DEAD)
    step = sae.backward(x, progress)
    before = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    sae.revive(x, step, progress)
    added = {name: p.grad - before[name] for name, p in sae.named_parameters() if p.grad is not None}
    assert not bool(added["b_dec"].any())
    for name, axis in (("W_enc", 1), ("b_enc", 0), ("W_dec", 0)):
        assert not bool(added[name].index_select(axis, (~DEAD).nonzero().view(-1)).any()), name
        assert bool(added[name].index_select(axis, DEAD.nonzero().view(-1)).any()), name
    sae.cfg = sae.cfg.model_copy(update={"ghost": 1.0})
    sae.zero_grad()
    ghost_backward(sae, x, x - step.x_hat, DEAD)
    assert sae.W_dec.grad is not None
    torch.testing.assert_close(2 * sae.W_dec.grad, added["W_dec"], rtol=1e-9, atol=1e-12)


def test_large_pre_activations_do_not_overflow() -> None:
    sae, x = small(ghost=1.0), 1000 * vectors()
    ghost_backward(sae, x, torch.ones_like(x), DEAD)
    assert all(bool(torch.isfinite(p.grad).all()) for p in sae.parameters() if p.grad is not None)


def test_resampled_features_point_at_what_is_badly_reconstructed() -> None:
    sae, x = small(), vectors()
    error = torch.zeros_like(x)
    error[[3, 17]] = 1.0
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    pick = resample(sae, x, error, DEAD, torch.Generator().manual_seed(0))
    assert pick.tolist() == DEAD.nonzero().view(-1).tolist()
    towards = F.normalize(x - sae.b_dec.detach(), dim=1)
    cosine = sae.W_dec.detach()[pick] @ towards.T
    assert set(cosine.argmax(1).tolist()) == {3, 17}
    torch.testing.assert_close(cosine.amax(1), torch.ones(len(pick), dtype=torch.float64))
    living = before["W_enc"][:, ~DEAD].norm(dim=0).mean()
    torch.testing.assert_close(sae.W_enc.detach()[:, pick].norm(dim=0), (0.2 * living).expand(len(pick)))
    torch.testing.assert_close(sae.pre(sae.b_dec)[pick], torch.zeros(len(pick), dtype=torch.float64), atol=1e-12, rtol=0)
    for name, axis in (("W_enc", 1), ("b_enc", 0), ("W_dec", 0)):
        keep = (~DEAD).nonzero().view(-1)
        assert torch.equal(sae.get_parameter(name).index_select(axis, keep), before[name].index_select(axis, keep)), name


def test_the_optimiser_forgets_resampled_features_and_nothing_else() -> None:
    # As wide as there are features: the axis cannot be told from the length.
    sae = TopK(TopKConfig(d_in=8, d_sae=8, k=2))
    adam = Adam(sae.named_parameters())
    for p in sae.parameters():
        p.grad = torch.ones_like(p)
    adam.step(0.1)
    adam.reset_features(torch.tensor([1, 5]), sae.feature_axes())
    gone = torch.zeros(8, dtype=torch.bool)
    gone[[1, 5]] = True
    for kind in ("mean", "square"):
        state = adam.tensors()
        assert torch.equal(state[f"{kind}.W_enc"][0] == 0, gone)
        assert torch.equal(state[f"{kind}.W_dec"][:, 0] == 0, gone)
        assert torch.equal(state[f"{kind}.b_enc"] == 0, gone)
        assert not bool((state[f"{kind}.b_dec"] == 0).any())


class HalfDead(ReLU):
    """Every second feature starts where no vector reaches it."""

    def initialise(self, x: torch.Tensor, generator: torch.Generator) -> None:
        super().initialise(x, generator)
        with torch.no_grad():
            self.b_enc[::2] -= 8.0


CFG = TrainConfig(batch_size=256, n_tokens=256 * 400, lr=3e-3, dead_after=3000, checkpoint_every=50, log_every=1)


def trained(out: Path | None = None, **options: Any) -> SAE:
    sae = HalfDead(ReLUConfig.model_validate({"d_in": 32, "d_sae": 96, "sparsity_coeff": 0.1, **options}), torch.Generator().manual_seed(0))
    return train(ArraySource(planted(8000)[0]), [TrainSpec("r", sae)], CFG, out=out)[0].sae


def dead_share(sae: SAE) -> float:
    source = ArraySource(planted(8000)[0])
    return float((sae.codes(source.norm(source.x)).counts() == 0).double().mean())


def test_both_bring_dead_features_back() -> None:
    none, ghost, anew = (dead_share(trained(**o)) for o in ({}, {"ghost": 1.0}, {"resample_every": 50}))
    assert none > 0.4
    assert ghost < 0.5 * none
    assert anew < 0.5 * none


def test_resampling_survives_an_interruption_to_the_last_bit(tmp_path: Path) -> None:
    whole = trained(resample_every=40)
    sae = HalfDead(ReLUConfig(d_in=32, d_sae=96, sparsity_coeff=0.1, resample_every=40), torch.Generator().manual_seed(0))

    def interrupt(hook: str, *, step: int, **rest: Any) -> None:
        if hook == "stepped" and step == 170:
            raise KeyboardInterrupt

    source = ArraySource(planted(8000)[0])
    with pytest.raises(KeyboardInterrupt):
        train(source, [TrainSpec("r", sae)], CFG, out=tmp_path, emit=interrupt)
    resumed = trained(tmp_path, resample_every=40)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_ghost_gradients_without_an_encoder_are_refused() -> None:
    class Tied(SAE):
        tied = True

    with pytest.raises(ConfigError, match="ghost gradients need an encoder"):
        Tied(ReLUConfig(d_in=6, d_sae=20, ghost=1.0))
