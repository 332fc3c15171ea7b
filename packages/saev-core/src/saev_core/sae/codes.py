"""`Codes`: sparse feature activations, shared by training, evaluation, indexing, probes and steering."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from saev_core.errors import ShapeError


@dataclass(frozen=True)
class Codes:
    """Feature activations of n vectors in CSR order: row i holds entries `offsets[i]` to `offsets[i + 1] - 1`.

    Explicit zeros in `value` are allowed: an entry of value 0 counts as inactive everywhere.
    """

    offsets: Int[Tensor, " n_plus_1"]
    feature: Int[Tensor, " nnz"]
    value: Float[Tensor, " nnz"]
    d_sae: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def from_dense(cls, z: Float[Tensor, "n d_sae"]) -> Codes:
        """The non-zero entries of dense codes.

        Raises:
            ShapeError: `z` is not a matrix.
        """
        if z.ndim != 2:
            raise ShapeError(f"codes must be [n, d_sae], got {list(z.shape)}.")
        row, feature = z.nonzero(as_tuple=True)
        return cls.from_rows(row, feature, z[row, feature], len(z), z.shape[1])

    @classmethod
    def from_rows(cls, row: Int[Tensor, " nnz"], feature: Int[Tensor, " nnz"], value: Float[Tensor, " nnz"], n: int, d_sae: int) -> Codes:
        """Codes of `n` rows from entries sorted by row number."""
        offsets = torch.searchsorted(row, torch.arange(n + 1, device=row.device, dtype=row.dtype))
        return cls(offsets, feature, value, d_sae)

    @classmethod
    def from_topk(cls, feature: Int[Tensor, "n k"], value: Float[Tensor, "n k"], d_sae: int) -> Codes:
        """Codes with exactly k entries per row; zero values are allowed."""
        n, k = feature.shape
        offsets = torch.arange(0, n * k + 1, k, device=feature.device)
        return cls(offsets, feature.reshape(-1), value.reshape(-1), d_sae)

    @property
    def rows(self) -> Int[Tensor, " nnz"]:
        """Row number of each entry."""
        return torch.repeat_interleave(
            torch.arange(len(self), device=self.offsets.device), self.offsets.diff(), output_size=len(self.feature)
        )

    def counts(self) -> Int[Tensor, " d_sae"]:
        """Number of rows in which each feature is active."""
        return torch.bincount(self.feature[self.value != 0], minlength=self.d_sae)

    def dense(self) -> Float[Tensor, "n d_sae"]:
        """Dense codes, mostly zero. For small batches and tests."""
        z = self.value.new_zeros(len(self), self.d_sae)
        return z.index_put_((self.rows, self.feature), self.value, accumulate=True)

    def decode(self, W_dec: Float[Tensor, "d_sae d_in"], b_dec: Float[Tensor, " d_in"]) -> Float[Tensor, "n d_in"]:
        """Weighted sum of the active decoder rows plus the bias, without creating dense codes."""
        bag = F.embedding_bag(self.feature, W_dec, self.offsets[:-1], mode="sum", per_sample_weights=self.value.to(W_dec.dtype))
        return bag + b_dec

    def slice(self, start: int, stop: int) -> Codes:
        """Rows `start` to `stop - 1`."""
        offsets = self.offsets[start : stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        return Codes(offsets - first, self.feature[first:last], self.value[first:last], self.d_sae)
