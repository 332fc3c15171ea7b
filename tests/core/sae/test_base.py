"""`SAE`: what a variant inherits, and initialisation from data."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from saev_core.errors import ConfigError, UnknownPluginError
from saev_core.sae.base import SAE, make_sae
from saev_core.sae.codes import Codes
from saev_core.sae.config import SAEConfig
from saev_core.sae.initialise import calibrate, initialise_from_data
from saev_core.sae.step import Progress
from saev_core.sae.topk import TopK, TopKConfig
from saev_core.testing import SAEContract
from saev_core.testing.sae_contract import planted


class SoftConfig(SAEConfig):
    """Options of a variant that only says how it encodes."""


class Soft(SAE):
    """A third party's variant: dense encode, squared penalty, nothing else."""

    Config = SoftConfig

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        return (self.pre(x) - 0.1).relu()

    def penalty(self, z: Tensor | Codes, progress: Progress) -> Float[Tensor, ""]:
        assert isinstance(z, Tensor)
        return 0.01 * z.square().sum(1).mean()


class Lean(SAE):
    """One that selects, so that the lean step takes its penalty from sparse codes."""

    selects = True

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        return self.pre(x).relu()

    def penalty(self, z: Tensor | Codes, progress: Progress) -> Float[Tensor, ""]:
        value, n = (z.value, len(z)) if isinstance(z, Codes) else (z, len(z))
        return 0.3 * (value + 1e-3).sqrt().sum() / n if isinstance(z, Codes) else 0.3 * (value + 1e-3).sqrt()[value > 0].sum() / n


class TestSoft(SAEContract):
    sae = Soft
    recovers = None


class TestLean(SAEContract):
    sae = Lean
    options: ClassVar = {"d_sae": 40}
    recovers = None


def topk(d_in: int = 32, **options: object) -> TopK:
    return TopK(TopKConfig.model_validate({"d_in": d_in, "d_sae": 128, "k": 4, **options}), torch.Generator().manual_seed(0))


def test_weights_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    one = make_sae("topk:4", 8, seed=3)
    torch.manual_seed(2)
    two = make_sae("topk:4", 8, seed=3)
    assert torch.equal(one.W_dec, two.W_dec)
    assert not torch.equal(one.W_dec, make_sae("topk:4", 8, seed=4).W_dec)


def test_encoder_and_decoder_share_no_memory() -> None:
    sae = topk()
    with torch.no_grad():
        sae.W_enc.zero_()
    assert bool(sae.W_dec.any())


def test_a_width_without_a_store_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs d_in"):
        TopK(TopKConfig(d_sae=4))


def test_an_unknown_variant_names_its_neighbours() -> None:
    with pytest.raises(UnknownPluginError, match="did you mean topk"):
        make_sae("topkk", 8)


def test_projected_gradients_are_at_right_angles_to_the_rows() -> None:
    sae = topk().double()
    sae.after_step()  # length one in float64 too
    sae.backward(torch.randn(100, 32, dtype=torch.float64), Progress(0, 1))
    sae.project_gradient()
    assert sae.W_dec.grad is not None
    assert float((sae.W_dec.grad * sae.W_dec.detach()).sum(1).abs().max()) < 1e-12
    assert bool(sae.W_dec.grad.any())


def test_options_turn_projection_and_unit_rows_off() -> None:
    sae = topk(normalize_w_dec=False).double()
    sae.backward(torch.randn(100, 32, dtype=torch.float64), Progress(0, 1))
    assert sae.W_dec.grad is not None
    before = sae.W_dec.grad.clone()
    sae.project_gradient()
    assert torch.equal(sae.W_dec.grad, before)
    with torch.no_grad():
        sae.W_dec.mul_(3)
    sae.after_step()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.full((128,), 3.0, dtype=torch.float64))


def test_data_rows_have_length_one_and_the_encoder_is_their_scaled_transpose() -> None:
    """Tied before normalising, the encoder would be some sqrt(d) times too large."""
    x, _ = planted(3000)
    x = (x - x.mean(0)) * (32 / (x - x.mean(0)).square().sum(1).mean()) ** 0.5
    sae = topk()
    initialise_from_data(sae, x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(128), rtol=1e-5, atol=1e-5)
    factor = float((sae.W_enc * sae.W_dec.T).sum().detach() / sae.W_dec.square().sum().detach())
    torch.testing.assert_close(sae.W_enc, factor * sae.W_dec.T, rtol=1e-4, atol=1e-5)
    assert 0.01 < factor < 1.5


def test_data_rows_point_at_data() -> None:
    x = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    sae = topk()
    initialise_from_data(sae, x, torch.Generator().manual_seed(0))
    cosine = torch.nn.functional.normalize(x - x.mean(0), dim=1) @ sae.W_dec.detach().T
    assert float(cosine.amax(0).min()) > 0.9


def test_more_features_than_vectors_still_initialise() -> None:
    sae = topk()
    initialise_from_data(sae, torch.randn(50, 32), torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(sae.W_dec).all())


@torch.no_grad()
def test_calibration_is_the_best_single_factor() -> None:
    x, _ = planted(2000)
    x = (x - x.mean(0)).double()
    sae = topk().double()
    # All rows share a direction, so that k of them together overshoot.
    sae.W_dec.copy_(torch.nn.functional.normalize(sae.W_dec + 1.0, dim=1))
    sae.W_enc.copy_(sae.W_dec.T)

    def error(scale: float) -> float:
        return float((sae.decode(sae.encode(x) * scale) - x).square().sum())

    factor = calibrate(sae, x)
    assert factor < 0.9
    best = error(1.0)
    assert best < error(1.02)
    assert best < error(0.98)


@torch.no_grad()
def test_a_calibrated_start_reconstructs_better_than_none() -> None:
    """Left as it is, the data start is worse than predicting the mean."""
    x, _ = planted(3000)
    x = x - x.mean(0)
    sae = topk(k=8)
    initialise_from_data(sae, x, torch.Generator().manual_seed(0))
    spread = x.square().sum()
    assert float((sae(x) - x).square().sum() / spread) < 0.8
