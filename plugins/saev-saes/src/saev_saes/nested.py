"""The error of nested reconstructions, each from a prefix of the features, and its gradient, without storing them all.

The forward pass is cumulative: x_hat_g = x_hat_(g-1) + f_g W_g for the block g of features between two prefixes. The
backward pass goes back from the full reconstruction: block g receives the weighted sum of the errors of all prefixes that
contain it, and subtracting f_g W_g restores the previous reconstruction. So two `[n, d_in]` matrices suffice for any number
of prefixes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from saev_core import SAE, Codes
from saev_core.sae.lean_step import grad


@dataclass(frozen=True)
class Prefixes:
    """Nested dictionaries."""

    sizes: list[int]
    """Number of features of each prefix, ascending; the last is d_sae."""
    weights: list[float]
    """Weight of each prefix's error."""

    def blocks(self) -> list[tuple[int, int, float]]:
        """First feature, end and weight of the block that each prefix adds to the previous one."""
        return [(a, b, w) for (a, b), w in zip(pairwise((0, *self.sizes)), self.weights, strict=True)]


def nested_error(
    sae: SAE, x: Float[Tensor, "n d_in"], z: Float[Tensor, "n d_sae"], prefixes: Prefixes
) -> tuple[Float[Tensor, ""], Float[Tensor, "n d_in"]]:
    """sum_g weights_g mean |x - x_hat_g|^2, differentiable; and the full reconstruction, not differentiable."""
    error, x_hat = Nested.apply(z, sae.W_dec, sae.b_dec, x, prefixes.blocks())
    return error, x_hat


class Nested(torch.autograd.Function):
    """`nested_error` from dense codes."""

    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, Tensor]:
        z, W_dec, b_dec, x, blocks = given
        n = len(x)
        residual = b_dec - x
        error = x.new_zeros(())
        for a, b, weight in blocks:
            residual.addmm_(z[:, a:b], W_dec[a:b])
            error += residual.square().sum() * (weight / n)
        ctx.save_for_backward(z, W_dec, residual)
        ctx.blocks = blocks
        x_hat = x + residual
        ctx.mark_non_differentiable(x_hat)
        return error, x_hat

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        z, W_dec, residual = ctx.saved_tensors
        residual = residual.clone()
        total = torch.zeros_like(residual)  # [n, d_in]: gradient by the contribution of block g
        d_z, d_W = torch.empty_like(z), torch.empty_like(W_dec)
        for a, b, weight in reversed(ctx.blocks):
            total.add_(residual * (slopes[0] * (2 * weight / len(z))))
            d_z[:, a:b] = total @ W_dec[a:b].T
            d_W[a:b] = z[:, a:b].T @ total
            residual.addmm_(z[:, a:b], W_dec[a:b], alpha=-1)
        return d_z, d_W, total.sum(0), None, None


@torch.no_grad()
def backward_nested(
    sae: SAE, x: Float[Tensor, "n d_in"], codes: Codes, slope: Tensor | None, prefixes: Prefixes
) -> tuple[Float[Tensor, ""], Float[Tensor, "n d_in"]]:
    """`kernels.backward_codes` for `nested_error`: fills every gradient from sparse codes, returns the error and x_hat.

    Args:
        codes: of `x`, each value equal to its pre-activation.
        slope: derivative of a penalty by each value, or one for all values; None: no penalty.
    """
    n, W_dec = len(x), sae.W_dec.detach()
    rows = codes.rows
    blocks = []
    residual = sae.b_dec.detach() - x
    error = x.new_zeros(())
    for a, b, weight in prefixes.blocks():
        pick = ((codes.feature >= a) & (codes.feature < b)).nonzero().view(-1)
        block = Codes.from_rows(rows[pick], codes.feature[pick], codes.value[pick], n, sae.d_sae)
        residual += _decode(block, W_dec)
        error += residual.square().sum() * (weight / n)
        blocks.append((a, b, weight, pick, block))
    x_hat = x + residual
    total = torch.zeros_like(residual)
    d_dec, d_enc, d_bias = torch.empty_like(W_dec), torch.empty_like(W_dec), grad(sae.b_enc).zero_()
    for a, b, weight, pick, block in reversed(blocks):
        total.add_(residual, alpha=2 * weight / n)
        member = rows[pick]
        d_value = torch.ops.aten._embedding_bag_per_sample_weights_backward(total, W_dec, block.feature, block.offsets[:-1], member, 0)
        if slope is not None:
            d_value.add_(slope if len(slope) == 1 else slope[pick])
        d_value.mul_(block.value > 0)
        feature, order = block.feature.sort(stable=True)
        start = torch.searchsorted(feature, torch.arange(a, b, device=x.device))
        member = member[order]
        d_dec[a:b] = F.embedding_bag(member, total, start, mode="sum", per_sample_weights=block.value[order])
        d_enc[a:b] = F.embedding_bag(member, x, start, mode="sum", per_sample_weights=d_value[order])
        d_bias.index_add_(0, block.feature, d_value)
        residual -= _decode(block, W_dec)
    sae.W_dec.grad = d_dec
    grad(sae.W_enc).copy_(d_enc.T)
    torch.sum(total, 0, out=grad(sae.b_dec))
    return error, x_hat


def _decode(codes: Codes, W_dec: Tensor) -> Tensor:
    """Decode without the bias."""
    return F.embedding_bag(codes.feature, W_dec, codes.offsets[:-1], mode="sum", per_sample_weights=codes.value)
