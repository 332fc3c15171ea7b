"""`local_path`: the local folder of a store's URL, if it is local."""

from __future__ import annotations

from pathlib import Path


def local_path(url: str | Path) -> Path | None:
    """The folder behind a path or `file://` URL; None for any other URL."""
    text = str(url)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    return None if "://" in text else Path(text)
