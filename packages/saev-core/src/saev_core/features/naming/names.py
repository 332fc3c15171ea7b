"""`Names`: the proposed names of one SAE's features, saved as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from saev_core.errors import RunError
from saev_core.support.files import write_json

FORMAT = 1
"""Version of the names file; others are refused."""
Source = Literal["text", "truth", "masks", "labels"]
SOURCES: dict[str, str] = {
    "text": "a vocabulary, through the model's text encoder",
    "truth": "the data set's ground truth for every patch",
    "masks": "the classes in the data set's masks",
    "labels": "the labels of the images",
}


@dataclass(frozen=True)
class Name:
    """A proposed name."""

    name: str
    score: float
    """AUROC on held-out images."""
    n_positive: int
    """Held-out images that fire the feature."""
    runner_up: str
    """The second-best concept on training images; empty if there is none."""


@dataclass(frozen=True)
class Names:
    """The names of one SAE's features, and how they were obtained."""

    source: Source
    checkpoint: str
    """Fingerprint of the SAE."""
    threshold: float
    min_positive: int
    names: dict[int, Name]
    n_features: int
    """Total number of features."""
    n_alive: int
    """Features that fire on any of the images used."""
    n_few: int
    """Of these, features that fire on too few held-out images, or on nearly all of them, to be scored."""
    n_train: int
    n_heldout: int
    vocabulary: str = ""
    """sha256 of the vocabulary file; empty without one."""
    about: dict[str, Any] = field(default_factory=dict)
    """Further details of how the names were obtained."""

    def save(self, path: Path) -> Path:
        """Write the file atomically: a reader sees the old names or the new ones."""
        data = asdict(self) | {"saev_names": FORMAT, "names": {str(feature): asdict(name) for feature, name in sorted(self.names.items())}}
        write_json(path, data)
        return path

    @classmethod
    def load(cls, path: Path) -> Names:
        """Read the names in a file.

        Raises:
            RunError: there is no such file, or it has another format.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("saev_names") != FORMAT:
                raise RunError(f"{path} was written by another version; redo it with saev index RUN --names.")
            return cls(**{**data, "names": {int(feature): Name(**name) for feature, name in data["names"].items()}})
        except FileNotFoundError:
            raise RunError(f"{path}: there are no names yet; create them with saev index RUN --names.") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} cannot be read ({error}); redo it with saev index RUN --names, or delete it.") from None

    def summary(self) -> str:
        """One-line human-readable summary."""
        n_below = self.n_alive - self.n_few - len(self.names)
        return (
            f"{len(self.names):,} of {self.n_alive:,} features that fire have a name, from {SOURCES[self.source]}; {n_below:,} stay "
            f"unnamed below AUROC {self.threshold:g}, {self.n_few:,} fire on too few or too many of {self.n_heldout:,} held-out images"
        )
