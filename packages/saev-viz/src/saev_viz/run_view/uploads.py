"""`Uploads`: pictures that people bring, in memory only, found by a name that nobody can guess. Knows no gradio."""

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
"""A larger file is refused unread."""
KEEP_BYTES = 200_000_000
"""Files above this are forgotten, the longest unused first."""
SHOWN_PX = 896
"""Longer side of what the page shows."""


@dataclass(frozen=True)
class Upload:
    """A picture that a person brought, as it came and as the page shows it."""

    name: str
    data: bytes
    jpeg: bytes
    width: int
    height: int
    """Pixels, after it was turned upright."""

    def image(self) -> Image.Image:
        """The picture, RGB and upright."""
        return open_rgb(self.data, self.name)


class Uploads:
    """The latest pictures that people brought. They never touch the disk and end with the viewer."""

    def __init__(self, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep = keep_bytes
        self._lock = Lock()
        self._held: OrderedDict[str, Upload] = OrderedDict()

    def add(self, data: bytes, name: str = "your picture") -> str:
        """Keep a picture; returns the key under which it is found.

        Raises:
            BadImageError: it is empty, too large, no image, truncated, or has too many pixels.
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
        """The picture kept under `key`.

        Raises:
            RunError: it was forgotten, or never there.
        """
        with self._lock:
            if key not in self._held:
                raise RunError("that picture is no longer held; choose it once more.")
            self._held.move_to_end(key)
            return self._held[key]


def refusal(error: BadImageError) -> str:
    """Why a picture was refused, for the person who brought it."""
    why = "it has too many pixels" if "MAX_IMAGE_PIXELS" in error.why or "DecompressionBomb" in error.why else error.why
    return f"{error.path} cannot be shown: {why}. Choose a picture file, such as a JPEG or PNG."
