"""Options of `saev task semseg`: one Config per verb."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from saev_core import Config
from saev_tasks.shared.option_kinds import Decays, Rates, Sizes


class TrainConfig(Config):
    """Options of `saev task semseg train`."""

    site: str = ""
    """Site the probe reads: resid.2, or a block number (negative: from the end); if empty, the best SAE's site, else the last recorded."""
    loss: Literal["pixels", "patches"] = "pixels"
    """Cross-entropy of logits upsampled to the mask's pixels, or of patches against their majority class."""
    lr: Rates = Field(default=(1e-2, 3e-2, 1e-1), min_length=1)
    """AdamW learning rates, on standardised activations; all combinations with the weight decays train in one pass."""
    weight_decay: Decays = Field(default=(1e-4, 1e-2), min_length=1)
    """Weight decays."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(default=2048, ge=1)
    """Vectors per step."""
    pixels: int = Field(default=0, ge=0)
    """Pixels sampled per image and epoch; 0: a quarter of its number of patches."""
    val_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of IMAGES held out for validation."""
    tune_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training images used to choose the best setting of the sweep."""
    val: str = ""
    """Run to validate on instead, with all its images: the data set's own validation split, recorded with the same model."""
    val_dataset: str = ""
    """Current location of that run's images, in the form of --dataset; if empty, where they were recorded from."""
    ignore: tuple[str, ...] = ()
    """Mask classes to ignore, by name or number: other (ADE20K), 255."""
    seed: int = 0
    """Seed for the split, the batches and the pixels."""


class ValidateConfig(Config):
    """Options of `saev task semseg validate`."""

    examples: int = Field(default=6, ge=0)
    """Number of images in the qualitative panels."""
    n_images: int = Field(default=0, ge=0)
    """Maximum number of validation images; 0: all."""


class ProposeConfig(Config):
    """Options of `saev task semseg propose`."""

    sae: str = ""
    """SAE name; if empty, the best SAE."""
    n: int = Field(default=20, ge=1)
    """Maximum number of features per class."""
    by: Literal["auto", "attribution", "difference"] = "auto"
    """Score: what a feature adds to the probe's margin, or its mean activation on the class minus that on any other; auto: the former
    if the probe reads the SAE's site."""
    n_images: int = Field(default=1000, ge=1)
    """Maximum number of training images."""
    seed: int = 0
    """Seed for sampling them."""


class ManipulateConfig(Config):
    """Options of `saev task semseg manipulate`."""

    image: int = Field(default=0, ge=0)
    """Image number."""
    edit: dict[int, float] = Field(default_factory=dict)
    """FEATURE=STRENGTH, comma-separated: 302=0,1719=0."""
    mode: Literal["add", "set", "scale", "ablate"] = "scale"
    """scale: times STRENGTH (0 suppresses); add, set: STRENGTH in units of the feature's maximum; ablate: to 0."""
    where: tuple[int, ...] = ()
    """Patch numbers, row by row from 0; if empty, all patches."""
    sae: str = ""
    """SAE name; if empty, the best SAE."""


class ControlConfig(Config):
    """Options of `saev task semseg control`."""

    sae: str = ""
    """SAE name; if empty, the best SAE."""
    classes: tuple[str, ...] = ()
    """Classes to test, by name or number; if empty, all that have features and pixels."""
    by: Literal["auto", "attribution", "difference"] = "auto"
    """How features are proposed; see propose."""
    sizes: Sizes = Field(default=(1, 2, 3, 5, 8, 12, 20), min_length=1)
    """Numbers of features to try."""
    strengths: tuple[float, ...] = Field(default=(0.5, 0.25, 0.0, -1.0, -2.0, -4.0), min_length=1)
    """Factors to try: f' = factor x f; below 1 weakens, 0 ablates, a negative factor writes the opposite."""
    target: float = Field(default=0.9, gt=0, le=1)
    """Target share of the class's correctly classified training patches to flip."""
    harm: float = Field(default=0.05, ge=0, le=1)
    """Maximum mean share that other classes may lose on the training images."""
    level: Literal["pixels", "patches"] = "pixels"
    """Unit counted on validation images; patches are far cheaper with many classes."""
    draws: int = Field(default=5, ge=1)
    """Random feature sets, and random directions, to average over."""
    n_train: int = Field(default=600, ge=1)
    """Maximum number of training images for choosing features and strengths."""
    n_val: int = Field(default=0, ge=0)
    """Maximum number of validation images; 0: all."""
    seed: int = 0
    """Seed for sampling images, random features and directions, and for the bootstrap."""
