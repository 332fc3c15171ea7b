"""`transcoder`: predicts a later site of the model from an earlier one with k features, optionally with a skip connection."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor, nn

from saev_core import Progress, SAEConfig, Step
from saev_core.config.words import Auto
from saev_core.errors import ConfigError
from saev_core.sae.initialise import CALIBRATE_ON, calibrate
from saev_core.sae.lean_step import grad
from saev_core.sae.topk import TopK, TopKConfig

MIX = 0.8
"""Share of data in the initial rows; the rest is noise, which separates rows of equal vectors."""


class TranscoderConfig(TopKConfig):
    """Options of `transcoder`."""

    main = "k"

    skip: bool = False
    """Add a linear map of the input to the prediction, so that features model only the nonlinear part."""
    k_aux: Auto[PositiveInt] = "auto"
    """Dead features that reconstruct each vector's error; `auto`: half of a site's width."""


class Transcoder(TopK):
    """y_hat = f W_dec + b_dec (+ x_in W_skip), f = the k largest of relu(x_in W_enc + b_enc); loss = mean |y - y_hat|^2 + auxk d AuxK.

    A vector joins the same token at two blocks: `x_in` is the earlier block's, y the later's, each of width d. All encoding methods
    take the joined vector; decoding gives the later site.

    The published transcoders have ReLU features under an L1 penalty; these use the k largest, as in Paulo et al.

    Initialisation: feature i detects the input of one sample and writes the same sample's target; W_skip `[d, d]` is zero. `tiny` on
    400 `shapes`, block 3 from 1, d_sae 512, k 16, 700 steps, held-out NMSE and dead share (.073 with only the best linear map):
    this .063 and .09, random directions .059 and .35, decoder rows by least squares on the codes .062 and .11; with a skip
    connection .043 and .20, and not better if it starts at the best linear map (.045 and .15).

    Sources: Dunefsky et al. 2024, Transcoders find interpretable LLM feature circuits. https://arxiv.org/abs/2406.11944
    Skip connection: Paulo et al. 2025, Transcoders beat sparse autoencoders for interpretability. https://arxiv.org/abs/2501.18823
    """

    Config: ClassVar[type[SAEConfig]] = TranscoderConfig
    cfg: TranscoderConfig

    def __init__(self, cfg: TranscoderConfig, generator: torch.Generator | None = None) -> None:
        """Raises ConfigError if the vectors do not join two sites, or k exceeds d_sae."""
        if cfg.n_sites != 2:
            raise ConfigError(
                f"a transcoder needs two sites, but read.layer names {cfg.n_sites}; give two recorded blocks, such as --layer 6,10."
            )
        super().__init__(cfg, generator)
        if cfg.skip:
            self.W_skip = nn.Parameter(torch.zeros(self.d_out, self.d_out))

    @property
    def d_out(self) -> int:
        return self.cfg.d_in // 2

    def split(self, x: Float[Tensor, "*batch d_in"]) -> tuple[Float[Tensor, "*batch d_out"], Float[Tensor, "*batch d_out"]]:
        """The earlier site's block of `x`, and the later's."""
        return x[..., : self.d_out], x[..., self.d_out :]

    def bypass(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"] | None:
        return self.split(x)[0] @ self.W_skip if self.cfg.skip else None

    @torch.no_grad()
    def backward_lean(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        step = super().backward_lean(x, progress)
        if self.cfg.skip:
            inputs, target = self.split(x)
            torch.mm(inputs.T, (step.x_hat - target).mul_(2 / len(x)), out=grad(self.W_skip))
        return step

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "n d_in"], generator: torch.Generator) -> None:
        """Set decoder rows and encoder columns from the two sides of one sample each, if `cfg.data_init`; fit the encoder's scale."""
        inputs, target = self.split(x)
        centre = inputs.double().mean(0).to(x.dtype)
        self.b_dec.copy_(target.double().mean(0))
        n, m = len(x), self.d_sae
        order = (torch.randperm(n, generator=generator) if n >= m else torch.randint(n, (m,), generator=generator)).to(x.device)
        if self.cfg.data_init:
            pick = order[:m]
            self.W_dec.copy_(_mixed(target[pick] - self.b_dec, generator))
            self.W_enc.copy_(_mixed(inputs[pick] - centre, generator).T)
            self.b_enc.copy_(-(centre @ self.W_enc))
        calibrate(self, x[order[:CALIBRATE_ON]])

    def feature_axes(self) -> dict[str, int | None]:
        """As of any SAE; the skip connection has no features."""
        return super().feature_axes() | ({"W_skip": None} if self.cfg.skip else {})

    def facts(self) -> dict[str, Any]:
        """`skip_norm`: norm of the skip connection over that of the identity, if there is one."""
        return {"skip_norm": float(self.W_skip.detach().norm()) / self.d_out**0.5} if self.cfg.skip else {}


def _mixed(rows: Float[Tensor, "m d"], generator: torch.Generator) -> Float[Tensor, "m d"]:
    """Rows of length 1, a mix of `MIX` data and the rest noise of the same length."""
    noise = torch.randn(rows.shape, generator=generator).to(rows)
    return F.normalize(MIX * F.normalize(rows, dim=1) + (1 - MIX) * F.normalize(noise, dim=1), dim=1)
