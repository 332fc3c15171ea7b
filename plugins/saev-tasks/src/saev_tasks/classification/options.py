"""Options of `saev task classification`: one Config per verb."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from saev_core import Config
from saev_tasks.shared.option_kinds import Decays, Rates, Sizes
from saev_tasks.shared.pooling import parse_tokens


class TrainConfig(Config):
    """Options of `saev task classification train`."""

    site: str = ""
    """Site the probe reads: resid.2, or a block number (negative: from the end); if empty, the best SAE's site, else the last recorded."""
    tokens: str = "auto"
    """Tokens the probe reads: `cls`, `mean` (over patches), `token:N` (patch N); `auto`: what edits of the best SAE reach, that is
    cls if it reads the CLS token, else mean; without an SAE, cls if the model has one."""
    solver: Literal["adamw", "logistic", "both"] = "both"
    """AdamW over all learning rates and weight decays, scikit-learn's logistic regression over all `c`, or both."""
    lr: Rates = Field(default=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1), min_length=1)
    """AdamW learning rates, on standardised activations; all combinations with the weight decays train in one pass."""
    weight_decay: Decays = Field(default=(1e-4, 1e-3, 1e-2, 1e-1, 1.0), min_length=1)
    """Weight decays."""
    c: tuple[float, ...] = Field(default=(1e-3, 1e-2, 1e-1, 1.0, 10.0), min_length=1)
    """Inverse regularisation strengths for the logistic regression."""
    epochs: int = Field(default=20, ge=1)
    """Passes over the training images."""
    batch_size: int = Field(default=0, ge=0)
    """Images per step; 0: 512, or a sixteenth of the training images if that is less."""
    val_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of each class's images held out for validation."""
    tune_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training images used to choose the best setting and solver."""
    val: str = ""
    """Run to validate on instead, with all its images: the data set's own test split, recorded with the same model."""
    val_dataset: str = ""
    """Current location of that run's images, in the form of --dataset; if empty, where they were recorded from."""
    seed: int = 0
    """Seed for the split and the batch order."""

    @field_validator("tokens")
    @classmethod
    def _tokens(cls, value: str) -> str:
        if value != "auto":
            parse_tokens(value)
        return value


class ManipulateConfig(Config):
    """Options of `saev task classification manipulate`."""

    image: int = Field(default=0, ge=0)
    """Image number."""
    edit: dict[int, float] = Field(default_factory=dict)
    """FEATURE=STRENGTH, comma-separated: 302=0,1719=0."""
    mode: Literal["add", "set", "scale", "ablate"] = "scale"
    """scale: times STRENGTH (0 suppresses); add, set: STRENGTH in units of the feature's maximum; ablate: to 0."""
    where: tuple[int, ...] = ()
    """Patch numbers, row by row from 0; if empty, all patches."""
    prefix: bool = False
    """Edit prefix tokens (CLS, registers) too; always on if a probe of the CLS token reads the SAE's own site."""
    sae: str = ""
    """SAE name; if empty, the best SAE."""
    top: int = Field(default=5, ge=1)
    """Number of most likely classes, before and after, to show in the figure and the table."""


class ProposeConfig(Config):
    """Options of `saev task classification propose`."""

    sae: str = ""
    """SAE name; if empty, the best SAE."""
    n: int = Field(default=20, ge=1)
    """Maximum number of features per class."""
    by: Literal["auto", "attribution", "difference"] = "auto"
    """Score: what a feature adds to the probe's margin, or its mean activation on the class minus that on any other; auto: the former
    if the probe reads the SAE's site."""
    prefix: bool = False
    """Include prefix tokens; see manipulate."""
    n_images: int = Field(default=1000, ge=1)
    """Maximum number of training images."""
    seed: int = 0
    """Seed for sampling them."""


class ControlConfig(Config):
    """Options of `saev task classification control`."""

    sae: str = ""
    """SAE name; if empty, the best SAE."""
    classes: tuple[str, ...] = ()
    """Classes to test, by name or number; if empty, all that have features and images."""
    by: Literal["auto", "attribution", "difference"] = "auto"
    """How features are proposed; see propose."""
    prefix: bool = False
    """Edit prefix tokens too; see manipulate."""
    sizes: Sizes = Field(default=(1, 2, 3, 5, 8, 12, 20), min_length=1)
    """Numbers of features to try."""
    strengths: tuple[float, ...] = Field(default=(0.0, -1.0, -2.0, -4.0), min_length=1)
    """Factors to try, in this order, until one suffices: f' = factor x f; 0 ablates, a negative factor writes the opposite."""
    target: float = Field(default=0.9, gt=0, le=1)
    """Target share of the class's correctly classified training images to flip."""
    harm: float = Field(default=0.05, ge=0, le=1)
    """Maximum share of other classes' correctly classified training images that may be lost."""
    draws: int = Field(default=5, ge=1)
    """Random feature sets, and random directions, to average over."""
    n_train: int = Field(default=1000, ge=1)
    """Maximum number of training images for choosing features and strengths."""
    n_val: int = Field(default=0, ge=0)
    """Maximum number of validation images; 0: all."""
    seed: int = 0
    """Seed for sampling images, random features and directions, and for the bootstrap."""
