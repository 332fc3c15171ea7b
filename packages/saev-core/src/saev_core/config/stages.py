"""Configuration tables of a run, one per stage; each field declares what it affects (`affects`)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from saev_core.config.affects import affects
from saev_core.config.base import Config
from saev_core.config.words import Auto, Off, OrAll, OrNone

Share = Annotated[float, Field(gt=0, lt=1)]


class RecordConfig(Config):
    """Recording of activations."""

    layers: tuple[int, ...] = affects("result", "extends", default=(-2,), min_length=1)
    """Blocks to record; negative numbers count from the end."""
    stream: str = "resid"
    """What to record of each block: `resid` for its output, or the dotted name of a module inside it (`mlp`)."""
    dtype: Literal["float16", "float32"] = "float16"
    """Stored precision; float16 halves disk usage and rejects values above 65,504."""
    batch_size: int = affects("cost", default=64, ge=1)
    """Images per forward pass."""
    n_workers: int = affects("cost", default=-1, ge=-1)
    """Image decoding threads; -1: one per core, at most 16; 0: decode between forward passes."""
    on_bad_image: Literal["missing", "stop"] = affects("nothing", default="missing")
    """How to handle an unreadable image: list it as `missing` and continue, or `stop` recording."""
    n_images: OrAll[PositiveInt] = "all"
    """Record only the first N images, or `all`."""
    chunk_images: int = Field(default=16, ge=1)
    """Images per inner chunk, the smallest unit that is read."""
    shard_images: int = Field(default=512, ge=1)
    """Images per shard file, the unit of resuming and parallel writing; a multiple of chunk_images."""
    part: str = affects("nothing", default="1/1", pattern=r"^\d+/\d+$")
    """Part to record: `2/4` is the second of four disjoint parts, which may be recorded in parallel."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.shard_images % self.chunk_images:
            raise ValueError("shard_images must be a multiple of chunk_images")
        number, of = map(int, self.part.split("/"))
        if not 1 <= number <= of:
            raise ValueError("part must be NUMBER/TOTAL, such as 2/4, with NUMBER from 1 to TOTAL")
        return self


class ReadConfig(Config):
    """Selection of recorded vectors; applied when reading, so that it can change without recording again."""

    layer: int | Annotated[tuple[int, ...], Field(min_length=2)] | Literal["all", "mean"] = -2
    """Block to read (negative: from the end), `all` recorded blocks as separate examples, or their `mean`; several blocks
    (`6,10`) are concatenated token by token, for `transcoder` and `crosscoder`."""
    stream: str = "resid"
    """Stream to read, as recorded (`record.stream`)."""
    tokens: Literal["patches", "cls", "mean"] = "patches"
    """Tokens to use: all patches, the CLS token, or the mean over patches."""
    clamp: OrNone[PositiveFloat] = None
    """Clip raw activations to [-clamp, clamp] before normalising; `none`: do not clip."""
    labels: OrNone[tuple[int, ...]] = None
    """Use only images with these labels; `none`: use all."""
    heldout: float = Field(default=0.1, ge=0, lt=1)
    """Fraction of IMAGES held out from training for evaluation."""
    split_seed: int = 0
    """Seed of the split into training and held-out images."""
    buffer_mb: int = affects("result", "order", default=1024, ge=1)
    """Size of the shuffle buffer in MB; larger buffers mix images better."""
    n_threads: int = affects("cost", default=2, ge=1)
    """Threads that read the store; does not affect the order of vectors."""

    @field_validator("layer", mode="before")
    @classmethod
    def _blocks(cls, value: Any) -> Any:
        if isinstance(value, str) and re.fullmatch(r"-?\d+(,-?\d+)*", plain := value.replace(" ", "")):
            blocks = [int(part) for part in plain.split(",")]
            return blocks if len(blocks) > 1 else blocks[0]
        return value

    @property
    def n_sites(self) -> int:
        """Number of sites concatenated in each vector."""
        return len(self.layer) if isinstance(self.layer, tuple) else 1


