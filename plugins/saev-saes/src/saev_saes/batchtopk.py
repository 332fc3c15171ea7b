"""`batchtopk`: k features per vector on average, the batch's largest; one threshold for all at inference."""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from saev_core import SAE, Codes, Progress, SAEConfig, Step
from saev_core.sae.topk import TopK, TopKConfig
from saev_saes.jumprelu import as_jumprelu
from saev_saes.thresholds import encode_batch_top_k, largest

SETTLED = 1000
"""Step from which the threshold is averaged, at most half of the run; before, it is that of the last batch."""


class BatchTopKConfig(TopKConfig):
    """Options of `batchtopk`; `k` is the mean number of active features per vector."""


class BatchTopK(TopK):
    """f = the n k largest of relu(x W_enc + b_enc) over a batch of n vectors; loss = mean |x - x_hat|^2 + auxk d_in AuxK.

    At inference a vector must not depend on the rest of its batch: f = h H(h - t), h = x W_enc + b_enc, where t is the running
    mean of the smallest value kept in a training batch, over about the last 1,000 batches (decay 0.999; a tenth of the run
    if that is shorter). `encode` and `codes` give the training form, `frozen` the inference form, a `JumpReLU`.

    Source: Bussmann et al. 2024, BatchTopK Sparse Autoencoders. https://arxiv.org/abs/2412.06410
    AuxK: as `topk`.
    """

    Config: ClassVar[type[SAEConfig]] = BatchTopKConfig
    cfg: BatchTopKConfig
    threshold: Tensor

    def __init__(self, cfg: BatchTopKConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(cfg, generator)
        self.register_buffer("threshold", torch.zeros(()))
        self._guess = 0.0
        """Estimate for the next batch's pre-filter; the codes do not depend on it."""

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Feature activations; all but the n k largest positive pre-activations of the n vectors are zero."""
        f = self.pre(x).relu()
        n = f.numel() // self.d_sae
        return f * largest(f.detach().reshape(-1), n * self.k).view_as(f)

    @torch.no_grad()
    def codes(self, x: Float[Tensor, "n d_in"]) -> Codes:
        self.check_width(x)
        codes = encode_batch_top_k(self, x, self.k, self._guess)
        self._guess = float(codes.value.min()) if len(codes.value) else 0.0
        return codes

    def loss(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        step = super().loss(x, progress)
        assert isinstance(step.z, Tensor)
        self.follow(step.z.detach(), progress)
        return step

    @torch.no_grad()
    def backward_lean(self, x: Float[Tensor, "n d_in"], progress: Progress) -> Step:
        step = super().backward_lean(x, progress)
        assert isinstance(step.z, Codes)
        self.follow(step.z.value, progress)
        return step

    @torch.no_grad()
    def follow(self, value: Tensor, progress: Progress) -> None:
        """Move the threshold towards the smallest positive value of this batch."""
        value = value[value > 0]
        if len(value) == 0:
            return
        smallest = value.min()
        if progress.step <= max(min(SETTLED, progress.n_steps // 2), self.n_k_warmup(progress)):
            self.threshold.copy_(smallest)
        else:
            # In a run shorter than 10,000 steps, average faster, so that the threshold does not lag behind.
            self.threshold.lerp_(smallest, max(1e-3, 10 / progress.n_steps))

    def frozen(self) -> SAE:
        return as_jumprelu(self, self.threshold)
