"""`ResizeCrop`: the resize-and-crop transform that nearly every vision model uses, with only Pillow and torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation for models that take pixels from -1 to 1."""


@dataclass(frozen=True)
class ResizeCrop:
    """PIL RGB -> pixels `[3, height, width]`: resize, centre crop, scale to 0..1, subtract `mean`, divide by `std`.

    Sizes are those of torchvision's Resize and CenterCrop on a PIL image. Its `repr` is complete, so it can
    identify the transform in a store.
    """

    resize: int | tuple[int, int] | None
    """Length of the short side, or (height, width) whatever the original's proportions; None: no resize."""
    crop: tuple[int, int] | None
    """(height, width) of the centre crop; None: no crop. An image smaller than that is padded with black."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resample: int = int(Image.Resampling.BICUBIC)
    """Pillow's resampling filter."""
    scale: float = 1 / 255
    """Factor for pixel values 0 to 255."""
    floor: bool = False
    """Rounding of odd margins: false rounds half to even, like torchvision; true rounds down, like transformers."""

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 height width"]:
        if image.mode != "RGB":
            image = image.convert("RGB")
        width, height = image.size
        if isinstance(self.resize, tuple):
            width, height = self.resize[1], self.resize[0]
        elif self.resize is not None:
            short = min(width, height)
            # int(): torchvision and transformers truncate the long side.
            width, height = (self.resize if side == short else int(self.resize * side / short) for side in (width, height))
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling(self.resample))
        if self.crop is not None and self.crop != (height, width):
            top, left = (self._half(length - want) for length, want in ((height, self.crop[0]), (width, self.crop[1])))
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)  # [3, h, w]
        x = pixels.to(torch.float32, memory_format=torch.contiguous_format).mul_(self.scale)
        return x.sub_(torch.tensor(self.mean)[:, None, None]).div_(torch.tensor(self.std)[:, None, None])

    def _half(self, margin: int) -> int:
        if self.floor:
            return margin // 2
        # torchvision rounds when it crops and truncates when it pads.
        return round(margin / 2) if margin >= 0 else -(-margin // 2)
