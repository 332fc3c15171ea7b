"""Options of `saev task classification`: one Config for each verb."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from saev_core import Config
from saev_tasks.shared.option_kinds import Decays, Rates, Sizes
from saev_tasks.shared.pooling import parse_tokens


class TrainConfig(Config):
    """Options of `saev task classification train`."""

    site: str = ""
    """Where the probe reads: resid.2, or a block number, negative from the end; empty: the best SAE's site, else the last recorded."""
    tokens: str = "auto"
    """What it reads of an image: `cls`, `mean` (over patches), `token:N` (patch N); `auto`: what edits of the best SAE reach, that is
    cls for one that reads the CLS token, else mean; without an SAE cls where there is one."""
    solver: Literal["adamw", "logistic", "both"] = "both"
    """AdamW over all learning rates and weight decays at once, scikit-learn's logistic regression over all `c`, or both."""
    lr: Rates = Field(default=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), min_length=1)
    """Learning rates, of AdamW on standardised activations; all are trained in one pass with all weight decays."""
    weight_decay: Decays = Field(default=(1e-4, 1e-3, 1e-2, 1e-1, 1.0), min_length=1)
    """Weight decays."""
    c: tuple[float, ...] = Field(default=(1e-3, 1e-2, 1e-1, 1.0, 10.0), min_length=1)
    """Inverse regularisation strengths of the logistic regression."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(default=0, ge=0)
    """Images per step; 0: 512, or a sixteenth of the training images if that is fewer."""
    val_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of every class's images to validate on."""
    tune_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training images on which the best point and solver are chosen."""
    val: str = ""
    """Run whose images, all of them, are validated on instead: a data set's own test split, recorded with the same model."""
    val_dataset: str = ""
    """Where that run's pictures lie now, as --dataset; empty: where they lay."""
    seed: int = 0
    """Seed of the split and of the order of batches."""

    @field_validator("tokens")
    @classmethod
    def _tokens(cls, value: str) -> str:
        if value != "auto":
            parse_tokens(value)
        return value


class ManipulateConfig(Config):
    """Options of `saev task classification manipulate`."""

    image: int = Field(default=0, ge=0)
    """Number of the image."""
    edit: dict[int, float] = Field(default_factory=dict)
    """FEATURE=STRENGTH, several after commas: 302=0,1719=0."""
    mode: Literal["add", "set", "scale", "ablate"] = "scale"
    """scale: times STRENGTH (0 suppresses); add, set: STRENGTH in units of the feature's maximum; ablate: to 0."""
    where: tuple[int, ...] = ()
    """Patch numbers, row by row from 0; empty: all patches."""
    prefix: bool = False
    """Edit prefix tokens (CLS, registers) too; always so where a probe of the CLS token reads the SAE's own site."""
    sae: str = ""
    """Name of the SAE; empty: the best."""
    top: int = Field(default=5, ge=1)
    """Classes in the figure and the table: so many of the likeliest, before and after."""


class ProposeConfig(Config):
    """Options of `saev task classification propose`."""

    sae: str = ""
    """Name of the SAE; empty: the best."""
    n: int = Field(default=20, ge=1)
    """Features for each class at most."""
    by: Literal["auto", "attribution", "difference"] = "auto"
    """Score: what a feature adds to the probe's margin, or its mean activation on the class less that on any other; auto: the first
    where the probe reads the SAE's site."""
    prefix: bool = False
    """Count prefix tokens too; see manipulate."""
    n_images: int = Field(default=1000, ge=1)
    """Training images at most."""
    seed: int = 0
    """Seed of their choice."""


class ControlConfig(Config):
    """Options of `saev task classification control`."""

    sae: str = ""
    """Name of the SAE; empty: the best."""
    classes: tuple[str, ...] = ()
    """Only these classes, by name or number; empty: all that have features and images."""
    by: Literal["auto", "attribution", "difference"] = "auto"
    """How features are proposed; see propose."""
    prefix: bool = False
    """Edit prefix tokens too; see manipulate."""
    sizes: Sizes = Field(default=(1, 2, 3, 5, 8, 12, 20), min_length=1)
    """Numbers of features that are tried."""
    strengths: tuple[float, ...] = Field(default=(0.0, -1.0, -2.0, -4.0), min_length=1)
    """Factors that are tried, in this order, until one is enough: f' = factor x f; 0 ablates, a negative one writes in the opposite."""
    target: float = Field(default=0.9, gt=0, le=1)
    """Share of the class's right training images that is to flip."""
    harm: float = Field(default=0.05, ge=0, le=1)
    """Largest share of other classes' right training images that may be lost."""
    draws: int = Field(default=5, ge=1)
    """Random feature sets, and random directions, that are averaged."""
    n_train: int = Field(default=1000, ge=1)
    """Training images on which features and strengths are chosen, at most."""
    n_val: int = Field(default=0, ge=0)
    """Validation images at most; 0: all."""
    seed: int = 0
    """Seed of the choice of images, of random features and directions, and of the bootstrap."""
