"""Silence open_clip, which logs through the root logger and would thereby configure logging for the whole program."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_root_logging(package: str) -> Iterator[None]:
    """Drop root logger messages from modules in a folder named `package`, and keep the root logger from installing a handler."""

    def foreign(record: logging.LogRecord) -> bool:
        return f"{os.sep}{package}{os.sep}" not in record.pathname

    root, nobody = logging.getLogger(), logging.NullHandler()
    root.addFilter(foreign)
    root.addHandler(nobody)  # logging.info() calls basicConfig() while the root has no handler
    try:
        yield
    finally:
        root.removeFilter(foreign)
        root.removeHandler(nobody)
