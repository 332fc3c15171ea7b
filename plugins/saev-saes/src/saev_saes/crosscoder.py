"""`crosscoder`: one set of features for several sites of the model, with one decoder per site."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from saev_core import Codes, Progress, SAEConfig, Step
from saev_core.errors import ConfigError
from saev_core.sae.kernels import SPARSE_BELOW, encode_above, encode_top_k
from saev_core.sae.lean_step import backward_codes
from saev_core.sae.topk import TopK, TopKConfig

EXCLUSIVE = 0.9
"""Minimum share of a feature's decoder lengths at one site for it to count as exclusive to that site."""
SHARED = 0.8
"""A feature is shared if each site's share is at least this fraction of an equal share."""


class CrosscoderConfig(TopKConfig):
    """Options of `crosscoder`."""

    main = "k"

    activation: Literal["topk", "relu"] = "topk"
    """Selection of features: the k largest of each vector, or all positive ones under an L1 penalty."""
    sparsity_coeff: float = Field(default=0.1, ge=0)
    """For `relu`: sparsity coefficient c, c sqrt(d_in) times the weighted sum of the features."""
    n_sparsity_warmup: int = Field(default=500, ge=0)
    """For `relu`: steps over which the coefficient rises from 0, at most a tenth of the run."""


@dataclass(frozen=True)
class BySite:
    """A crosscoder's decoders, one per site."""

    W_dec: Float[Tensor, "n_sites d_sae d_model"]
    share: Float[Tensor, "n_sites d_sae"]
    """Length of a feature's row at a site over the sum of its rows' lengths: the relative norm of Lindsey et al."""

    @property
    def exclusive(self) -> Bool[Tensor, "n_sites d_sae"]:
        """Features exclusive to one site: at least `EXCLUSIVE` of their length is there."""
        return self.share >= EXCLUSIVE

    @property
    def shared(self) -> Bool[Tensor, " d_sae"]:
        """Features shared by all sites: no site's share is below `SHARED` of an equal share."""
        return (self.share >= SHARED / len(self.share)).all(0)


class Crosscoder(TopK):
    """x_hat = f W_dec + b_dec over all sites at once, each with its own columns of W_dec; loss = mean |x - x_hat|^2 + auxk d_in AuxK.

    A vector joins the same token at all sites, each normalised to the same scale, and all sites share f. Feature j has the weight

        w_j = sum over sites s of |W_dec[j, s]|

    f = the k of relu(h), h = x W_enc + b_enc, with the largest h_j w_j, i.e. selected by their output instead of their activation
    (`topk`, after Minder et al., who select over a batch; here per vector, so that training and inference agree). Or f = relu(h),
    and c sqrt(d_in) mean sum_j f_j w_j is added to the loss, with gradients for both (`relu`, Lindsey et al.): a feature
    pays less for one site than for all, which keeps features of a single site separate.

    Rows are of length 1 over all sites together, so w_j is 1 (all at one site) to sqrt(n_sites).

    Sources: Lindsey et al. 2024, Sparse Crosscoders. https://transformer-circuits.pub/2024/crosscoders/index.html
    TopK: Minder et al. 2025, Overcoming sparsity artifacts in crosscoders. https://arxiv.org/abs/2504.02922
    """

    Config: ClassVar[type[SAEConfig]] = CrosscoderConfig
    cfg: CrosscoderConfig

    def __init__(self, cfg: CrosscoderConfig, generator: torch.Generator | None = None) -> None:
        """Raises ConfigError if the vectors do not join several sites, or k exceeds d_sae."""
        if cfg.n_sites < 2:
            raise ConfigError(
                "a crosscoder needs several sites, but read.layer names one; give two or more recorded blocks, such as --layer 6,10."
            )
        super().__init__(cfg, generator)

    def lengths(self) -> Float[Tensor, "d_sae n_sites"]:
        """|W_dec[j, s]|, differentiable."""
        lengths: Tensor = torch.linalg.vector_norm(self._blocks(), dim=2)
        return lengths

    def _blocks(self) -> Float[Tensor, "d_sae n_sites d_model"]:
        return self.W_dec.reshape(self.d_sae, self.cfg.n_sites, -1)

    def by_site(self) -> BySite:
        """The decoder of each site, and the distribution of each feature over the sites."""
        W_dec = self._blocks().detach().transpose(0, 1)
        lengths = self.lengths().detach().T
        return BySite(W_dec, lengths / lengths.sum(0).clamp_min(1e-12))

    def facts(self) -> dict[str, Any]:
        """Share of features exclusive to each site, one number per site, and share of features shared by all sites."""
        split = self.by_site()
        return {"exclusive": split.exclusive.double().mean(1).tolist(), "shared": float(split.shared.double().mean())}

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations; with `topk` all but the k of largest weighted value are zero."""
        f = self.pre(x).relu()
        if self.cfg.activation == "relu":
            return f
        index = (f.detach() * self.lengths().detach().sum(1)).topk(self.k, dim=-1, sorted=False).indices
        return torch.zeros_like(f).scatter(-1, index, f.gather(-1, index))

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "n d_in"]) -> Codes:
        self.check_width(x)
        if self.cfg.activation == "relu":
            codes = encode_above(x, self.W_enc, self.b_enc, self.scratch)
            assert codes is not None
            return codes
        weight = self.lengths().sum(1)
        W_enc = torch.mul(self.W_enc, weight, out=self.scratch.get("weighted", tuple(self.W_enc.shape), x))
        codes = encode_top_k(x, W_enc, self.b_enc * weight, self.k, self.scratch)
        return replace(codes, value=codes.value.div_(weight[codes.feature]))

    def weight(self, progress: Progress) -> float:
        """Coefficient of the weighted sum of the features, including the warm-up."""
        n = min(self.cfg.n_sparsity_warmup, progress.n_steps // 10)
        return self.cfg.sparsity_coeff * math.sqrt(self.d_in) * progress.warmup(n, self.cfg.warmup_shape)

    def loss(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        step = super().loss(x, progress)
        if self.cfg.activation == "topk":
            return step
        assert isinstance(step.z, Tensor)
        return replace(step, loss=step.loss + (step.z @ self.lengths().sum(1)).mean() * self.weight(progress))

    @torch.no_grad()
    def backward_lean(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        if self.cfg.activation == "topk":
            return super().backward_lean(x, progress)
        codes = encode_above(x, self.W_enc, self.b_enc, self.scratch, below=SPARSE_BELOW)
        if codes is None:
            return self.backward_autograd(x, progress)
        weight, lengths = self.weight(progress) / len(x), self.lengths()
        each = lengths.sum(1)[codes.feature]
        error, x_hat = backward_codes(self, x, codes, each * weight)
        # The penalty's gradient by W_dec: each site's row, normalised, times the sum of the feature's values.
        total = torch.bincount(codes.feature, weights=codes.value, minlength=self.d_sae) * weight
        rows = self._blocks() / lengths.clamp_min(1e-12)[:, :, None]
        by_row = self.W_dec.grad
        assert by_row is not None
        by_row.addcmul_(rows.flatten(1), total.to(x.dtype)[:, None])
        step = Step(error + codes.value @ each * weight, x_hat, codes, {"mse": float(error)})
        return self.add_auxk(x, step, progress)


__all__ = ["BySite", "Crosscoder", "CrosscoderConfig"]
