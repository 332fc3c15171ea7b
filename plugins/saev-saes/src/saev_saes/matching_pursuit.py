"""`mp`: matching pursuit; features are selected one after another, each on the residual of the previous ones."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from pydantic import PositiveInt
from torch import Tensor

from saev_core import SAE, Codes, Progress, SAEConfig, Step
from saev_core.config.words import Auto, settled
from saev_core.errors import ConfigError
from saev_core.sae.config import k_of_width
from saev_core.sae.kernels import ROWS
from saev_core.sae.lean_step import grad

GRAM_WIDTH = 8192
"""Largest d_sae for which the inner products [d_sae, d_sae] are kept in memory (256 MB in float32)."""


class MatchingPursuitConfig(SAEConfig):
    """Options of `mp`."""

    main = "k"
    at_most_width = ("k",)

    k: Auto[PositiveInt] = "auto"
    """Steps of the pursuit: at most so many features are active per vector; `auto`: one in 64, from 8 to 32."""

    def sized(self, d_in: int, n_vectors: int = 0) -> Self:
        """As `SAEConfig.sized`, with `k` resolved too, as for `topk`."""
        cfg = super().sized(d_in, n_vectors)
        return cfg.model_copy(update={"k": k_of_width(settled(cfg.d_sae))}) if cfg.k == "auto" else cfg


class MatchingPursuit(SAE):
    """k steps of matching pursuit on r_0 = x - b_dec with unit rows d_j of W_dec:

        j_t = argmax_j <d_j, r_{t-1}>,  v_t = relu(<d_{j_t}, r_{t-1}>),  f_{j_t} += v_t,  r_t = r_{t-1} - v_t d_{j_t}

    and loss = mean |r_k|^2, where r_k = x - x_hat. There are no encoder weights. Every r_t is orthogonal to the last
    selected row, so |r_t| never grows. The hand-written gradient goes through all steps (not through the choice of j_t):
    with g_k = 2 r_k / n, from the last step to the first, s_t = <d_{j_t}, g_t>,

        dL/dd_{j_t} -= v_t g_t + s_t r_{t-1},  g_{t-1} = g_t - s_t d_{j_t},  and dL/db_dec = - sum g_0.

    If a vector has no positive inner product left, its pursuit ends early.

    Source: Costa et al. 2025, From Flat to Hierarchical: Extracting Sparse Representations with Matching Pursuit,
    section 4. https://arxiv.org/abs/2506.03093
    """

    Config: ClassVar[type[SAEConfig]] = MatchingPursuitConfig
    tied = True
    cfg: MatchingPursuitConfig

    def __init__(self, cfg: MatchingPursuitConfig, generator: torch.Generator | None = None) -> None:
        """Raises ConfigError if k exceeds d_sae, or rows are not normalised."""
        cfg = cfg.sized(cfg.d_in) if cfg.k == "auto" else cfg
        super().__init__(cfg, generator)
        self.k = settled(cfg.k)
        if self.k > self.d_sae:
            raise ConfigError(f"sae.k is {self.k}, but there are only {self.d_sae} features; lower k or raise sae.d_sae.")
        if not cfg.normalize_w_dec:
            raise ConfigError("matching pursuit needs decoder rows of length 1; remove sae.normalize_w_dec.")

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations of k steps, differentiable; a feature selected twice has the sum."""
        self.check_width(x)
        r = x - self.b_dec
        z = x.new_zeros(*x.shape[:-1], self.d_sae)
        for _ in range(self.k):
            value, feature = (r @ self.W_dec.T).max(-1, keepdim=True)
            value = value.relu().to(x.dtype)  # the matmul has lower precision under autocast
            z = z.scatter_add(-1, feature, value)
            r = r - value * self.W_dec[feature.squeeze(-1)]
        return z

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "n d_in"]) -> Codes:
        self.check_width(x)
        feature, value = self.pursue(x)
        return self._merge(feature, value)

    def pursue(self, x: Float[Tensor, "n d_in"]) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
        """Features in the order of selection, and the value each step added; 0 after the pursuit's end.

        With precomputed inner products of the rows, a step costs one row of them per vector instead of a matmul with W_dec:
        at d_in 384, d_sae 6144, k 32 a batch of 4096 takes 6 to 9 times one encode matmul instead of 32 times.
        """
        n, k, m = len(x), self.k, self.d_sae
        D = self.W_dec.detach()
        feature = torch.empty(n, k, dtype=torch.long, device=x.device)
        value = x.new_empty(n, k)
        gram = D @ D.T if m <= GRAM_WIDTH and m <= n * (k - 1) // 2 else None
        for a in range(0, n, ROWS):
            r = x[a : a + ROWS] - self.b_dec.detach()
            shape = (len(r), m)
            h = torch.mm(r, D.T, out=self.scratch.get("pre", shape, x))
            for t in range(k):
                v, j = h.max(1)
                v.clamp_min_(0)
                feature[a : a + ROWS, t], value[a : a + ROWS, t] = j, v
                if t + 1 == k:
                    break
                if gram is None:
                    r -= v[:, None] * D[j]
                    torch.mm(r, D.T, out=h)
                else:
                    rows = torch.index_select(gram, 0, j, out=self.scratch.get("slope", shape, x))
                    h.addcmul_(rows, v[:, None], value=-1)
        return feature, value

    def _merge(self, feature: Int[Tensor, "n k"], value: Float[Tensor, "n k"]) -> Codes:
        """Codes in which every feature occurs once."""
        feature, order = feature.sort(dim=1, stable=True)
        new = feature[:, 1:] != feature[:, :-1]
        place = torch.cat([new.new_zeros(len(feature), 1), new], 1).cumsum(1)  # [n, k]: which distinct feature of the row
        total = torch.zeros_like(value).scatter_add_(1, place, value.gather(1, order))
        return Codes.from_topk(torch.zeros_like(feature).scatter_(1, place, feature), total, self.d_sae)

    def backward(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        return self.backward_autograd(x, progress) if x.is_cuda else self._backward(x)

    @torch.no_grad()
    def _backward(self, x: Float[Tensor, "n d_in"]) -> Step:
        n, D = len(x), self.W_dec.detach()
        self.check_width(x)
        feature, value = self.pursue(x)
        codes = self._merge(feature, value)
        x_hat = codes.decode(D, self.b_dec.detach())
        r = x - x_hat  # r_k, then going backwards r_{k-1}, ..., r_0
        error = r.square().sum() / n
        g = r * (2 / n)
        dD = grad(self.W_dec).zero_()
        for t in reversed(range(self.k)):
            j, v = feature[:, t], value[:, t : t + 1]
            rows = D[j]  # [n, d_in]
            s = torch.linalg.vecdot(rows, g)[:, None] * (v > 0)
            r.addcmul_(rows, v)
            dD.index_add_(0, j, (v * g).addcmul_(r, s), alpha=-1)
            g.addcmul_(rows, s, value=-1)
        torch.sum(g, 0, out=grad(self.b_dec)).neg_()
        return Step(error, x_hat, codes, {"mse": float(error)})
