"""AuxK: dead features learn to reconstruct the residual error of the live ones.

Source: Gao et al. 2024, Scaling and evaluating sparse autoencoders, section A.2. https://arxiv.org/abs/2406.04093
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saev_core.sae.kernels import top_k
from saev_core.sae.lean_step import grad
from saev_core.sae.weights import Weights


def auxk_loss(
    sae: Weights, x: Float[Tensor, "n d_in"], error: Float[Tensor, "n d_in"], dead: Bool[Tensor, " d_sae"], k: int
) -> Float[Tensor, ""]:
    """sum |e - e_hat|^2 / sum |e - mean e|^2, times min(n_dead / k, 1); differentiable, 0 if no feature is dead.

    Args:
        error: e = x - x_hat (of the target, where `sae.split` divides `x`), treated as constant: no gradient flows into it.
        k: number of dead features that reconstruct each vector, by their ReLU'd pre-activations. Their sum e_hat
            does NOT include the decoder bias, which would bias it.
    """
    pick = dead.nonzero().view(-1)
    if len(pick) == 0:
        return x.new_zeros(())
    f = (sae.split(x)[0] @ sae.W_enc[:, pick] + sae.b_enc[pick]).relu()
    if len(pick) > k:
        value, index = f.topk(k, dim=-1, sorted=False)
        f = torch.zeros_like(f).scatter(1, index, value)
    error = error.detach()
    spread = (error - error.mean(0)).square().sum()
    return (error - f @ sae.W_dec[pick]).square().sum() / spread * min(len(pick) / k, 1.0)


@torch.no_grad()
def auxk_backward(
    sae: Weights, x: Float[Tensor, "n d_in"], error: Float[Tensor, "n d_in"], dead: Bool[Tensor, " d_sae"], k: int, *, weight: float
) -> Float[Tensor, ""]:
    """`weight` times `auxk_loss`; adds its gradient to the parameters', with dense matmuls on the dead features only."""
    pick = dead.nonzero().view(-1)
    if len(pick) == 0:
        return x.new_zeros(())
    W_enc, W_dec = sae.W_enc.detach()[:, pick], sae.W_dec.detach()[pick]
    inputs = sae.split(x)[0]
    f = torch.addmm(sae.b_enc.detach()[pick], inputs, W_enc).clamp_min_(0)
    if len(pick) > k:
        value, index = top_k(f, k)
        f.zero_().scatter_(1, index, value)
    spread = (error - error.mean(0)).square().sum()
    residual = (f @ W_dec).sub_(error)
    scale = weight * min(len(pick) / k, 1.0) / float(spread)
    loss = residual.square().sum() * scale
    residual.mul_(2 * scale)
    d_f = (residual @ W_dec.T).mul_(f > 0)
    grad(sae.W_enc).index_add_(1, pick, inputs.T @ d_f)
    grad(sae.b_enc).index_add_(0, pick, d_f.sum(0))
    grad(sae.W_dec).index_add_(0, pick, f.T @ residual)
    return loss
