"""Decode one image safely: any format and mode gives upright 8-bit RGB or a `BadImageError`."""

from __future__ import annotations

import errno
import functools
import io
import logging
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from saev_core.errors import BadImageError, DatasetError

logger = logging.getLogger(__name__)

# EPS and WMF are excluded on purpose: Pillow passes them to an external program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "MPO", "JPEG2000", "AVIF", "TGA", "DIB", "ICO")
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .avif .tga .ico".split()  # noqa: SIM905
)
"""Lower-case file name suffixes that count as images."""


def open_rgb(source: Path | str | bytes, name: str = "") -> Image.Image:
    """An image file as 8-bit RGB, fully decoded and upright.

    EXIF orientation is applied. Transparency is composited on white. 16-bit grayscale is divided by 257 (65535 becomes
    255), never stretched; floating point is read as 0 to 1, or as 0 to 255 if it exceeds 1. Animations give their
    first frame. Colour profiles are ignored. Safe to call from several threads.

    Args:
        source: a file, or the bytes of one.
        name: its name in errors; by default the file's path.

    Raises:
        BadImageError: it cannot be read or decoded, is truncated, or has more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
        DatasetError: the process is out of file handles, which is not the image's fault.
    """
    name = name or (str(source) if isinstance(source, Path | str) else "image")
    try:
        with Image.open(io.BytesIO(_bytes(source, name)), formats=_formats()) as image:
            _refuse_bomb(image, name)
            image.load()
            return _rgb(_upright(image))
    except (BadImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise BadImageError(name, "unknown image format") from error
    except Exception as error:  # decoders raise anything: SyntaxError, struct.error, EOFError, zlib.error
        raise BadImageError(name, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__) from error


def open_mask(source: Path | str | bytes, name: str = "") -> np.ndarray[Any, Any]:
    """Class numbers `[height, width]` of a label image, uint8 or uint16, as stored: no palette, no rotation.

    Raises:
        BadImageError: it cannot be decoded, or has several channels.
    """
    name = name or (str(source) if isinstance(source, Path | str) else "mask")
    try:
        with Image.open(io.BytesIO(_bytes(source, name)), formats=_formats()) as image:
            _refuse_bomb(image, name)
            values = np.array(image)
    except (BadImageError, MemoryError):
        raise
    except Exception as error:
        raise BadImageError(name, f"{type(error).__name__}: {error}") from error
    if values.ndim != 2:
        raise BadImageError(name, f"a mask has one channel, this one has shape {values.shape}")
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype == np.uint8:
        return values
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise BadImageError(name, "mask values outside 0 to 65535")
    return values.astype(np.uint16)


def _bytes(source: Path | str | bytes, name: str) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return Path(source).read_bytes()
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise DatasetError(f"{name}: too many open files; raise the limit (ulimit -n) or use fewer threads.") from error
        raise BadImageError(name, error.strerror or type(error).__name__) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(f for f in _FORMATS if f in Image.OPEN)


def _refuse_bomb(image: Image.Image, name: str) -> None:
    # Pillow itself only warns up to twice the limit.
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise BadImageError(name, f"{image.width} x {image.height} px is more than PIL.Image.MAX_IMAGE_PIXELS = {limit}")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, OverflowError, struct.error) as error:
        logger.debug("ignoring unreadable EXIF: %s", error)
        return image
    return ImageOps.exif_transpose(image) if turned else image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode[0] in "IF":  # I;16, I;16B, I, F: Pillow's own conversion would clip at 255
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        full = 65535.0 if image.mode != "F" else 1.0 if values.size and values.max() <= 1 else 255.0
        values = values * (255.0 / full)
        return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")
