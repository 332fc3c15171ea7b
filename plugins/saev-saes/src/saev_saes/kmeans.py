"""`kmeans`: reconstruct every vector as its nearest centroid. A baseline."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from saev_core import Codes, SAEConfig
from saev_core.errors import ConfigError
from saev_core.sae.kernels import ROWS
from saev_saes.fitted import Fitted


class KMeansConfig(SAEConfig):
    """Options of `kmeans`; `d_sae` is the number of centroids."""

    n_iter: int = Field(default=10, ge=0)
    """Passes of Lloyd's algorithm over the initial sample."""
    normalize_w_dec: bool = False
    """Must be false: rows are centroids and keep their length."""


class KMeans(Fitted):
    """f = one-hot of argmin_j |x - b_dec - w_j|, x_hat = w_j + b_dec; loss = mean |x - x_hat|^2.

    Rows w_j of W_dec are centroids relative to b_dec, the mean of the first sample; every f is 0 or 1, L0 is 1. Training starts
    with Lloyd's algorithm on that sample, then updates from every batch: a centroid with c_j assigned vectors so far moves by

        c_j += m_j,  w_j += sum (x - b_dec - w_j) / c_j  over the m_j vectors of the batch that are nearest to it.

    Source: Sculley 2010, Web-Scale K-Means Clustering. https://doi.org/10.1145/1772690.1772862
    Initialisation: Arthur and Vassilvitskii 2007, k-means++. https://theory.stanford.edu/~sergei/papers/kMeansPP-soda.pdf
    """

    Config: ClassVar[type[SAEConfig]] = KMeansConfig
    cfg: KMeansConfig
    seen: Tensor

    def __init__(self, cfg: KMeansConfig, generator: torch.Generator | None = None) -> None:
        """Raises ConfigError if normalize_w_dec is set."""
        super().__init__(cfg, generator)
        if cfg.normalize_w_dec:
            raise ConfigError("rows of k-means are centroids and cannot be normalised; remove sae.normalize_w_dec.")
        self.register_buffer("seen", torch.zeros(self.d_sae, dtype=torch.float64))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """1 at the nearest centroid, 0 elsewhere."""
        self.check_width(x)
        return F.one_hot(nearest(x.reshape(-1, self.d_in) - self.b_dec, self.W_dec)[0], self.d_sae).to(x.dtype).view(*x.shape[:-1], -1)

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "n d_in"]) -> Codes:
        self.check_width(x)
        feature = nearest(x - self.b_dec, self.W_dec)[0][:, None]
        return Codes.from_topk(feature, torch.ones_like(feature, dtype=x.dtype), self.d_sae)

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "n d_in"], generator: torch.Generator) -> None:
        """Run Lloyd's algorithm on the sample, regardless of `cfg.data_init`."""
        self.b_dec.copy_(x.double().mean(0))
        rows, count = centroids(x - self.b_dec, self.d_sae, generator, self.cfg.n_iter)
        self.W_dec.copy_(rows)
        self.seen.copy_(count)

    def learn(self, x: Float[Tensor, "n d_in"], progress: object) -> None:
        x = x - self.b_dec
        total, count = totals(x, nearest(x, self.W_dec)[0], self.d_sae)
        self.seen += count
        on = count > 0
        self.W_dec[on] += ((total[on] - count[on, None] * self.W_dec[on]) / self.seen[on, None]).to(x.dtype)


def nearest(x: Float[Tensor, "n d_in"], rows: Float[Tensor, "m d_in"]) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """The row nearest to each vector, and the squared distance to it."""
    bias = rows.square().sum(1) / -2
    parts = [torch.addmm(bias, x[a : a + ROWS], rows.T).max(1) for a in range(0, max(len(x), 1), ROWS)]
    value, index = torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
    return index, (x.square().sum(1) - 2 * value).clamp_min_(0)


def totals(x: Float[Tensor, "n d_in"], index: Int[Tensor, " n"], m: int) -> tuple[Float[Tensor, "m d_in"], Float[Tensor, " m"]]:
    """Sum and number of the vectors of each row, in float64."""
    total = torch.zeros(m, x.shape[1], dtype=torch.float64, device=x.device).index_add_(0, index, x.double())
    return total, torch.bincount(index, minlength=m).double()


@torch.no_grad()
def centroids(
    x: Float[Tensor, "n d_in"], m: int, generator: torch.Generator, n_iter: int = 10
) -> tuple[Float[Tensor, "m d_in"], Float[Tensor, " m"]]:
    """`m` centroids from `n_iter` passes of Lloyd's algorithm after k-means++, and the number of vectors assigned to each.

    A centroid that loses all its vectors is moved to one of the worst represented vectors. If there are fewer
    vectors than centroids, some centroids are equal.
    """
    rows = _spread(x, m, generator)
    for _ in range(n_iter):
        index, far = nearest(x, rows)
        total, count = totals(x, index, m)
        rows = (total / count.clamp_min(1)[:, None]).to(x.dtype)
        empty = (count == 0).nonzero().view(-1)[: len(x)]
        rows[empty] = x[far.topk(len(empty)).indices]
    return rows, totals(x, nearest(x, rows)[0], m)[1]


def _spread(x: Float[Tensor, "n d_in"], m: int, generator: torch.Generator) -> Float[Tensor, "m d_in"]:
    """k-means++ on a subset of the vectors: each row is drawn in proportion to its squared distance to the previous rows."""
    order = torch.randperm(len(x), generator=generator)[: max(4 * m, 4096)].to(x.device)
    x = x[order]
    lengths = x.square().sum(1)
    picks = [0]
    distance = torch.full_like(lengths, torch.inf)
    for _ in range(1, m):
        last = x[picks[-1]]
        distance = torch.minimum(distance, (lengths - 2 * (x @ last) + last.square().sum()).clamp_min_(0))
        # Sample by inverting the cumulative sum: torch.multinomial needs a generator on the device of its weights.
        reach = distance.double().cumsum(0)
        at = torch.rand((), dtype=torch.float64, generator=generator) * reach[-1].cpu()
        picks.append(min(int(torch.searchsorted(reach, at.to(reach.device), right=True)), len(x) - 1))
    return x[torch.tensor(picks, device=x.device)]
