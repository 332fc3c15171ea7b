"""Two older alternatives to AuxK that revive dead features in any variant with an encoder: ghost gradients and resampling.

Sources: Jermyn and Templeton 2024, Ghost Grads. https://transformer-circuits.pub/2024/jan-update/index.html
Bricken et al. 2023, Towards Monosemanticity, appendix "Neuron Resampling".
https://transformer-circuits.pub/2023/monosemantic-features
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saev_core.sae.lean_step import grad
from saev_core.sae.weights import Weights

ENCODER_SHARE = 0.2
"""Length of a resampled feature's encoder column relative to the mean length of live ones."""


def ghost_loss(
    x: Float[Tensor, "n d_in"],
    error: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_in n_dead"],
    b_enc: Float[Tensor, " n_dead"],
    W_dec: Float[Tensor, "n_dead d_in"],
) -> Float[Tensor, ""]:
    """mean |e - c e_ghost|^2 with e_ghost = exp(x W_enc + b_enc) W_dec, over the dead features only; differentiable.

    c scales each e_ghost to half the length of e, and the loss is scaled to the reconstruction error mean |e|^2; both
    factors and e are treated as constants.
    """
    error = error.detach()
    pre = x @ W_enc + b_enc
    # A common factor of exp cancels in c: removing it prevents overflow.
    ghost = (pre - pre.detach().amax(1, keepdim=True)).exp() @ W_dec
    lengths = ghost.detach().norm(dim=1, keepdim=True).clamp_min(1e-30)
    ghost = ghost * (error.norm(dim=1, keepdim=True) / (2 * lengths))
    loss: Tensor = (error - ghost).square().sum(1).mean()
    return loss * (error.square().sum(1).mean() / loss.detach().clamp_min(1e-30))


def ghost_backward(sae: Weights, x: Float[Tensor, "n d_in"], error: Float[Tensor, "n d_in"], dead: Bool[Tensor, " d_sae"]) -> None:
    """Add the gradient of `ghost_loss`, times `cfg.ghost`, to the parameters' `.grad`."""
    pick = dead.nonzero().view(-1)
    leaves = [w.detach().requires_grad_() for w in (sae.W_enc[:, pick], sae.b_enc[pick], sae.W_dec[pick])]
    with torch.enable_grad():
        loss = ghost_loss(sae.split(x)[0], error, *leaves) * sae.cfg.ghost
    d_enc, d_bias, d_dec = torch.autograd.grad(loss, leaves)
    grad(sae.W_enc).index_add_(1, pick, d_enc)
    grad(sae.b_enc).index_add_(0, pick, d_bias)
    grad(sae.W_dec).index_add_(0, pick, d_dec)


@torch.no_grad()
def resample(
    sae: Weights,
    x: Float[Tensor, "n d_in"],
    error: Float[Tensor, "n d_in"],
    dead: Bool[Tensor, " d_sae"],
    generator: torch.Generator | None,
) -> Int[Tensor, " n_dead"]:
    """Set each dead feature to the direction of a poorly reconstructed vector of the batch; returns the dead features.

    Vectors are drawn in proportion to |error|^4, the square of their loss. The row of W_dec becomes (x - b_dec) / |x - b_dec|,
    the encoder's column the same with 0.2 of the mean length of live ones, and its bias makes it act on x - b_dec. If
    `sae.split` splits vectors, the row comes from the target minus the skip connection, and the column from the inputs.
    """
    pick = dead.nonzero().view(-1)
    reach = error.double().square().sum(1).square().cumsum(0)
    at = torch.rand(len(pick), dtype=torch.float64, generator=generator).to(x.device) * reach[-1]
    vectors = x[torch.searchsorted(reach, at, right=True).clamp_max_(len(x) - 1)]
    inputs, target = sae.split(vectors)
    past = sae.bypass(vectors)
    rows = F.normalize((target if past is None else target - past) - sae.b_dec, dim=1)
    sae.W_dec[pick] = rows
    if not sae.tied:
        # Normalised inputs already have mean 0.
        centre = sae.b_dec if inputs is target else torch.zeros_like(sae.b_dec)
        unit = rows if inputs is target else F.normalize(inputs, dim=1)
        living = sae.W_enc[:, ~dead].norm(dim=0)
        columns = unit * (ENCODER_SHARE * (float(living.mean()) if len(living) else 1.0))
        sae.W_enc[:, pick] = columns.T
        sae.b_enc[pick] = -(columns @ centre)
    return pick
