"""Encode directly to sparse codes, a chunk of rows at a time, so that pre-activations stay in the cache. No autograd."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saev_core.sae.codes import Codes
from saev_core.sae.scratch import Scratch

ROWS = 1024
"""Rows per encoding chunk: their pre-activations (25 MB at d_sae 6144) stay near the cache; below 1024 matmuls slow down."""
DENSE_ROWS = 2048
"""Rows per chunk of a dense step: its matmuls are 2 % faster than in chunks of `ROWS`, with no gain from more rows."""
_PROBE = 64
"""Rows used to detect a dense batch: discarding the matmul of a whole chunk took a tenth of the dense step."""
SPARSE_BELOW = 0.1
"""Density below which sparse codes are faster than dense matmuls for ReLU (measured: equal at about a tenth)."""


def top_k(h: Float[Tensor, "n m"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k largest values of each row and their columns, unsorted.

    Exact and several times faster than `torch.topk` on wide rows: the k largest elements are in the k groups with the
    largest maxima (columns j, j + g, j + 2g, ... form a group, so that the maxima vectorise); columns outside all groups
    are candidates as well.
    """
    n, m = h.shape
    members = max(1, round((m / k) ** 0.5))
    groups = m // members
    if members < 4 or groups <= 2 * k or h.is_cuda:
        value, index = h.topk(k, dim=-1, sorted=False)
        return value, index
    grouped = h[:, : members * groups].view(n, members, groups)  # [n, members, groups]
    best = grouped.amax(1).topk(k, dim=-1, sorted=False).indices  # [n, k]
    step = torch.arange(0, members * groups, groups, device=h.device)
    index = (best.unsqueeze(1) + step[:, None]).view(n, -1)  # [n, members * k]
    if tail := m - members * groups:
        rest = torch.arange(m - tail, m, device=h.device).expand(n, tail)
        index = torch.cat([index, rest], 1)
    value, place = h.gather(1, index).topk(k, dim=-1, sorted=False)
    return value, index.gather(1, place)


def encode_top_k(
    x: Float[Tensor, "n d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"], k: int, scratch: Scratch
) -> Codes:
    """Codes of the k largest ReLU'd pre-activations of each vector, `ROWS` rows at a time."""
    n, m = len(x), W_enc.shape[1]
    value, feature = x.new_empty(n, k), torch.empty(n, k, dtype=torch.long, device=x.device)
    encode = scratch.encoder(W_enc, b_enc)
    for a in range(0, n, ROWS):
        h = encode(x[a : a + ROWS])
        value[a : a + ROWS], feature[a : a + ROWS] = top_k(h, k)
    return Codes.from_topk(feature, value.clamp_min_(0), m)


@torch.no_grad()
def encode_above(
    x: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    scratch: Scratch,
    *,
    floor: float | Float[Tensor, " d_sae"] = 0.0,
    below: float = 1.0,
) -> Codes | None:
    """Codes of the pre-activations above `floor` (0: ReLU), a single threshold or one per feature, `ROWS` rows at a time.

    None if the first rows are denser than `below`. Filtering groups of columns by their maximum first was not faster.
    """
    m = W_enc.shape[1]
    row, feature, value = [], [], []
    encode = scratch.encoder(W_enc, b_enc)
    for a, stop in pairwise([0, *range(_PROBE if below < 1 else ROWS, len(x), ROWS), len(x)]):
        h = encode(x[a:stop])
        flat = (h > floor).view(-1).nonzero().view(-1)
        if a == 0 and len(flat) > below * h.numel():
            return None
        r = torch.div(flat, m, rounding_mode="floor")
        value.append(h.view(-1)[flat])
        feature.append(flat - r * m)
        row.append(r + a)
    return Codes.from_rows(torch.cat(row), torch.cat(feature), torch.cat(value), len(x), m)
