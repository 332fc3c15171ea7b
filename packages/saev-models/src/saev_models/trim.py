"""Pixels that no patch covers: a 384 px picture under 14 px patches has 27 of them a side, which is 378 px."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Trim:
    """A transform without the rows and columns at the bottom and the right that the patch embedding never reads.

    What is left is covered by the grid to the pixel, so that a patch can be found again on the original.
    """

    transform: Callable[[Image.Image], Tensor]
    height_px: int
    width_px: int

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        return self.transform(image)[:, : self.height_px, : self.width_px]


def pad(images: Float[Tensor, "batch 3 height width"], height_px: int, width_px: int) -> Float[Tensor, "batch 3 height_px width_px"]:
    """The trimmed pictures with zeros where something was trimmed, for a model that insists on its size."""
    return F.pad(images, (0, width_px - images.shape[3], 0, height_px - images.shape[2]))
