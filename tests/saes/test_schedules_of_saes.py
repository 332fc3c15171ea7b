"""Schedules reach the loss of every variant that has one, by its own gradient and by autograd, and leave inference alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saev_core.sae.base import SAE
from saev_core.sae.step import Progress
from saev_core.testing import ArraySource
from saev_core.testing.sae_contract import planted
from saev_saes.batchtopk import BatchTopK
from saev_saes.gated import Gated
from saev_saes.jumprelu import JumpReLU
from saev_saes.matryoshka import Matryoshka
from saev_saes.p_anneal import PAnneal


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(kind: type[SAE], **options: Any) -> SAE:
    return kind(kind.Config.model_validate({"d_in": 16, "d_sae": 40, **options}), seeded())


def gradients(sae: SAE, step: int, how: str) -> torch.Tensor:
    data = ArraySource(planted(200, 16)[0])
    getattr(sae, how)(data.norm(data.x), Progress(step, 10_000, None, seeded(2)))
    return torch.cat([p.grad.flatten().clone() for p in sae.parameters() if p.grad is not None])


@pytest.mark.parametrize("how", ["backward", "backward_autograd"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Gated, {"sparsity_coeff": 1.0}),
        (JumpReLU, {"sparsity_coeff": 1.0, "l0": 4.0}),
        (Matryoshka, {"activation": "relu", "sparsity_coeff": 1.0}),
        (PAnneal, {"sparsity_coeff": 1.0}),
    ],
)
def test_sparsitys_warmup_changes_the_gradient(kind: type[SAE], options: dict[str, Any], how: str) -> None:
    options = {"n_sparsity_warmup": 100, **options}
    early, half, late, after = (gradients(made(kind, **options), step, how) for step in (0, 50, 100, 200))
    assert float((early - late).abs().max()) > 1e-3
    torch.testing.assert_close(half, (early + late) / 2, rtol=1e-3, atol=1e-4)
    assert torch.equal(late, after)
    cosine = gradients(made(kind, **options, warmup_shape="cosine"), 25, how)
    torch.testing.assert_close(cosine, early + 0.1464466 * (late - early), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", ["backward", "backward_autograd"])
@pytest.mark.parametrize(("kind", "options"), [(BatchTopK, {}), (Matryoshka, {}), (Matryoshka, {"activation": "topk"})])
def test_the_step_uses_the_k_of_its_place(kind: type[SAE], options: dict[str, Any], how: str) -> None:
    sae = made(kind, k=4, k_warmup=20, n_k_warmup=100, **options)
    for step, k in ((0, 20), (50, 12), (100, 4)):
        torch.testing.assert_close(gradients(sae, step, how), gradients(made(kind, k=k, **options), step, how))


def test_the_threshold_forgets_the_larger_k() -> None:
    """It is averaged from where k is final."""
    falling, plain = made(BatchTopK, k=4, k_warmup=20, n_k_warmup=3000), made(BatchTopK, k=4)
    assert isinstance(falling, BatchTopK)
    assert isinstance(plain, BatchTopK)
    x = torch.randn(100, 16, generator=seeded(1))
    for step in range(0, 3001, 500):
        falling.backward(x, Progress(step, 6000))
    plain.backward(x, Progress(0, 6000))
    assert torch.equal(falling.threshold, plain.threshold)
