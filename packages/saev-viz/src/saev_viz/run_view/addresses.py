"""Addresses of pictures in the viewer's pages, which `viewer.routes` serves. A gallery replaces them by files."""

from __future__ import annotations

from urllib.parse import quote

PREFIX = "/saev"
"""Beginning of every address that is not gradio's."""


def image_url(index: int, px: int, run: int = 0) -> str:
    """Address of an image of the data set, its longer side about `px` pixels.

    Args:
        run: the place of its run among those that are open.
    """
    return f"{PREFIX}/image/{index}?px={px}" + (f"&run={run}" if run else "")


def map_url(sae: str, feature: int, image: int) -> str:
    """Address of a feature's heat map on an image, one pixel a patch; `sae` is a key, see `View.key`."""
    return f"{PREFIX}/map/{quote(sae, safe='')}/{feature}/{image}"


def upload_url(key: str) -> str:
    """Address of an uploaded picture."""
    return f"{PREFIX}/upload/{key}"
