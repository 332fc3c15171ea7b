"""Pages, style sheets and scripts of the control tabs, and the function that reads them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def read_asset(name: str) -> str:
    """The text of a file in this folder, such as `control.css`."""
    return (files(__name__) / name).read_text(encoding="utf-8")
