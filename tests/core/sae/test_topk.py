"""`topk`: Gao et al. 2024, with AuxK."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from saev_core.errors import ConfigError
from saev_core.sae.auxk import auxk_loss
from saev_core.sae.base import make_sae
from saev_core.sae.step import Progress
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.testing import SAEContract


class TestTopK(SAEContract):
    sae = TopK
    options: ClassVar = {"d_sae": 56, "k": 4}
    planted_options: ClassVar = {"d_sae": 128, "k": 3}


class TestTopKOfAnAwkwardWidth(SAEContract):
    """A width that no group size divides, and fewer dead features than k_aux."""

    sae = TopK
    options: ClassVar = {"d_sae": 1021, "k": 3, "k_aux": 500}
    recovers = None


def small(**options: object) -> TopK:
    return TopK(TopKConfig.model_validate({"d_in": 6, "d_sae": 20, "k": 3, **options}), torch.Generator().manual_seed(0))


def test_negative_pre_activations_never_become_features() -> None:
    sae = small()
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    x = torch.randn(50, 6)
    assert not bool(sae.encode(x).any())
    assert int(sae.codes(x).counts().sum()) == 0


def test_at_most_k_features_are_active() -> None:
    sae = small()
    assert int((sae.encode(torch.randn(50, 6)) > 0).sum(1).max()) <= 3


def test_k_beyond_the_width_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"sae.k is 21, but there are only 20 features"):
        small(k=21)


def test_k_is_the_main_option() -> None:
    sae = make_sae("topk:5", 6)
    assert isinstance(sae, TopK)
    assert sae.cfg.k == 5


@torch.no_grad()
def test_auxk_is_the_published_formula() -> None:
    """Recomputed vector by vector in float64: ReLU'd dead pre-activations, no decoder bias, e detached, over e's spread."""
    sae = small().double()
    with torch.no_grad():
        sae.b_dec.normal_()
        sae.b_enc.normal_()
    x = torch.randn(40, 6, dtype=torch.float64)
    dead = torch.zeros(20, dtype=torch.bool)
    dead[4:12] = True
    error = x - sae(x)
    expected = 0.0
    for row, e in zip(x, error, strict=True):
        pre = (row @ sae.W_enc + sae.b_enc).relu().masked_fill(~dead, 0)
        kept = torch.zeros(20, dtype=torch.float64)
        top = pre.topk(5)
        kept[top.indices] = top.values
        expected += float((e - kept @ sae.W_dec).square().sum())
    expected /= float((error - error.mean(0)).square().sum())
    assert float(auxk_loss(sae, x, error, dead, k=5)) == pytest.approx(expected, rel=1e-12)
    # Fewer dead than k: all of them reconstruct, and the loss shrinks with their number.
    assert float(auxk_loss(sae, x, error, dead, k=16)) == pytest.approx(float(auxk_loss(sae, x, error, dead, k=8)) / 2, rel=1e-12)


def test_auxk_trains_the_dead_encoder_and_nothing_else_moves() -> None:
    sae, x = small().double(), torch.randn(40, 6, dtype=torch.float64)
    with torch.no_grad():
        sae.b_enc[:7] = -0.5
    dead = torch.zeros(20, dtype=torch.bool)
    dead[:7] = True
    sae.backward(x, Progress(500, 1000))
    before = {name: p.grad.clone() for name, p in sae.named_parameters() if p.grad is not None}
    sae.backward(x, Progress(500, 1000, dead))
    change = {name: (p.grad - before[name]).abs() for name, p in sae.named_parameters() if p.grad is not None}
    assert float(change["W_enc"][:, 7:].max()) == 0
    assert float(change["W_dec"][7:].max()) == 0
    assert float(change["b_dec"].max()) == 0
    assert float(change["W_enc"][:, :7].max()) > 0
    assert float(change["b_enc"][:7].max()) > 0


def test_without_dead_features_auxk_is_silent() -> None:
    sae, x = small(), torch.randn(40, 6)
    none = torch.zeros(20, dtype=torch.bool)
    assert float(sae.backward(x, Progress(5, 10, none)).loss) == float(sae.backward(x, Progress(5, 10)).loss)


def test_k_follows_the_width_unless_it_is_named() -> None:
    assert [TopKConfig(d_sae=d).sized(16).k for d in (4, 512, 960, 2048, 65_536)] == [4, 8, 15, 32, 32]
    assert TopKConfig(d_sae=2048, k=5).sized(16).k == 5
