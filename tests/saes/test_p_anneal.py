"""`p-anneal`: the penalty in each stage in float64, its strength as p falls, and its contract."""

from typing import Any, ClassVar

import pytest
import torch

from saev_core.config.stages import TrainConfig
from saev_core.sae.checkpoint import Checkpoint
from saev_core.sae.step import Progress
from saev_core.testing.sae_contract import ArraySource, SAEContract, planted
from saev_core.training.train import TrainSpec, train
from saev_saes.p_anneal import PAnneal, PAnnealConfig


class TestPAnneal(SAEContract):
    sae = PAnneal
    # Stages begin at steps 9, 18 and 27 of the 30 that the contract trains, before and after it interrupts.
    options: ClassVar[dict[str, Any]] = {"d_sae": 56, "n_stages": 3}
    steps = 1000


def small(**options: object) -> PAnneal:
    cfg = PAnnealConfig.model_validate({"d_in": 24, "d_sae": 56, "n_stages": 4, "n_remembered": 3, **options})
    return PAnneal(cfg, torch.Generator().manual_seed(0)).double()


def vectors(n: int = 100, seed: int = 1) -> torch.Tensor:
    return torch.randn(n, 24, generator=torch.Generator().manual_seed(seed)).double()


def test_p_falls_in_equal_steps_from_one_to_its_end() -> None:
    sae = small(anneal_start=0.5)
    stages = [sae.stage(Progress(step, 100)) for step in range(100)]
    assert stages[:50] == [0] * 50
    assert stages[50] == 1
    assert stages == sorted(stages)
    assert stages[-1] == 4
    assert [sae.p(stage) for stage in range(5)] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("step", [12, 60, 99])
def test_loss_and_gradient_are_the_published_ones_in_float64(sparse: bool, step: int) -> None:
    sae, x = small(), vectors()
    if sparse:
        with torch.no_grad():
            sae.b_enc.fill_(-1.7)
    strength = 1.0
    stage = sae.stage(Progress(step, 100))
    if stage:  # as if the stages before had left this
        strength = sae.strength[stage] = 1.7
    found = sae.backward(x, Progress(step, 100))
    W_enc, b_enc, W_dec, b_dec = (p.detach().clone().requires_grad_() for p in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec))
    f = torch.relu(x @ W_enc + b_enc)
    assert (float((f > 0).double().mean()) < 0.1) == sparse
    p = {12: 1.0, 60: 0.6, 99: 0.2}[step]
    assert sae.p(stage) == pytest.approx(p)
    rows = [(row[row > 0] ** p).sum() for row in f]
    loss = (x - f @ W_dec - b_dec).square().sum(1).mean() + strength * 0.1 * 24**0.5 * torch.stack(rows).mean()
    loss.backward()
    torch.testing.assert_close(found.loss, loss.detach())
    for name, theirs in {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}.items():
        torch.testing.assert_close(getattr(sae, name).grad, theirs.grad, rtol=1e-9, atol=1e-11)


def test_the_strength_keeps_the_penaltys_size_as_p_falls() -> None:
    sae = small(anneal_start=0.5)
    norms = []
    for step in range(50):
        x = vectors(seed=step)
        sae.backward(x, Progress(step, 100))
        f = torch.relu(x @ sae.W_enc + sae.b_enc).detach()
        norms.append([float((f[f > 0] ** p).sum()) / 100 for p in (1, 0.8)])
    sae.backward(vectors(), Progress(50, 100))
    (old, new) = torch.tensor(norms[-3:], dtype=torch.float64).sum(0)  # n_remembered is 3
    assert float(sae.strength[1]) == pytest.approx(float(old / new))
    before = sae.strength.clone()
    sae.backward(vectors(seed=7), Progress(50, 100))
    assert torch.equal(sae.strength, before), "the same step taken again changed the strength"


def test_it_ends_sparser_than_plain_l1_at_an_equal_error() -> None:
    """What it is for: small values go, large ones do not shrink."""
    x = planted(4000)[0]
    trainees = [
        TrainSpec(f"{p_end}", PAnneal(PAnnealConfig(d_in=32, d_sae=96, p_end=p_end), torch.Generator().manual_seed(0)))
        for p_end in (1.0, 0.2)
    ]
    plain, annealed = train(ArraySource(x), trainees, TrainConfig(batch_size=256, n_tokens=256 * 500, lr=3e-3, n_init=2000))

    def measured(checkpoint: Checkpoint) -> tuple[float, float]:
        codes = checkpoint.codes(x)
        return float(codes.counts().sum()) / len(x), float((x - checkpoint.decode(codes)).square().sum())

    (l0_plain, error_plain), (l0, error) = measured(plain), measured(annealed)
    assert l0 < 0.9 * l0_plain
    assert error < 1.05 * error_plain
