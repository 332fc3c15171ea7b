"""Shared value types: token geometry, sites in a model, examples. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from saev_core.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class Box(NamedTuple):
    """A rectangle in pixels; `right` and `bottom` are exclusive. Floats: an edge may fall inside a pixel."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class Grid:
    """Token geometry of a model: `rows` x `cols` patches of `patch_px` pixels, after `n_prefix` tokens (CLS, registers).

    `token` counts patches only, row by row from 0: prefix tokens are stored separately and never shift it.
    """

    rows: int
    cols: int
    patch_px: int
    n_prefix: int = 0

    @property
    def n_patches(self) -> int:
        return self.rows * self.cols

    @property
    def n_tokens(self) -> int:
        """Tokens that leave a block: prefix and patches."""
        return self.n_prefix + self.n_patches

    @property
    def height_px(self) -> int:
        return self.rows * self.patch_px

    @property
    def width_px(self) -> int:
        return self.cols * self.patch_px

    def box(self, token: int, crop: Box | None = None) -> Box:
        """The rectangle of patch `token`, in pixels of the transformed image or, given `crop`, of the original.

        Args:
            token: patch number, 0 to `n_patches - 1`.
            crop: the part of the original that the transformed image shows (`ActivationStore.crop`).

        Raises:
            IndexError: there is no such patch.
        """
        if not 0 <= token < self.n_patches:
            raise IndexError(f"patch {token} of a {self.rows} x {self.cols} grid")
        row, col = divmod(token, self.cols)
        if crop is None:
            crop = Box(0, 0, self.width_px, self.height_px)
        dx, dy = (crop.right - crop.left) / self.cols, (crop.bottom - crop.top) / self.rows
        left, top = crop.left + col * dx, crop.top + row * dy
        return Box(left, top, left + dx, top + dy)

    def to_map(self, values: Any) -> Any:
        """Patch values `[..., n_patches]` as a map `[..., rows, cols]`; array or tensor."""
        return values.reshape(*values.shape[:-1], self.rows, self.cols)


@dataclass(frozen=True, order=True)
class Site:
    """A place in a model: the output of block `layer`, or of the module `stream` inside that block.

    `resid` is the block's own output, the residual stream after it. Any other stream is a dotted module
    name within the block (`mlp`, `attn.proj`). Layers are resolved to block numbers, never negative.
    `str` gives `resid.10`, which is also the name of its group in a store.
    """

    layer: int
    stream: str = "resid"

    def __post_init__(self) -> None:
        if self.layer < 0:
            raise UsageError(f"layer {self.layer} is not resolved; use VisionModel.site({self.layer}).")

    def __str__(self) -> str:
        return f"{self.stream}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """The site that prints as `text`, such as `resid.10`.

        Raises:
            UsageError: `text` is not `<stream>.<layer>`.
        """
        match = re.fullmatch(r"([A-Za-z_][\w.]*)\.(\d+)", text)
        if match is None:
            raise UsageError(f"{text!r} is not a site; write it like resid.10 (stream, dot, block number).")
        return cls(int(match[2]), match[1])


@dataclass(frozen=True)
class Example:
    """One image of a data set.

    `index` is its permanent number in the data set; `image` is PIL RGB; `label` a class number;
    `mask` uint8 or uint16 `[height, width]`, the size of the original image.
    """

    index: int
    image: Image.Image
    label: int | None = None
    mask: np.ndarray[Any, Any] | None = None
