"""Initialisation from data, and calibration of the encoder's scale."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saev_core.sae.weights import Weights

CALIBRATE_ON = 4096
"""Vectors used to fit the encoder's scale, enough for a single scalar."""


@torch.no_grad()
def initialise_from_data(sae: Weights, x: Float[Tensor, "n d_in"], generator: torch.Generator, mix: float = 0.8) -> None:
    """Decoder rows `mix` (x_i - mean) + (1 - mix) Kaiming noise, of length 1; encoder, if any, their transpose, calibrated.

    `b_dec` becomes the mean, and `b_enc` makes the encoder act on x - b_dec. The encoder is tied AFTER normalising the
    rows: tied before, it would be about sqrt(d_in) times too large.

    Args:
        x: a sample of normalised activations, 65,536 or more if available.
    """
    n = len(x)
    centre = x.double().mean(0).to(x.dtype)
    order = torch.randperm(n, generator=generator) if n >= sae.d_sae else torch.randint(n, (sae.d_sae,), generator=generator)
    rows = x[order[: sae.d_sae].to(x.device)] - centre
    noise = torch.empty(sae.d_sae, sae.d_in, dtype=x.dtype)
    # Kaiming for fan-in d_in: rows of length about sqrt(2), a small fraction of a row of length sqrt(d_in).
    noise.normal_(0, math.sqrt(2 / sae.d_in), generator=generator)
    sae.W_dec.copy_(F.normalize(mix * rows + (1 - mix) * noise.to(x.device), dim=1))
    sae.b_dec.copy_(centre)
    if sae.tied:
        return
    tie(sae)
    calibrate(sae, x[order[:CALIBRATE_ON].to(x.device)])


@torch.no_grad()
def tie(sae: Weights) -> None:
    """Set the encoder to the decoder's transpose, acting on x - b_dec."""
    sae.W_enc.copy_(sae.W_dec.T)
    sae.b_enc.copy_(-(sae.b_dec @ sae.W_enc))


@torch.no_grad()
def calibrate(sae: Weights, x: Float[Tensor, "n d_in"]) -> float:
    """Scale the encoder so that x_hat has the right length; returns the factor.

    Tied rows that share the data's common direction overshoot k-fold. The best single factor has a closed form,
    <x_hat - b_dec, x - b_dec> / |x_hat - b_dec|^2, exact if codes are positively homogeneous in the encoder.
    """
    fit = (sae.decode(sae.codes(x)) - sae.b_dec).double()
    wanted, past = sae.split(x)[1] - sae.b_dec, sae.bypass(x)
    norm = float(fit.square().sum())
    factor = float((fit * (wanted if past is None else wanted - past)).sum()) / norm if norm > 0 else 1.0
    if factor <= 0:
        factor = 1.0
    sae.W_enc.mul_(factor)
    sae.b_enc.mul_(factor)
    return factor
