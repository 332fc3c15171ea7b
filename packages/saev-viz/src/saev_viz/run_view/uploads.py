"""`Uploads`: uploaded pictures, in memory only, under unguessable keys. Does not import gradio."""

from __future__ import annotations

import io
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from PIL import Image

from saev_core import BadImageError, open_rgb
from saev_core.errors import RunError

MAX_BYTES = 50_000_000
"""Larger files are rejected without reading them."""
KEEP_BYTES = 200_000_000
"""Total size limit in bytes; the least recently used files are evicted first."""
SHOWN_PX = 896
"""Longer side of the displayed picture."""


@dataclass(frozen=True)
class Upload:
    """An uploaded picture: the original file and the displayed JPEG."""

    name: str
    data: bytes
    jpeg: bytes
    width: int
    height: int
    """Pixels, after applying the EXIF orientation."""

    def image(self) -> Image.Image:
        """The picture, RGB and upright."""
        return open_rgb(self.data, self.name)


class Uploads:
    """The most recent uploads. They are never written to disk and are discarded when the viewer exits."""

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep = keep_bytes
        self._lock = Lock()
        self._held: OrderedDict[str, Upload] = OrderedDict()

    def add(self, data: bytes, name: str = "your picture") -> str:
        """Store a picture and return its key.

        Raises:
            BadImageError: it is empty, too large, not an image, truncated, or has too many pixels.
        """
        if not data:
            raise BadImageError(name, "the file is empty")
        if len(data) > MAX_BYTES:
            raise BadImageError(name, f"it is larger than {MAX_BYTES // 1_000_000} MB")
        image = open_rgb(data, name)
        width, height = image.size
        image.thumbnail((SHOWN_PX, SHOWN_PX), Image.Resampling.LANCZOS, reducing_gap=2.0)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._held[key] = Upload(name, data, buffer.getvalue(), width, height)
            while sum(len(held.data) for held in self._held.values()) > self._keep and len(self._held) > 1:
                self._held.popitem(last=False)
        return key

    def __getitem__(self, key: str) -> Upload:
        """The picture stored under `key`.

        Raises:
            RunError: it was evicted, or never existed.
        """
        with self._lock:
            if key not in self._held:
                raise RunError("that picture is no longer in memory; choose it again.")
            self._held.move_to_end(key)
            return self._held[key]


def refusal(error: BadImageError) -> str:
    """Why an upload was rejected, as a message for the user."""
    why = "it has too many pixels" if "MAX_IMAGE_PIXELS" in error.why or "DecompressionBomb" in error.why else error.why
    return f"{error.path} cannot be shown: {why}. Choose a picture file, such as a JPEG or PNG."
