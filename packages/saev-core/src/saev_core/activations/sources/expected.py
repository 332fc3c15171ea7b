"""`Expected`: a placeholder source that knows only width and number of vectors, to plan training before recording."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from saev_core.activations.sources.base import ActivationSource, BatchStream
from saev_core.config.stages import ReadConfig
from saev_core.errors import StoreError
from saev_core.models.base import VisionModel
from saev_core.sae.norm import Norm
from saev_core.sae.selection import Selection


class Expected(ActivationSource):
    """Stands in for a future recording: known width and number of vectors, random values."""

    def __init__(self, d_model: int, n_vectors: int, n_sites: int, site: str) -> None:
        self.d_model, self.n_vectors, self.n_sites, self.site = d_model, n_vectors, n_sites, site
        self.norm = Norm(torch.zeros(d_model), 1.0)

    def batches(self, batch_size: int, seed: int, state: Mapping[str, Any] | None = None) -> BatchStream:
        raise StoreError("nothing is recorded yet.")

    def sample(self, n: int, seed: int) -> Tensor:
        return torch.randn(min(n, self.n_vectors), self.d_model, generator=torch.Generator().manual_seed(seed))

    def describe(self) -> dict[str, Any]:
        return {}


def expected(read: ReadConfig, model: VisionModel, n_images: int) -> Expected:
    """A placeholder for the vectors that a recording of `n_images` would contain."""
    selection = Selection.of(read, model.site)
    n_training = max(1, round(n_images * (1 - read.heldout)))
    n_vectors = n_training * selection.n_tokens(model.grid)
    return Expected(selection.n_joined * model.d_model, n_vectors, selection.n_joined, str(selection))
