"""A vocabulary: candidate names, one per line; `#` starts a comment. Imports no torch."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from saev_core.errors import ConfigError

SHIPPED = Path(__file__).parent / "words" / "concepts.txt"
"""6,000 visual concepts from WordNet 3.1, the most common first; the licence is in the same folder."""
MOST_CHARACTERS = 200
"""Longest concept, in characters; a longer line means the file is not a vocabulary."""


@dataclass(frozen=True)
class Vocabulary:
    """Concepts in file order, and the file's digest."""

    concepts: tuple[str, ...]
    sha256: str
    n_twice: int = 0
    """Number of lines dropped because they repeat an earlier one, ignoring case."""

    def __len__(self) -> int:
        return len(self.concepts)


def read_vocabulary(path: str | Path = SHIPPED) -> Vocabulary:
    """Read the concepts in a file; blank lines, comments and repetitions are dropped.

    Raises:
        ConfigError: there is no such file, it is not UTF-8 text, or it names fewer than two concepts.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; --names takes a file of concepts, one per line, or no value.") from None
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}); save the vocabulary as UTF-8, one concept per line.") from None
    found: dict[str, str] = {}
    n_lines = 0
    for number, line in enumerate(lines, 1):
        concept = " ".join(line.partition("#")[0].split())
        if not concept:
            continue
        if len(concept) > MOST_CHARACTERS or "\0" in concept:
            raise ConfigError(f"{path}, line {number}: {len(concept)} characters are too long for a concept; write one concept per line.")
        n_lines += 1
        found.setdefault(concept.casefold(), concept)
    if len(found) < 2:
        raise ConfigError(f"{path} has {len(found) or 'no'} concept; a vocabulary needs at least two, one per line.")
    return Vocabulary(tuple(found.values()), hashlib.sha256(data).hexdigest(), n_lines - len(found))
