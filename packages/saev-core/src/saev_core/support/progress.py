"""Telling a person how far a long job is, without the library printing anything: a caller passes a `Track`."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self


class Meter:
    """One job's progress; this one is silent. Use it as a context manager."""

    def update(self, n: int = 1, **facts: float) -> None:
        """`n` more units are done; `facts` are the numbers worth showing now."""

    def skip(self, n: int) -> None:
        """`n` units were done before, by a process that did not end: they say nothing of how fast this one is."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


Track = Callable[[str, int, str], Meter]
"""`track(title, total, unit)` begins a job of `total` units and returns its meter."""


def silent(title: str, total: int, unit: str) -> Meter:
    """Shows nothing."""
    return Meter()
