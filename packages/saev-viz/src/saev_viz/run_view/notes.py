"""`Notes`: users' notes on features, stored in the run as JSON, safe with several windows. Does not import gradio."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from saev_core.errors import RunError
from saev_core.support.files import write_json

try:
    import fcntl
except ImportError:  # not on Windows: there, only a single process is safe
    fcntl = None  # type: ignore[assignment]

BOTH = "\n— written at the same time in another window —\n"
"""Separates two notes on one feature that two windows saved."""


class Notes:
    """Notes of one SAE, in `<run>/notes/<sae>.json`: `{"123": "text", ...}`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()

    def all(self) -> dict[int, str]:
        """All notes, by feature.

        Raises:
            RunError: the file is malformed.
        """
        try:
            saved: Any = json.loads(self.path.read_text(encoding="utf-8"))
            return {int(feature): str(text) for feature, text in saved.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, AttributeError) as error:
            raise RunError(f"{self.path} cannot be read ({error}); fix it or move it away.") from None

    def write(self, feature: int, text: str, seen: str = "") -> str:
        """Save the note of one feature; an empty text deletes it.

        Args:
            seen: the note as it was when editing began. If another window has saved a different one since, both are kept.

        Returns:
            The note as saved.

        Raises:
            RunError: the file cannot be written.
        """
        text = text.strip()
        try:
            with self._alone():
                notes = self.all()
                there = notes.get(feature, "")
                if there not in ("", seen, text) and not text.startswith(there):
                    text = f"{there}{BOTH}{text}" if text else there
                if text:
                    notes[feature] = text
                else:
                    notes.pop(feature, None)
                write_json(self.path, {str(key): notes[key] for key in sorted(notes)})
        except OSError as error:
            raise RunError(f"{self.path} cannot be written ({error.strerror or error}); the note was not saved.") from None
        return text

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock out other threads and processes between reading and writing."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock:
            handle = os.open(self.path.with_name(f".{self.path.name}.lock"), os.O_CREAT | os.O_RDWR)
            try:
                if fcntl is not None:
                    fcntl.flock(handle, fcntl.LOCK_EX)
                yield
            finally:
                os.close(handle)
