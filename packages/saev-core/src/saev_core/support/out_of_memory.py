"""`enough_memory`: turn out-of-memory errors into one line of advice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from saev_core.errors import SaevError


@contextmanager
def enough_memory(advice: str, kind: type[SaevError]) -> Iterator[None]:
    """Convert the various out-of-memory errors of Python and torch to one error of class `kind` with this advice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # torch raises its own OutOfMemoryError on a GPU and a plain RuntimeError on the CPU; both are RuntimeErrors.
        if isinstance(error, RuntimeError) and not re.search(r"can't allocate memory|out of memory", str(error)):
            raise
        asked = re.search(r"allocate ([\d.]+ \w+)", str(error))
        raise kind(f"out of memory{f' ({_size(asked[1])} more requested)' if asked else ''}; {advice}") from None


def _size(text: str) -> str:
    """`640000000 bytes` in GB; other units are already readable."""
    number, unit = text.split()
    return f"{int(number) / 1e9:,.1f} GB" if unit == "bytes" else text
