"""`archetypal`: TopK whose decoder rows are mixtures of data centroids, up to a small deviation."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from saev_core import Progress, SAEConfig, Step, TrainingDefaults
from saev_core.config.words import Auto
from saev_core.errors import ConfigError
from saev_core.sae.initialise import CALIBRATE_ON, calibrate
from saev_core.sae.lean_step import grad
from saev_core.sae.topk import TopK, TopKConfig
from saev_saes.fitted import as_buffers
from saev_saes.kmeans import centroids


class ArchetypalConfig(TopKConfig):
    """Options of `archetypal`."""

    n_points: Auto[PositiveInt] = "auto"
    """Centroids whose mixtures the decoder's rows are; `auto`: as many as features, at most 4096."""
    delta: float = Field(default=0.05, ge=0)
    """Maximum distance of a row from its mixture, as a share of sqrt(d_in), the root mean square length of activations."""
    n_iter: int = Field(default=10, ge=0)
    """Passes of Lloyd's algorithm to compute the centroids."""
    normalize_w_dec: bool = False
    """Must be false: rows are in a convex hull, not on the sphere."""


class Archetypal(TopK):
    """RA-SAE: W_dec = e^m (A C + R), with A >= 0, rows of A summing to 1, and |R_i| <= delta sqrt(d_in); else as `topk`.

    C `[n_points, d_in]` are k-means centroids of the data around b_dec, fixed at initialisation; A, R and m are learned, so
    every row is a mixture of data except for R and the common factor e^m. Gradients follow from that of W_dec by the chain rule:

        dL/dA = e^m dL/dW C^T,  dL/dR = e^m dL/dW,  dL/dm = <dL/dW, W>.

    After each step rows of A are projected onto the simplex (to the nearest point) and those of R into their ball. The
    authors' code divides relu(A) by its sum instead; Adam, which raises half of thousands of zeros by the learning rate at
    once, then spreads every row over all centroids (planted dictionary, 1024 points: over 360 by 1 / sum A^2, against 10).

    Sources: Fel et al. 2025, Archetypal SAE, equations 3 and 4. https://arxiv.org/abs/2502.12892 (m: the authors' code)
    Projection: Michelot 1986, A finite algorithm for finding the projection of a point onto the canonical simplex.
    """

    Config: ClassVar[type[SAEConfig]] = ArchetypalConfig
    training_defaults = TrainingDefaults(lr=4, lr_decay=0.2)
    """Four times an encoder's usual learning rate: entries of A have all the way from 0 to 1 to go.

    `tiny` on 400 `shapes`, 585 steps, held-out NMSE: 2e-3 .097, 4e-3 .084, 8e-3 .076, 16e-3 .083, each falling over the last fifth.
    """
    cfg: ArchetypalConfig
    points: Tensor

    def __init__(self, cfg: ArchetypalConfig, generator: torch.Generator | None = None) -> None:
        """Raises ConfigError if normalize_w_dec is set, or k exceeds d_sae."""
        super().__init__(cfg, generator)
        if cfg.normalize_w_dec:
            raise ConfigError("rows of an archetypal dictionary are in the hull of the data; remove sae.normalize_w_dec.")
        as_buffers(self, "W_dec")
        n_points = min(self.d_sae, 4096) if cfg.n_points == "auto" else cfg.n_points
        self.register_buffer("points", F.normalize(torch.randn(n_points, cfg.d_in, generator=generator), dim=1) * math.sqrt(cfg.d_in))
        self.A = nn.Parameter(torch.zeros(self.d_sae, n_points))
        self.R = nn.Parameter(torch.zeros(self.d_sae, cfg.d_in))
        self.m = nn.Parameter(torch.zeros(()))
        with torch.no_grad():
            self._spread(generator)
            self.after_step()

    def dictionary(self) -> Float[Tensor, "d_sae d_in"]:
        """W_dec, differentiable in A, R and m."""
        return (self.A @ self.points + self.R) * self.m.exp()

    def loss(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        held = self.W_dec
        self.W_dec = self.dictionary()
        try:
            return super().loss(x, progress)
        finally:
            self.W_dec = held

    @torch.no_grad()
    def backward_lean(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        step = super().backward_lean(x, progress)
        by_row = self.W_dec.grad
        assert by_row is not None
        self.W_dec.grad = None
        scale = self.m.exp()
        torch.sum(by_row * self.W_dec, (0, 1), out=grad(self.m))
        torch.mul(by_row, scale, out=grad(self.R))
        torch.mm(by_row * scale, self.points.T, out=grad(self.A))
        return step

    @torch.no_grad()
    def initialise(self, x: Float[Tensor, "n d_in"], generator: torch.Generator) -> None:
        """Use the sample's centroids, regardless of `cfg.data_init`: one row at each, the encoder along the rows, calibrated."""
        self.b_dec.copy_(x.double().mean(0))
        self.points.copy_(centroids(x - self.b_dec, len(self.points), generator, self.cfg.n_iter)[0])
        self.R.zero_()
        self.m.zero_()
        self._spread(generator)
        self.after_step()
        lengths = self.W_dec.norm(dim=1)
        # Features are selected by cosine; a value of |x| cos / |row| then gives x_hat close to x.
        self.W_enc.copy_((F.normalize(self.W_dec, dim=1) / lengths.square().mean().sqrt()).T)
        self.b_enc.copy_(-(self.b_dec @ self.W_enc))
        calibrate(self, x[:CALIBRATE_ON])

    def _spread(self, generator: torch.Generator | None) -> None:
        """Row i at centroid i; if there are more rows, the others halfway between two centroids."""
        m, p = self.A.shape
        rows = torch.arange(m, device=self.A.device)
        other = torch.randint(p, (m,), generator=generator).to(self.A.device)
        self.A.zero_()
        self.A[rows, rows % p] = 1.0
        late = rows >= p
        self.A[rows[late], rows[late] % p] = 0.5
        self.A[rows[late], other[late]] += 0.5

    @torch.no_grad()
    def after_step(self) -> None:
        """Project A and R onto their constraints, and update W_dec."""
        project_simplex(self.A)
        self.R.mul_((self.cfg.delta * math.sqrt(self.d_in) / self.R.norm(dim=1, keepdim=True).clamp_min_(1e-30)).clamp_max_(1))
        self.W_dec.copy_(self.dictionary())


@torch.no_grad()
def project_simplex(a: Float[Tensor, "m p"]) -> None:
    """Replace each row by the nearest one that is non-negative and sums to 1, in place.

    The result is relu(a - t) with the t at which it sums to 1. Repeatedly raising t to the value implied by the entries above
    it converges in a few rounds, whereas sorting rows of thousands of entries would take seconds.
    """
    t = (a.sum(1, keepdim=True) - 1) / a.shape[1]
    for _ in range(a.shape[1]):
        on = a > t
        new = ((a * on).sum(1, keepdim=True) - 1) / on.sum(1, keepdim=True).clamp_min(1)
        done = bool((new <= t).all())
        t = torch.maximum(t, new)
        if done:
            break
    a.sub_(t).clamp_min_(0)
