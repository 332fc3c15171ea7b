"""URLs of pictures in the viewer's pages, served by `viewer.routes`. A gallery replaces them with files."""

from __future__ import annotations

from urllib.parse import quote

PREFIX = "/saev"
"""Prefix of all URLs that are not gradio's."""


def image_url(index: int, px: int, run: int = 0) -> str:
    """URL of an image of the data set, its longer side about `px` pixels.

    Args:
        run: position of its run among the open runs.
    """
    return f"{PREFIX}/image/{index}?px={px}" + (f"&run={run}" if run else "")


def map_url(sae: str, feature: int, image: int) -> str:
    """URL of a feature's heat map on an image, one pixel per patch; `sae` is a key, see `View.key`."""
    return f"{PREFIX}/map/{quote(sae, safe='')}/{feature}/{image}"


def upload_url(key: str) -> str:
    """URL of an uploaded picture."""
    return f"{PREFIX}/upload/{key}"
