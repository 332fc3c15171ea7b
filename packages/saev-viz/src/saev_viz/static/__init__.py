"""Style sheets and scripts of the viewer, the report and the gallery, and the one function that reads them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def read_asset(name: str) -> str:
    """The text of a file in this folder, such as `viewer.css`."""
    return (files(__name__) / name).read_text(encoding="utf-8")
