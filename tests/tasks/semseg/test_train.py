"""Pixels of training images: their interpolated vectors."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saev_core.types import Grid
from saev_tasks.semseg.scores import upsample
from saev_tasks.semseg.train import Bilinear


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 7), st.integers(0, 99))
def test_the_probe_of_an_interpolated_vector_is_the_upsampled_logit(rows: int, cols: int, px: int, seed: int) -> None:
    grid, generator = Grid(rows, cols, px), torch.Generator().manual_seed(seed)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((2, rows * cols, 5), (3, 5), (3,)))
    row, col = np.meshgrid(np.arange(grid.height_px), np.arange(grid.width_px), indexing="ij")
    places = [np.broadcast_to(axis.reshape(1, -1), (2, axis.size)) for axis in (row, col)]
    seen = Bilinear(grid)(x, *places) @ weight.T + bias  # [2, pixels, 3]
    want = upsample(x @ weight.T + bias, grid).flatten(2).transpose(1, 2)
    torch.testing.assert_close(seen, want, atol=1e-5, rtol=1e-5)
