"""The lean step: forward and gradient of an SAE from its sparse codes, without creating dense codes. CPU; no autograd.

If the active values are the pre-activations themselves (ReLU, TopK, BatchTopK), four of the five dense matmuls of a
step are avoided: decoding is `embedding_bag` over the active decoder rows, and the weight gradients are `embedding_bag`
over the TRANSPOSED codes (features as bags, vectors as members), which needs a sort of the entries instead
of an `index_add` over [n, k, d]. Exact: agrees with float64 autograd. Summation order is fixed, so results repeat.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saev_core.sae.codes import Codes
from saev_core.sae.kernels import DENSE_ROWS
from saev_core.sae.weights import Weights


def grad(parameter: Tensor) -> Tensor:
    """The parameter's gradient buffer, allocated on first use and kept."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
    return parameter.grad


def backward_codes(
    sae: Weights, x: Float[Tensor, "n d_in"], codes: Codes, slope: Float[Tensor, " nnz"] | None
) -> tuple[Float[Tensor, ""], Float[Tensor, "n d_in"]]:
    """Fill every gradient of mean |x - x_hat|^2 + penalty; returns the error and x_hat.

    Args:
        x: normalised activations, as `sae.codes` takes them.
        codes: the codes of `x`, where each value is its pre-activation.
        slope: derivative of the penalty with respect to each value; None if there is no penalty.
    """
    n, m = len(x), sae.d_sae
    rows, value = codes.rows, codes.value
    inputs, target = sae.split(x)
    x_hat = codes.decode(sae.W_dec.detach(), sae.b_dec.detach())
    if (past := sae.bypass(x)) is not None:
        x_hat += past
    residual = torch.sub(x_hat, target, out=sae.scratch.get("residual", tuple(x_hat.shape), x))
    error = residual.square().sum() / n
    residual.mul_(2 / n)
    d_value = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        residual, sae.W_dec.detach(), codes.feature, codes.offsets[:-1], rows, 0
    )
    if slope is not None:
        d_value.add_(slope)
    d_value.mul_(value > 0)
    feature, order = codes.feature.sort(stable=True)
    start = torch.searchsorted(feature, torch.arange(m, device=x.device))
    member = rows[order]
    sae.W_dec.grad = F.embedding_bag(member, residual, start, mode="sum", per_sample_weights=value[order])
    d_enc = F.embedding_bag(member, inputs, start, mode="sum", per_sample_weights=d_value[order])  # [d_sae, d_in]
    grad(sae.W_enc).copy_(d_enc.T)
    grad(sae.b_enc).zero_().index_add_(0, codes.feature, d_value)
    torch.sum(residual, 0, out=grad(sae.b_dec))
    return error, x_hat


def backward_relu(
    sae: Weights, x: Float[Tensor, "n d_in"], slope: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, "n d_in"], Int[Tensor, " d_sae"]]:
    """As `backward_codes`, for f = relu(pre) with a penalty of constant `slope`, using dense matmuls in reused buffers.

    Returns:
        The error, the sum of all values, x_hat, and the number of vectors on which each feature is active.
    """
    n, m = len(x), sae.d_sae
    W_enc, W_dec, b_enc, b_dec = (p.detach() for p in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec))
    x_hat = torch.empty_like(x)
    error, total = x.new_zeros((), dtype=torch.float64), x.new_zeros((), dtype=torch.float64)
    active, encode = x.new_zeros(m), sae.scratch.encoder(W_enc, b_enc)
    grads = [grad(p) for p in (sae.W_enc, sae.W_dec, sae.b_enc, sae.b_dec)]
    bias = x.new_full((1,), slope)
    for a in range(0, n, DENSE_ROWS):
        rows = x[a : a + DENSE_ROWS]
        keep = float(a > 0)  # the first chunk overwrites the previous step
        f = encode(rows).clamp_min_(0)
        residual = torch.addmm(b_dec, f, W_dec, out=x_hat[a : a + len(rows)]) - rows
        error += residual.square().sum()
        total += f.sum()
        residual.mul_(2 / n)
        d_f = sae.scratch.get("slope", (len(rows), m), x)
        # Signs instead of booleans, whose sum would make an int64 copy of the whole chunk.
        active += torch.sign(f, out=d_f).sum(0)
        torch.addmm(bias, residual, W_dec.T, out=d_f)
        torch.ops.aten.threshold_backward.grad_input(d_f, f, 0, grad_input=d_f)
        torch.addmm(grads[0], rows.T, d_f, beta=keep, out=grads[0])
        torch.addmm(grads[1], f.T, residual, beta=keep, out=grads[1])
        torch.add(d_f.sum(0), grads[2] if a else 0, out=grads[2])
        torch.add(residual.sum(0), grads[3] if a else 0, out=grads[3])
    return (error / n).to(x.dtype), total.to(x.dtype), x_hat, active.long()
