"""The lean step: forward and gradient of an SAE from its sparse codes, never densifying them. CPU; no autograd.

Where the active values are the pre-activations themselves (ReLU, TopK, BatchTopK), four of the five dense matmuls of
a step vanish: decoding is `embedding_bag` over the active decoder rows, and the weight gradients are `embedding_bag`
once more over the TRANSPOSED codes (features as bags, vectors as members), which takes a sort of the entries instead
of an `index_add` over [n, k, d]. Exact: agrees with float64 autograd. Summation order is fixed, so results repeat.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saev_core.sae.codes import Codes

ROWS = 1024
"""Rows encoded at a time: their pre-activations (25 MB at d_sae 6144) stay near the cache; below 1024 matmuls slow down."""
DENSE_ROWS = 2048
"""Rows of a dense step at a time: its matmuls are 2 % faster than in chunks of `ROWS`, and more rows gain nothing."""
_PROBE = 64
"""Rows that tell whether a batch is dense: a matmul over a whole chunk, thrown away, was a tenth of the dense step."""
SPARSE_BELOW = 0.1
"""Density under which sparse codes beat dense matmuls for ReLU (measured: equal at about a tenth)."""


class Workspace:
    """Buffers that outlive a step: a fresh 100 MB tensor costs 30-40 ms of page faults. One may serve many SAEs in turn.

    Each thread has its own, so that a viewer may ask one SAE from several.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self.bf16 = False
        """Encode in bfloat16, on a CPU that has matmuls for it two to four times as fast; set by the trainer around a step."""

    def encoder(self, W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"]) -> Callable[[Tensor], Tensor]:
        """What takes rows to pre-activations x W_enc + b_enc, in a buffer that the next rows overwrite."""
        m = W_enc.shape[1]
        if not self.bf16 or W_enc.is_cuda:
            return lambda rows: torch.addmm(b_enc, rows, W_enc, out=self.get("pre", (len(rows), m), rows))
        half = W_enc.new_empty(0, dtype=torch.bfloat16)
        W, b = self.get("W_enc16", tuple(W_enc.shape), half).copy_(W_enc), b_enc.to(torch.bfloat16)

        def encode(rows: Tensor) -> Tensor:
            shape = (len(rows), m)
            pre = torch.addmm(b, rows.to(torch.bfloat16), W, out=self.get("pre16", shape, half))
            return self.get("pre", shape, rows).copy_(pre)

        return encode

    def get(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor of `shape`, with the dtype and device of `like`; the same memory at every call."""
        size = math.prod(shape)
        buffers: dict[str, Tensor] = self._local.__dict__
        buffer = buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != like.dtype or buffer.device != like.device:
            buffer = buffers[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return buffer[:size].view(shape)

    def __deepcopy__(self, memo: object) -> Workspace:
        return Workspace()

    def __reduce__(self) -> tuple[type[Workspace], tuple[()]]:
        return Workspace, ()


def top_k(h: Float[Tensor, "n m"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """The k largest of each row and their columns, in no order.

    Exact and several times faster than `torch.topk` on wide rows: the k largest elements lie in the k groups with the
    largest maxima (columns j, j + g, j + 2g, ... are one group, so that the maxima vectorise); columns that no group
    holds are candidates as well.
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
    x: Float[Tensor, "n d_in"], W_enc: Float[Tensor, "d_in d_sae"], b_enc: Float[Tensor, " d_sae"], k: int, work: Workspace
) -> Codes:
    """Codes of the k largest ReLU'd pre-activations of each vector, `ROWS` rows at a time."""
    n, m = len(x), W_enc.shape[1]
    value, feature = x.new_empty(n, k), torch.empty(n, k, dtype=torch.long, device=x.device)
    encode = work.encoder(W_enc, b_enc)
    for a in range(0, n, ROWS):
        h = encode(x[a : a + ROWS])
        value[a : a + ROWS], feature[a : a + ROWS] = top_k(h, k)
    return Codes.from_topk(feature, value.clamp_min_(0), m)


@torch.no_grad()
def encode_above(
    x: Float[Tensor, "n d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    work: Workspace,
    *,
    floor: float | Float[Tensor, " d_sae"] = 0.0,
    below: float = 1.0,
) -> Codes | None:
    """Codes of the pre-activations above `floor` (0: ReLU), one for all features or one each, `ROWS` rows at a time.

    None if the first rows are denser than `below`. Looking at groups of columns by their maximum first was no faster.
    """
    m = W_enc.shape[1]
    row, feature, value = [], [], []
    encode = work.encoder(W_enc, b_enc)
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