class TrainConfig(Config):
    """Training of SAEs."""

    n_tokens: Auto[PositiveInt] = affects("result", "pass", default="auto")
    """Total number of training vectors; `auto`: 20 epochs over the training images, at most 100,000,000."""
    batch_size: int = affects("result", "pass", "step", default=4096, ge=1)
    """Vectors per step."""
    lr: Auto[PositiveFloat] = "auto"
    """Peak learning rate; `auto`: the variant's default for its width, times 10 for muon, 4 for schedule-free."""
    optimizer: Literal["adam", "muon", "schedule-free"] = affects("result", "step", default="adam")
    """Optimiser: `adam`; `muon` for matrices with Adam for the rest; `schedule-free` Adam, with averaged steps and no decay."""
    n_lr_warmup: int = Field(default=500, ge=0)
    """Steps of linear learning rate warm-up, capped at a tenth of the run."""
    lr_decay: OrNone[Annotated[float, Field(ge=0, le=1)]] = None
    """Final fraction of the run over which the learning rate decays to 0; `none`: the variant's default, 1 for variants with a k,
    0.2 for others; ignored by schedule-free."""
    decay: Literal["linear", "cosine"] = "linear"
    """Shape of the learning rate decay; with lr_decay 1.0, cosine is half a wave over the whole run."""
    clip_grad: Off[PositiveFloat] = affects("result", "step", default=1.0)
    """Clip the gradient to this norm; `none`: do not clip."""
    ema: Off[Share] = affects("result", "step", default=None)
    """Decay of an exponential moving average of the weights, which checkpoints then contain; `none`: no averaging."""
    precision: Literal["float32", "tf32", "bf16"] = affects("result", "step", default="float32")
    """Precision of matmuls: tf32 needs CUDA; bf16 uses autocast on CUDA, and on a CPU applies to the encoder of sparse variants.
    Weights stay float32."""
    compile: bool = affects("result", "step", default=False)
    """Compile the loss with torch.compile; ignored by variants with a hand-written gradient."""
    dead_after: int = Field(default=10_000_000, ge=1)
    """A feature is dead if it has not fired for this many vectors; capped at a hundredth of the run."""
    n_init: int = affects("result", "pass", default=65_536, ge=1)
    """Vectors used for data-driven initialisation."""
    seed: int = affects("result", "pass", default=0)
    """Seed of initialisation and shuffling."""
    live: bool = affects("result", "pass", default=False)
    """Run the model during training instead of recording activations."""
    checkpoint_every: int = affects("cost", "pass", default=1000, ge=1)
    """Steps between resumable checkpoints."""
    log_every: int = affects("cost", "pass", default=25, ge=1)
    """Steps between logged metrics."""
    evaluate_every: Off[PositiveInt] = affects("cost", "pass", default=None)
    """Steps between evaluations on held-out images during training, plus one at the end; `none`: do not evaluate during training."""
    evaluate_vectors: int = affects("cost", "pass", default=16_384, ge=1)
    """Held-out vectors used by evaluations during training, the same ones each time."""
    memory_gb: Auto[PositiveFloat] = affects("cost", "pass", default="auto")
    """Memory limit in GB for the SAEs of one pass; `auto`: four fifths of free memory. SAEs that do not fit train in further passes."""

    @model_validator(mode="after")
    def _averaged_once(self) -> Self:
        if self.ema and self.optimizer == "schedule-free":
            raise ValueError("schedule-free already averages weights, so ema cannot be combined with it; remove one of them")
        return self


class EvaluateConfig(Config):
    """Evaluation of SAEs on held-out images."""

    batch_size: int = Field(default=8192, ge=1)
    """Vectors per step."""
    almost_dead: float = Field(default=1e-7, gt=0)
    """A feature that fires with a frequency below this counts as almost dead."""
    dense: float = Field(default=1e-2, gt=0)
    """A feature that fires with a frequency above this counts as dense."""
    best_l0: Auto[PositiveFloat] = affects("result", "comparison", default="auto")
    """Upper bound on L0 when selecting the SAE with the lowest NMSE as the best of several; `auto`: 1.1 times their median L0."""
    consensus: Off[Share] = affects("result", "comparison", default=0.7)
    """Cosine similarity between seeds above which a feature enters the consensus SAE, built from features that all seeds found;
    `none`: build no consensus SAE."""


class IndexConfig(Config):
    """Construction of the feature index."""

    top_k: int = Field(default=24, ge=1)
    """Top images kept per feature, all distinct."""
    n_samples: int = Field(default=40, ge=0)
    """Images per feature sampled from all on which it fires, so that weak activations are shown too; 0: none."""
    batch_images: int = Field(default=32, ge=1)
    """Images per step."""
    percentile: float = Field(default=99.0, gt=0, lt=100)
    """Percentile of a feature's non-zero values used as the upper end of heat maps."""


class NamesConfig(Config):
    """Naming of features."""

    source: str = Field(default="auto", min_length=1)
    """Source of candidate names: a file with one concept per line or `text`, the built-in list, both using the model's text encoder;
    `truth`, `masks` or `labels` of the data set; `auto`: the first of these three available; `none`: do not name features."""
    n_images: int = Field(default=3000, ge=2)
    """Maximum number of images used for naming: two thirds to select names, the rest, held out from training, to score them."""
    fires: float = Field(default=0.5, ge=0, le=1)
    """Fraction of a feature's 99th percentile from which it counts as firing during naming; 0: any value above 0."""
    threshold: float = Field(default=0.8, ge=0.5, le=1)
    """AUROC on held-out images below which a feature stays unnamed."""
    n_positive: int = Field(default=10, ge=1)
    """A feature is named only if at least this many held-out images fire it and at least this many do not."""


class ReportConfig(Config):
    """Selection of features shown in the report."""

    n_features: int = Field(default=60, ge=1)
    """Features in the gallery."""
    include: tuple[int, ...] = ()
    """Features to show always, by number."""
    log_freq_range: tuple[float, float] = (-4.0, -1.0)
    """Range of log10 frequency from which gallery features are drawn."""
    log_value_range: tuple[float, float] = (-3.0, 3.0)
    """Range of log10 mean non-zero value from which gallery features are drawn."""
    n_images: int = Field(default=8, ge=1)
    """Images shown per feature."""
