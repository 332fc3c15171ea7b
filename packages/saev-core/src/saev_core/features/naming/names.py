"""TODO."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from saev_core.errors import RunError
from saev_core.support.files import write_json

FORMAT = 1
"""Version of the file of names; another one is refused."""
Source = Literal["text", "truth", "masks", "labels"]
SOURCES: dict[str, str] = {
    "text": "a vocabulary, through the model's text side",
    "truth": "what the data set knows of every patch",
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
    """The concept that came second on training images; empty where there is none."""


@dataclass(frozen=True)
class Names:
    """The names of one SAE's features, and what they rest on."""

    source: Source
    checkpoint: str
    """Fingerprint of the SAE."""
    threshold: float
    min_positive: int
    names: dict[int, Name]
    n_features: int
    """Features in all."""
    n_alive: int
    """Features that fire on an image that was looked at."""
    n_few: int
    """Features of these that fire on too few held-out images, or on all but too few: nothing can be said of them."""
    n_train: int
    n_heldout: int
    vocabulary: str = ""
    """sha256 of the vocabulary's file; empty where there is none."""
    about: dict[str, Any] = field(default_factory=dict)
    """What else was noted of how they were made."""

    def save(self, path: Path) -> Path:
        """Write the file as a whole: a reader finds the old names or the new ones."""
        data = asdict(self) | {"saev_names": FORMAT, "names": {str(feature): asdict(name) for feature, name in sorted(self.names.items())}}
        write_json(path, data)
        return path

    @classmethod
    def load(cls, path: Path) -> Names:
        """The names in a file.

        Raises:
            RunError: there is none, or it is of another format.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data.pop("saev_names") != FORMAT:
                raise RunError(f"{path} was written by another version; make it again with saev index RUN --names.")
            return cls(**{**data, "names": {int(feature): Name(**name) for feature, name in data["names"].items()}})
        except FileNotFoundError:
            raise RunError(f"{path}: no names were made; make them with saev index RUN --names.") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunError(f"{path} cannot be read ({error}); make it again with saev index RUN --names, or delete it.") from None

    def summary(self) -> str:
        """One line for a person."""
        n_below = self.n_alive - self.n_few - len(self.names)
        return (
            f"{len(self.names):,} of {self.n_alive:,} features that fire have a name, from {SOURCES[self.source]}; {n_below:,} stay "
            f"unnamed below AUROC {self.threshold:g}, {self.n_few:,} fire on too few or too many of {self.n_heldout:,} held-out images"
        )
