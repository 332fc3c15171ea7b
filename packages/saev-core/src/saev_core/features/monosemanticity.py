"""`Monosemanticity`: the similarity of the images that fire a feature, for every feature, exactly, in one pass."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float


class Monosemanticity:
    """Mean cosine between the embeddings of two images, weighted by how strongly the feature fires on both.

    MS = sum_{i<j} a_i a_j cos(e_i, e_j) / sum_{i<j} a_i a_j, with e_i the image's embedding at length 1 and a_i the
    feature's largest value on image i, shifted and scaled to 0..1 over all images. Both sums over pairs follow from sums
    over images: (|sum a e|^2 - sum a^2) / ((sum a)^2 - sum a^2); the scale cancels. 1: all its images are identical;
    about 0 (embeddings are centred): it fires on images of every kind. NaN if fewer than two images fire.

    Source: https://arxiv.org/abs/2602.12403 (the one-pass form); Pach et al. 2025, https://arxiv.org/abs/2504.02821 (MS).
    """

    def __init__(self, d_sae: int, d: int) -> None:
        self.n = 0
        self._weighted = torch.zeros(d_sae, d)  # sum a e
        self._sum = np.zeros(d_sae)
        self._sum_sq = np.zeros(d_sae)
        self._least = np.full(d_sae, np.inf)
        self._total = np.zeros(d)  # sum e

    def add(self, peak: Float[np.ndarray, "b d_sae"], embedding: Float[np.ndarray, "b d"]) -> None:
        """Add images: the largest value of each feature, and their embeddings, centred, not normalised."""
        length = np.linalg.norm(embedding, axis=1, keepdims=True)
        unit = np.divide(embedding, length, out=np.zeros_like(embedding), where=length > 0)
        self.n += len(peak)
        self._weighted.addmm_(torch.from_numpy(peak).T, torch.from_numpy(unit))
        self._sum += peak.sum(0, dtype=np.float64)
        self._sum_sq += np.einsum("ij,ij->j", peak, peak, dtype=np.float64)
        np.minimum(self._least, peak.min(0, initial=np.inf), out=self._least)
        self._total += unit.sum(0, dtype=np.float64)

    def result(self) -> Float[np.ndarray, " d_sae"]:
        """MS of every feature, float32."""
        least = np.where(np.isfinite(self._least), self._least, 0.0)
        sum_a = self._sum - self.n * least
        sum_sq = self._sum_sq - 2 * least * self._sum + self.n * least**2
        length_sq = np.empty(len(least))
        for start in range(0, len(least), 1024):  # bounds the memory of the float64 copies
            part = slice(start, start + 1024)
            weighted = self._weighted[part].double().numpy() - least[part, None] * self._total
            length_sq[part] = np.einsum("ij,ij->i", weighted, weighted)
        # Images without an embedding have cosine 0 to all others, so their a^2 is missing from |sum a e|^2; this is rare.
        above = length_sq - sum_sq
        below = sum_a**2 - sum_sq
        defined = below > 1e-9 * np.maximum(sum_a**2, 1e-30)
        return np.asarray(np.divide(above, below, out=np.full(len(below), np.nan), where=defined).astype(np.float32))
