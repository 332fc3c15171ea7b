"""Options of the verbs of `saev task semprobe`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saev_core import Config


class NegativesConfig(Config):
    """Which images to sample."""

    n_images: int = Field(default=20, ge=1)
    """Number of images to sample."""
    classes: tuple[str, ...] = ()
    """Sample only from these classes; if empty, from all."""
    skip: tuple[str, ...] = ()
    """Images to exclude, by number or name, because they do show a concept."""
    seed: int = Field(default=42, ge=0)
    """Sampling seed."""
    source: str = ""
    """Data set to sample from, such as image-folder:FOLDER; default: the run's own."""
    to: str = ""
    """Output folder; default: RUN/tasks/semprobe/negatives, where `score` finds it."""


class _Pictures(Config):
    positives: str = ""
    """Folder with one subfolder of images per concept, and optionally one named negatives; if empty, the run's own images, with their
    labels as concepts."""
    negatives: str = ""
    """Folder of images that show no concept; default: the output of `negatives` in the run, if any."""
    classes: tuple[str, ...] = ()
    """Without --positives: labels to use as concepts; if empty, all."""
    per_class: int = Field(default=50, ge=1)
    """Without --positives: maximum number of images per concept."""
    n_negatives: int = Field(default=200, ge=0)
    """Without --positives: maximum number of images of other classes."""
    seed: int = Field(default=0, ge=0)
    """Seed for sampling and for the split."""
    sae: str = ""
    """SAE name; default: the best, or the only one."""


class ScoreConfig(_Pictures):
    """Which images, and how to score features."""

    units: Literal["images", "patches"] = "images"
    """Unit to classify: images, by their largest patch activation, or patches, each with its image's label."""
    against: Literal["auto", "negatives", "all"] = "auto"
    """Negatives for each concept: the negatives folder, or `all` other images, including those of other concepts; `auto`: the former, if
    it exists."""
    thresholds: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.5)
    """Detection thresholds, as shares of a feature's largest recorded value; 0: wherever it fires."""
    top_k: int = Field(default=5, ge=1)
    """Features to list per concept."""
    include: tuple[int, ...] = ()
    """Features to list in any case."""
    val_share: float = Field(default=0.5, ge=0, lt=1)
    """Share of the images to measure scores on; features and thresholds are chosen on the rest; 0: choose and measure
    on all."""


class SheetsConfig(_Pictures):
    """Which images, and how large."""

    top_k: int = Field(default=5, ge=1)
    """Features on each sheet: the first that `score` listed."""
    n_positive: int = Field(default=8, ge=1)
    """Images of the concept on each sheet."""
    n_negative: int = Field(default=4, ge=0)
    """Negatives on each sheet: the ones with each feature's highest activations."""
    row_px: int = Field(default=120, ge=32, le=512)
    """Image height, in pixels."""
