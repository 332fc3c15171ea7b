"""What to do when memory does not suffice: one line that says what to lower."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from saev_core.errors import SaevError


@contextmanager
def enough_memory(advice: str, kind: type[SaevError]) -> Iterator[None]:
    """A `kind` of error with this advice in place of the several that stand for memory that was not to be had."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch raises an OutOfMemoryError of its own on a GPU and a plain RuntimeError on the CPU; both are RuntimeErrors.
        if isinstance(error, RuntimeError) and not re.search(r"can't allocate memory|out of memory", str(error)):
            raise
        asked = re.search(r"allocate ([\d.]+ \w+)", str(error))
        raise kind(f"out of memory{f' ({_size(asked[1])} more were asked for)' if asked else ''}; {advice}") from None


def _size(text: str) -> str:
    """`640000000 bytes` in GB; torch says other units itself."""
    number, unit = text.split()
    return f"{int(number) / 1e9:,.1f} GB" if unit == "bytes" else text
