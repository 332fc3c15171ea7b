"""`Pictures`: thumbnails of a data set, decoded on demand and cached. Does not import gradio."""

from __future__ import annotations

import io
from collections import OrderedDict
from threading import Lock

from PIL import Image, ImageDraw

from saev_core import BadImageError, ImageDataset, SaevError

KEEP_BYTES = 256 << 20
"""Cache size in bytes; the least recently used thumbnails are evicted first."""
SIZES = (96, 160, 224, 448, 896)
"""Available longer sides in pixels: few, so that pages share thumbnails."""


class Pictures:
    """JPEG thumbnails by image number; thread-safe."""

    def __init__(self, dataset: ImageDataset | None, keep_bytes: int = KEEP_BYTES) -> None:
        self.dataset = dataset
        self._keep = keep_bytes
        self._lock = Lock()
        self._made: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._n_bytes = 0

    def __len__(self) -> int:
        return len(self.dataset) if self.dataset is not None else 0

    def original(self, index: int) -> Image.Image:
        """Picture `index` in full size, RGB.

        Raises:
            SaevError: there is no such picture, or it cannot be read.
        """
        if self.dataset is None:
            raise SaevError("the pictures are not available.")
        if not 0 <= index < len(self.dataset):
            raise SaevError(f"image {index}: this data set has images 0 to {len(self.dataset) - 1}.")
        if self.dataset.sequential:
            for example in self.dataset.examples(index, index + 1):
                if isinstance(example, BadImageError):
                    raise example
                return example.image.convert("RGB")
        return self.dataset[index].image.convert("RGB")

    def jpeg(self, index: int, size_px: int = 224) -> bytes:
        """Picture `index`, its longer side at most `size_px` rounded up to one of `SIZES`; a grey placeholder if it cannot be read."""
        size_px = next((size for size in SIZES if size >= size_px), SIZES[-1])
        key = index, size_px
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        try:
            small = self.original(index)
            # `reducing_gap` scales in two steps: a quarter of the work for large photographs, no visible difference.
            small.thumbnail((size_px, size_px), Image.Resampling.LANCZOS, reducing_gap=2.0)
        except SaevError as error:
            small = card(str(error), size_px)
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=88)
        data = buffer.getvalue()
        with self._lock:
            if key not in self._made:
                self._made[key] = data
                self._n_bytes += len(data)
            while self._n_bytes > self._keep and len(self._made) > 1:
                _, old = self._made.popitem(last=False)
                self._n_bytes -= len(old)
        return data


def card(text: str, size_px: int) -> Image.Image:
    """A grey placeholder with the reason why there is no picture."""
    image = Image.new("RGB", (size_px, size_px), (226, 226, 226))
    draw = ImageDraw.Draw(image)
    words, lines = text.split(), [""]
    for word in words:
        if draw.textlength(f"{lines[-1]} {word}") > size_px - 16 and lines[-1]:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    draw.multiline_text((8, 8), "\n".join(lines), fill=(70, 70, 70))
    return image
