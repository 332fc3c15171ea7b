"""Sparse codes chosen by a threshold: per feature (JumpReLU), or one for a whole batch that is found on the way (BatchTopK)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from saev_core.codes import Codes
from saev_core.kernels import ROWS
from saev_core.sae import SAE

SLACK = 0.85
"""The pre-filter stands at this share of the last batch's threshold: batches differ less than that."""

MEMBERS = 16
"""Columns whose maximum the pre-filter looks at first; most groups hold nothing above it."""


@torch.no_grad()
def encode_above(sae: SAE, x: Float[Tensor, "n d_in"], floor: Float[Tensor, " d_sae"], below: float = 1.0) -> Codes | None:
    """Codes of the pre-activations above each feature's `floor`; None if the first rows are denser than `below`."""
    m = sae.d_sae
    row, feature, value = [], [], []
    for a, h in _chunks(sae, x):
        flat = (h > floor).view(-1).nonzero().view(-1)
        if a == 0 and len(flat) > below * h.numel():
            return None
        r = torch.div(flat, m, rounding_mode="floor")
        value.append(h.view(-1)[flat])
        feature.append(flat - r * m)
        row.append(r + a)
    if not row:
        none = torch.empty(0, dtype=torch.long, device=x.device)
        return Codes.from_rows(none, none, x.new_empty(0), 0, m)
    return Codes.from_rows(torch.cat(row), torch.cat(feature), torch.cat(value), len(x), m)


def largest(value: Float[Tensor, " m"], n: int, place: Int[Tensor, " m"] | None = None) -> Bool[Tensor, " m"]:
    """Which are the `n` largest positive values; of equal ones those with the lowest `place` (by default: the first)."""
    if n >= len(value):
        return value > 0
    kth = value.topk(n, sorted=False).values.min()
    if kth <= 0:
        return value > 0
    keep = value > kth
    ties = (value == kth).nonzero().view(-1)
    if place is not None:
        ties = ties[place[ties].argsort()]
    keep[ties[: n - int(keep.sum())]] = True
    return keep


@torch.no_grad()
def encode_batch_top_k(sae: SAE, x: Float[Tensor, "n d_in"], k: int, guess: float) -> Codes:
    """Codes of the n * k largest positive pre-activations of the whole batch, exactly, whatever the `guess`.

    A flat top-k over n * d_sae numbers takes longer than all the rest of a step. So what lies below `SLACK * guess` is
    dropped while each chunk is in the cache, and the selection runs over the few that are left. If fewer than n * k
    are, the filter was too high: it is set again from a sample, and at last to 0.

    Args:
        guess: about the smallest value that will be kept, as the last batch's; 0 where there was none.
    """
    n, m = len(x), sae.d_sae
    total = n * k
    filters: list[float | None] = [None, 0.0]
    if guess > 0:
        filters.insert(0, SLACK * guess)
    for low in filters:
        row, feature, value = _survivors(sae, x, low, min(1.0, 1.3 * k / m))
        if len(value) >= total:
            break
    keep = largest(value, total, row * m + feature).nonzero().view(-1)
    return Codes.from_rows(row[keep], feature[keep], value[keep], n, m)


def _survivors(sae: SAE, x: Tensor, low: float | None, share: float) -> tuple[Int[Tensor, " s"], Int[Tensor, " s"], Float[Tensor, " s"]]:
    """Row, feature and value of all pre-activations above `low`, rows ascending, in an order that does not depend on `low`.

    Args:
        low: None sets it so that about `share` of the first rows pass.
    """
    m = sae.d_sae
    members = math.gcd(m, MEMBERS)
    groups = m // members
    step = torch.arange(0, m, groups, device=x.device)
    row, feature, value = [], [], []
    for a, h in _chunks(sae, x):
        if low is None:
            sample = h[:: max(1, len(h) // 64)].reshape(-1)
            n_pass = max(1, round(share * len(sample)))
            low = max(0.0, float(sample.topk(n_pass, sorted=False).values.min()))
        best = h.view(len(h), members, groups).amax(1)
        place = (best > low).view(-1).nonzero().view(-1)
        r = torch.div(place, groups, rounding_mode="floor")
        column = (place - r * groups)[:, None] + step  # [p, members]
        flat = (r * m)[:, None] + column
        v = h.view(-1)[flat]
        inside = (v > low).view(-1).nonzero().view(-1)
        value.append(v.view(-1)[inside])
        feature.append(column.view(-1)[inside])
        row.append(r[torch.div(inside, members, rounding_mode="floor")] + a)
    return torch.cat(row), torch.cat(feature), torch.cat(value)


def _chunks(sae: SAE, x: Tensor) -> Iterator[tuple[int, Tensor]]:
    """First row and pre-activations of `ROWS` rows at a time, in one buffer."""
    for a in range(0, len(x), ROWS):
        rows = x[a : a + ROWS]
        out = sae.work.get("pre", (len(rows), sae.d_sae), x)
        yield a, torch.addmm(sae.b_enc, rows, sae.W_enc, out=out)
