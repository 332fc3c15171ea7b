"""Sparse codes selected by a threshold: one per feature (JumpReLU), or one per batch, found while encoding (BatchTopK)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from saev_core import SAE, Codes
from saev_core.sae.kernels import encode_above

SLACK = 0.85
"""The pre-filter's threshold as a share of the last batch's threshold; batches vary by less than this."""


def largest(value: Float[Tensor, " m"], n: int) -> Bool[Tensor, " m"]:
    """Mask of the `n` largest positive values; the first of equal ones."""
    if n >= len(value):
        return value > 0
    kth = value.topk(n, sorted=False).values.min()
    if kth <= 0:
        return value > 0
    keep = value > kth
    ties = (value == kth).nonzero().view(-1)
    keep[ties[: n - int(keep.sum())]] = True
    return keep


@torch.no_grad()
def encode_batch_top_k(sae: SAE, x: Float[Tensor, "n d_in"], k: int, guess: float) -> Codes:
    """Codes of the n * k largest positive pre-activations of the whole batch, exact for any `guess`.

    A flat top-k over n * d_sae numbers takes longer than the rest of the step. So values below `SLACK * guess` are
    dropped while each chunk is in the cache, and the selection runs over the few that remain. If fewer than n * k
    remain, the filter was too high: it is re-estimated from a sample, and finally set to 0.

    Args:
        guess: estimate of the smallest value to keep, e.g. that of the last batch; 0: no estimate.
    """
    n, total = len(x), len(x) * k
    codes = encode_above(x, sae.W_enc, sae.b_enc, sae.scratch, floor=SLACK * guess) if guess > 0 else None
    if codes is None or len(codes.value) < total:
        codes = encode_above(x, sae.W_enc, sae.b_enc, sae.scratch, floor=_sampled(sae, x, 1.3 * k))
        assert codes is not None
    if len(codes.value) < total:
        codes = encode_above(x, sae.W_enc, sae.b_enc, sae.scratch, floor=0.0)
        assert codes is not None
    keep = largest(codes.value, total).nonzero().view(-1)
    return Codes.from_rows(codes.rows[keep], codes.feature[keep], codes.value[keep], n, sae.d_sae)


def _sampled(sae: SAE, x: Tensor, k: float) -> float:
    """Non-negative threshold exceeded by about `k` pre-activations per vector, estimated from up to 64 vectors."""
    rows = x[:: max(1, len(x) // 64)][:64]
    h = torch.addmm(sae.b_enc, rows, sae.W_enc).view(-1)
    n = min(len(h), max(1, round(k * len(rows))))
    return max(0.0, float(h.topk(n, sorted=False).values.min()))
