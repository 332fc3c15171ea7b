"""Options of `saev task semseg`: one Config for each verb."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saev_core import Config
from saev_tasks.shared.option_kinds import Decays, Rates, Sizes


class TrainConfig(Config):
    """Options of `saev task semseg train`."""

    site: str = ""
    """Where the probe reads: resid.2, or a block number, negative from the end; empty: the best SAE's site, else the last recorded."""
    loss: Literal["pixels", "patches"] = "pixels"
    """Cross-entropy of logits upsampled to the mask's pixels, or of patches against their majority class."""
    lr: Rates = Field(default=(1e-2, 3e-2, 1e-1), min_length=1)
    """Learning rates, of AdamW on standardised activations; all are trained in one pass with all weight decays."""
    weight_decay: Decays = Field(default=(1e-4, 1e-2), min_length=1)
    """Weight decays."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(default=2048, ge=1)
    """Vectors per step."""
    pixels: int = Field(default=0, ge=0)
    """Pixels drawn of each image and epoch; 0: a quarter as many as it has patches."""
    val_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of IMAGES to validate on."""
    tune_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training images on which the best point of the sweep is chosen."""
    val: str = ""
    """Run whose images, all of them, are validated on instead: a data set's own validation split, recorded with the same model."""
    val_dataset: str = ""
    """Where that run's pictures lie now, as --dataset; empty: where they lay."""
    ignore: tuple[str, ...] = ()
    """Mask classes that count for nothing, by name or number: other (ADE20K), 255."""
    seed: int = 0
    """Seed of the split, of the batches and of the pixels."""


class ValidateConfig(Config):
    """Options of `saev task semseg validate`."""

    examples: int = Field(default=6, ge=0)
    """Images in the qualitative panels."""
    n_images: int = Field(default=0, ge=0)
    """Validation images at most; 0: all."""


class ProposeConfig(Config):
    """Options of `saev task semseg propose`."""

    sae: str = ""
    """Name of the SAE; empty: the best."""
    n: int = Field(default=20, ge=1)
    """Features for each class at most."""
    by: Literal["auto", "attribution", "difference"] = "auto"
    """Score: what a feature adds to the probe's margin, or its mean activation on the class less that on any other; auto: the first
    where the probe reads the SAE's site."""
    n_images: int = Field(default=1000, ge=1)
    """Training images at most."""
    seed: int = 0
    """Seed of their choice."""


class ManipulateConfig(Config):
    """Options of `saev task semseg manipulate`."""

    image: int = Field(default=0, ge=0)
    """Number of the image."""
    edit: dict[int, float] = Field(default_factory=dict)
    """FEATURE=STRENGTH, several after commas: 302=0,1719=0."""
    mode: Literal["add", "set", "scale", "ablate"] = "scale"
    """scale: times STRENGTH (0 suppresses); add, set: STRENGTH in units of the feature's maximum; ablate: to 0."""
    where: tuple[int, ...] = ()
    """Patch numbers, row by row from 0; empty: all patches."""
    sae: str = ""
    """Name of the SAE; empty: the best."""


class ControlConfig(Config):
    """Options of `saev task semseg control`."""

    sae: str = ""
    """Name of the SAE; empty: the best."""
    classes: tuple[str, ...] = ()
    """Only these classes, by name or number; empty: all that have features and pixels."""
    by: Literal["auto", "attribution", "difference"] = "auto"
    """How features are proposed; see propose."""
    sizes: Sizes = Field(default=(1, 2, 3, 5, 8, 12, 20), min_length=1)
    """Numbers of features that are tried."""
    strengths: tuple[float, ...] = Field(default=(0.5, 0.25, 0.0, -1.0, -2.0, -4.0), min_length=1)
    """Factors that are tried: f' = factor x f; below 1 weakens, 0 ablates, a negative one writes in the opposite."""
    target: float = Field(default=0.9, gt=0, le=1)
    """Share of the class's right patches of training images that is to flip."""
    harm: float = Field(default=0.05, ge=0, le=1)
    """Largest mean share that other classes may lose there."""
    level: Literal["pixels", "patches"] = "pixels"
    """What is counted on validation images; patches are far cheaper where there are many classes."""
    draws: int = Field(default=5, ge=1)
    """Random feature sets, and random directions, that are averaged."""
    n_train: int = Field(default=600, ge=1)
    """Training images on which features and strengths are chosen, at most."""
    n_val: int = Field(default=0, ge=0)
    """Validation images at most; 0: all."""
    seed: int = 0
    """Seed of the choice of images, of random features and directions, and of the bootstrap."""
