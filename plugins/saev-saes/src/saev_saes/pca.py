"""`pca`: the directions of largest variance, each as two features, one per sign. A baseline."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from jaxtyping import Float
from pydantic import PositiveInt
from torch import Tensor

from saev_core import Progress, SAEConfig
from saev_core.config.words import Auto, settled
from saev_core.errors import ConfigError
from saev_saes.fitted import Fitted

REFIT = 100
"""Steps between eigendecompositions, which cost far more than adding a batch."""


class PCAConfig(SAEConfig):
    """Options of `pca`."""

    main = "k"
    at_most_width = ("k",)

    k: Auto[PositiveInt] = "auto"
    """Components, at most `d_in`: `d_sae` is 2 k, of which k are active per vector; `auto`: half of `d_sae`, or 32 where that is
    `auto`, too."""

    def sized(self, d_in: int, n_vectors: int = 0) -> Self:
        """As `SAEConfig.sized`, with `k` and `d_sae` = 2 k resolved, independent of the number of vectors.

        Raises:
            ConfigError: k exceeds `d_in`, or `d_sae` is not 2 k.
        """
        k: int = self._components(d_in) if self.k == "auto" else self.k
        if k > d_in:
            raise ConfigError(f"sae.k is {k}, but activations of width {d_in} have only {d_in} components; lower sae.k.")
        if self.d_sae not in ("auto", 2 * k):
            raise ConfigError(f"pca has 2 sae.k = {2 * k} features, not {self.d_sae}; remove sae.d_sae or change sae.k.")
        return super().sized(d_in, n_vectors).model_copy(update={"k": k, "d_sae": 2 * k})

    def _components(self, d_in: int) -> int:
        """As many as `d_sae` has room for, or 32."""
        return min(32, d_in) if self.d_sae == "auto" else self.d_sae // 2


class PCA(Fitted):
    """f = relu(+-V (x - b_dec)), x_hat = b_dec + f W_dec; rows of W_dec are v_1 ... v_k, then -v_1 ... -v_k.

    b_dec is the mean and v_i are the eigenvectors of the covariance with the largest eigenvalues, over all vectors seen: sums of
    x and x x^T are accumulated in float64, including the vectors of the first sample. Codes are non-negative as in every
    SAE: one of the two features of a component is active, and x_hat equals that of signed codes.

    Source: Pearson 1901, On lines and planes of closest fit. https://doi.org/10.1080/14786440109462720
    """

    Config: ClassVar[type[SAEConfig]] = PCAConfig
    cfg: PCAConfig
    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, cfg: PCAConfig, generator: torch.Generator | None = None) -> None:
        """Raises ConfigError if `d_sae` is not 2 k."""
        cfg = cfg.sized(cfg.d_in)
        super().__init__(cfg, generator)
        self.k = settled(cfg.k)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("total", torch.zeros(cfg.d_in, dtype=torch.float64))
        self.register_buffer("outer", torch.zeros(cfg.d_in, cfg.d_in, dtype=torch.float64))

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        self.check_width(x)
        half = (x - self.b_dec) @ self.W_dec[: self.k].T
        return torch.cat([half.relu(), (-half).relu()], -1)

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "n d_in"], generator: torch.Generator) -> None:
        """Compute the components of the sample, regardless of `cfg.data_init`."""
        for sums in (self.count, self.total, self.outer):
            sums.zero_()
        self._add(x)
        self._refit()

    def learn(self, x: Float[Tensor, "n d_in"], progress: Progress) -> None:
        self._add(x)
        done = progress.step + 1
        if done % REFIT == 0 or done == progress.n_steps:
            self._refit()

    def _add(self, x: Float[Tensor, "n d_in"]) -> None:
        x = x.double()
        self.count += len(x)
        self.total += x.sum(0)
        self.outer.addmm_(x.T, x)

    def _refit(self) -> None:
        mean = self.total / self.count
        _, vectors = torch.linalg.eigh(self.outer / self.count - torch.outer(mean, mean))  # ascending
        rows = vectors.T.flip(0)[: self.k]
        # An eigenvector's sign is arbitrary: make the coordinate of largest magnitude positive.
        sign = rows.gather(1, rows.abs().argmax(1, keepdim=True)).sign()
        rows = rows * sign
        self.W_dec.copy_(torch.cat([rows, -rows]))
        self.b_dec.copy_(mean)
