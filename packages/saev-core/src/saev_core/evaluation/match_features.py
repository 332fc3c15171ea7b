"""One-to-one matching of the rows of two dictionaries that maximises the sum of cosines."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

EXACT = 2048
"""Number of rows up to which every pair is considered. Memory grows quadratically and time cubically: 4,096 rows take twelve
times as long as with candidates, 24,576 would need 4.8 GB."""
CANDIDATES = 32
"""Candidate partners of each row of either side for larger dictionaries. For dictionaries of 4,096 rows, half of them shared, the
sum of cosines is 1e-5 below the exact one; with 8 candidates, 3e-3."""
BLOCK = 1024
"""Rows per block of cosines in memory."""


@torch.no_grad()
def match(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, exact: int = EXACT, candidates: int = CANDIDATES
) -> tuple[Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """For each row of `a` its partner in `b` (-1: none) and their cosine (0: none).

    The one-to-one matching with the largest sum of cosines; rows with only cosines of 0 or less stay
    unmatched. Exact if both sides have at most `exact` rows. Larger dictionaries are matched exactly among the `candidates`
    nearest rows of each row of both sides; cosines are then computed in blocks and never held in memory all at once.

    Source: Kuhn 1955, The Hungarian method for the assignment problem; for candidates Jonker and Volgenant 1987, in scipy's
    sparse form. Matched cosine of dictionaries: Fel et al. 2025, Archetypal SAE. https://arxiv.org/abs/2502.12892
    """
    from scipy.optimize import linear_sum_assignment

    a, b = (F.normalize(rows.detach().float(), dim=1) for rows in (a, b))
    partner, cosine = np.full(len(a), -1), np.zeros(len(a), np.float32)
    if len(a) == 0 or len(b) == 0:
        return partner, cosine
    if max(len(a), len(b)) <= exact:
        near = (a @ b.T).clamp_(0, 1).cpu().numpy()
        row, column = linear_sum_assignment(near, maximize=True)
        value = near[row, column]
    else:
        row, column, value = _sparse(a, b, candidates)
    real = value > 0
    partner[row[real]], cosine[row[real]] = column[real], value[real]
    return partner, cosine


def _sparse(a: Tensor, b: Tensor, candidates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, partners and cosines of the best matching among candidates."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import min_weight_full_bipartite_matching

    n, m = len(a), len(b)
    row, column, value = (
        np.concatenate(each) for each in zip(_nearest(a, b, candidates), _nearest(b, a, candidates, swap=True), strict=True)
    )
    # A pair may be found from both sides, with cosines that differ by rounding.
    _, once = np.unique(row * m + column, return_index=True)
    row, column, value = row[once], column[once], value[once]
    # Each row also gets a private column with cosine 0, so that a full matching exists and none is forced. Costs are 2 - cosine,
    # because an entry of 0 would count as absent.
    own = np.arange(n)
    entries = (np.concatenate([row, own]), np.concatenate([column, m + own]))
    cost = csr_array((np.concatenate([2 - value, np.full(n, 2.0)]), entries), shape=(n, m + n))
    rows, columns = min_weight_full_bipartite_matching(cost)
    columns = np.asarray(columns)
    taken = columns < m
    rows, columns = np.asarray(rows)[taken], columns[taken]
    return rows, columns, (a[rows] * b[columns]).sum(1).clamp_max_(1).cpu().numpy()


def _nearest(a: Tensor, b: Tensor, candidates: int, *, swap: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row of `a` its nearest rows of `b` with positive cosine: rows, columns, cosines; the first two swapped if `swap`."""
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(a), BLOCK):
        near, at = (a[start : start + BLOCK] @ b.T).clamp_max_(1).topk(min(candidates, len(b)), dim=1)
        row = torch.arange(start, start + len(near), device=a.device)[:, None].expand_as(at)
        keep = near > 0
        one, other, value = (part[keep].cpu().numpy() for part in (row, at, near))
        found.append((other, one, value.astype(np.float64)) if swap else (one, other, value.astype(np.float64)))
    one, other, value = (np.concatenate(part) for part in zip(*found, strict=True))
    return one, other, value
