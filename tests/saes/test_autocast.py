"""Every variant's loss can be differentiated under autocast: on the CPU here, as `train.precision=bf16` does on CUDA."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from saev_core.config.base import PluginRef
from saev_core.sae.base import make_sae
from saev_core.sae.step import Progress
from saev_core.testing.sae_contract import planted


def progress(dead: torch.Tensor | None) -> Progress:
    return Progress(50, 100, dead, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in ("relu", "topk", "batchtopk", "jumprelu", "gated", "p-anneal", "archetypal", "mp", "matryoshka")),
        ("matryoshka", {"activation": "relu"}),
        ("topk", {"ghost": 1.0}),
    ],
)
def test_its_gradient_is_float32_and_near_the_plain_one(name: str, options: dict[str, Any]) -> None:
    x = planted(256)[0]
    x = (x - x.mean(0)) / x.std()
    sae = make_sae(PluginRef(name=name, options={"d_sae": 128, **options}), 32)
    sae.initialise(x, torch.Generator().manual_seed(0))
    for dead in (None, torch.arange(128) % 3 == 0):
        plain = sae.backward_autograd(x, progress(dead))
        assert sae.W_dec.grad is not None or name == "archetypal"
        wanted = torch.cat([p.grad.flatten() for p in sae.parameters() if p.grad is not None])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = sae.backward_autograd(x, progress(dead))
            found = torch.cat([p.grad.flatten() for p in sae.parameters() if p.grad is not None])
            sae.revive(x, half, progress(dead))
        assert found.dtype == half.loss.dtype == torch.float32
        assert float(half.loss) == pytest.approx(float(plain.loss), rel=0.05)
        assert float(torch.nn.functional.cosine_similarity(found, wanted, dim=0)) > 0.95
