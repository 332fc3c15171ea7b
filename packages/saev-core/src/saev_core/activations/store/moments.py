"""`Moments`: first and second moments of a shard's vectors, accumulated while it is written."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Moments:
    """Count, sum and summed squared length of a shard's stored vectors, per token policy, in float64.

    Image by image, so that the sums do not depend on batch sizes, and so that the working set stays in cache.
    """

    def __init__(self, d_model: int) -> None:
        self.count = np.zeros(3, np.int64)
        self.sum = np.zeros((3, d_model))
        self.sumsq = np.zeros(3)
        # Blocks below torch's grain of 32,768 numbers stay in cache and wake no other thread. Waking them costs the writer three
        # quarters of its speed while the forward pass keeps the cores busy (measured).
        self._single = torch.empty(max(1, 32_000 // d_model), d_model)
        self._wide = torch.empty_like(self._single, dtype=torch.float64)

    def take(self, x: Tensor, patches: np.ndarray, prefix: np.ndarray | None) -> bool:
        """Copy one image's tokens into `prefix` and `patches` and count them; False, counting none, if any is not finite there."""
        n_prefix = 0 if prefix is None else len(prefix)
        if prefix is not None:
            torch.from_numpy(prefix).copy_(x[:n_prefix])
            if not np.isfinite(prefix).all():
                return False
        rows, into = x[n_prefix:], torch.from_numpy(patches)
        total, squares, step = np.zeros(patches.shape[1]), 0.0, len(self._wide)
        for start in range(0, len(patches), step):
            n = min(step, len(patches) - start)
            stored = into[start : start + n].copy_(rows[start : start + n])
            # Half to double via float takes half as long as directly.
            wide = self._wide[:n].copy_(self._single[:n].copy_(stored)).numpy()  # [n, d_model]
            total += wide.sum(0)
            squares += float(np.square(wide, out=wide).sum(0).sum())
        if not np.isfinite(squares):
            return False
        self._count(0, len(patches), total, squares)
        mean = total / len(patches)
        self._count(2, 1, mean, float(mean @ mean))
        if prefix is not None:
            cls = prefix[0].astype(np.float64)
            self._count(1, 1, cls, float(cls @ cls))
        return True

    def _count(self, policy: int, n: int, total: np.ndarray, squares: float) -> None:
        self.count[policy] += n
        self.sum[policy] += total
        self.sumsq[policy] += squares

    def rows(self) -> dict[str, np.ndarray]:
        """The moments by array name."""
        return {"count": self.count, "sum": self.sum, "sumsq": self.sumsq}
