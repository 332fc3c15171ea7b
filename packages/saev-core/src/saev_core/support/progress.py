"""Progress of long jobs, without the library printing anything: callers pass a `Track`."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self


class Meter:
    """Progress of one job; this base class is silent. Use it as a context manager."""

    def update(self, n: int = 1, **facts: float) -> None:
        """Report `n` more units as done; `facts` are numbers to show."""

    def skip(self, n: int) -> None:
        """Report `n` units as done by an earlier, interrupted process; they do not count towards the rate."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


Track = Callable[[str, int, str], Meter]
"""`track(title, total, unit)` starts a job of `total` units and returns its meter."""


def silent(title: str, total: int, unit: str) -> Meter:
    """A `Track` that shows nothing."""
    return Meter()
