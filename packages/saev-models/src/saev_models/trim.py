"""Trim pixels that no patch covers: a 384 px image has 27 patches of 14 px per side, which cover 378 px."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Trim:
    """A transform that drops the rows and columns at the bottom and right which the patch embedding does not read.

    The grid then covers the output exactly, so that patches can be located on the original image.
    """

    transform: Callable[[Image.Image], Tensor]
    height_px: int
    width_px: int

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        return self.transform(image)[:, : self.height_px, : self.width_px]


def pad(images: Float[Tensor, "batch 3 height width"], height_px: int, width_px: int) -> Float[Tensor, "batch 3 height_px width_px"]:
    """Trimmed images zero-padded back to the full size, for a model that requires a fixed input size."""
    return F.pad(images, (0, width_px - images.shape[3], 0, height_px - images.shape[2]))
