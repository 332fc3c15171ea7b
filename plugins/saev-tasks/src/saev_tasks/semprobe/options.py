"""Options of the verbs of `saev task semprobe`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saev_core import Config


class NegativesConfig(Config):
    """Which images."""

    n_images: int = Field(default=20, ge=1)
    """Images to draw."""
    classes: tuple[str, ...] = ()
    """Draw from these classes alone; none: from all."""
    skip: tuple[str, ...] = ()
    """Images to leave out, by number or name: those that show a concept after all."""
    seed: int = Field(default=42, ge=0)
    """Seed of the draw."""
    source: str = ""
    """Data set to draw from, such as image-folder:FOLDER; by default the run's own."""
    to: str = ""
    """Folder to make; by default RUN/tasks/semprobe/negatives, where `score` finds it."""


class _Pictures(Config):
    positives: str = ""
    """Folder that holds a folder of pictures for each concept, and perhaps one called negatives; empty: the run's own images, whose
    labels are the concepts."""
    negatives: str = ""
    """Folder of pictures of no concept; by default what `negatives` made in the run, if anything."""
    classes: tuple[str, ...] = ()
    """Without --positives, the labels that are concepts; none: all."""
    per_class: int = Field(default=50, ge=1)
    """Without --positives, images of each concept at most."""
    n_negatives: int = Field(default=200, ge=0)
    """Without --positives, images of other classes at most."""
    seed: int = Field(default=0, ge=0)
    """Seed of these draws, and of the division."""
    sae: str = ""
    """Name of the SAE; by default the best, or the only one."""


class ScoreConfig(_Pictures):
    """Which pictures, and what is asked of features."""

    units: Literal["images", "patches"] = "images"
    """What is told apart: images by the largest value of their patches, or patches, all of which count as their image does."""
    against: Literal["auto", "negatives", "all"] = "auto"
    """What a concept is told from: the negatives, or `all` other pictures, those of other concepts too; `auto`: negatives, if there
    are any."""
    thresholds: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.5)
    """Shares of a feature's largest recorded value from which it says yes; 0: wherever it fires."""
    top_k: int = Field(default=5, ge=1)
    """Features listed for each concept."""
    include: tuple[int, ...] = ()
    """Features listed in any case."""
    val_share: float = Field(default=0.5, ge=0, lt=1)
    """Share of the pictures that scores are measured on, while features and thresholds are chosen on the others; 0: choose and measure
    on all."""


class SheetsConfig(_Pictures):
    """Which pictures, and how large."""

    top_k: int = Field(default=5, ge=1)
    """Features on each sheet, those that `score` listed first."""
    n_positive: int = Field(default=8, ge=1)
    """Pictures of the concept on each sheet."""
    n_negative: int = Field(default=4, ge=0)
    """Negatives beside them: of each feature, those that fire it most."""
    row_px: int = Field(default=120, ge=32, le=512)
    """Height of a picture."""
