"""The tables of a run's configuration, one for each stage; each field states what it affects (`affects`)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from saev_core.config.affects import affects
from saev_core.config.base import Config
from saev_core.config.words import Auto, Off, OrAll, OrNone

Share = Annotated[float, Field(gt=0, lt=1)]


class RecordConfig(Config):
    """How activations are recorded."""

    layers: tuple[int, ...] = affects("result", "extends", default=(-2,), min_length=1)
    """Blocks to record; negative ones count from the end."""
    stream: str = "resid"
    """What of each block: `resid`, its output, or a dotted module inside it (`mlp`)."""
    dtype: Literal["float16", "float32"] = "float16"
    """Stored precision; float16 halves the disk and refuses values above 65,504."""
    batch_size: int = affects("cost", default=64, ge=1)
    """Images per forward pass."""
    n_workers: int = affects("cost", default=-1, ge=-1)
    """Decoding threads; -1: one per core, at most 16; 0: none, images are decoded between forward passes."""
    on_bad_image: Literal["missing", "stop"] = affects("nothing", default="missing")
    """What an unreadable image does: it is recorded as missing and listed, or it stops the recording."""
    n_images: OrAll[PositiveInt] = "all"
    """Record only the first so many images, or `all`."""
    chunk_images: int = Field(default=16, ge=1)
    """Images per inner chunk: the smallest piece that is read at once."""
    shard_images: int = Field(default=512, ge=1)
    """Images per shard file: the piece that resumes and that one writer owns; a multiple of chunk_images."""
    part: str = affects("nothing", default="1/1", pattern=r"^\d+/\d+$")
    """`2/4`: record the second of four disjoint parts; several recorders may run at once."""

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.shard_images % self.chunk_images:
            raise ValueError("shard_images must be a multiple of chunk_images")
        number, of = map(int, self.part.split("/"))
        if not 1 <= number <= of:
            raise ValueError("part is NUMBER/OF, such as 2/4, and NUMBER is 1 to OF")
        return self


class ReadConfig(Config):
    """Which recorded vectors are used; chosen when reading, never when recording."""

    layer: int | Annotated[tuple[int, ...], Field(min_length=2)] | Literal["all", "mean"] = -2
    """Block to read (negative: from the model's end), `all` recorded ones as so many examples, or their `mean`; several blocks
    (`6,10`) are joined, one vector being the same token at each of them, for `transcoder` and `crosscoder`."""
    stream: str = "resid"
    """Stream of the site, as recorded."""
    tokens: Literal["patches", "cls", "mean"] = "patches"
    """Patches, the CLS token, or the mean over patches."""
    clamp: OrNone[PositiveFloat] = None
    """Clip raw activations to [-clamp, clamp] before normalising, or `none`."""
    labels: OrNone[tuple[int, ...]] = None
    """Use only images with these labels; `none`: all."""
    heldout: float = Field(default=0.1, ge=0, lt=1)
    """Share of IMAGES kept from training, for evaluation."""
    split_seed: int = 0
    """Seed of the division into training and held-out images."""
    buffer_mb: int = affects("result", "order", default=1024, ge=1)
    """Memory of the shuffle buffer in MB; larger mixes better."""
    n_threads: int = affects("cost", default=2, ge=1)
    """Reading threads; the order does not depend on it."""

    @field_validator("layer", mode="before")
    @classmethod
    def _blocks(cls, value: Any) -> Any:
        if isinstance(value, str) and re.fullmatch(r"-?\d+(,-?\d+)*", plain := value.replace(" ", "")):
            blocks = [int(part) for part in plain.split(",")]
            return blocks if len(blocks) > 1 else blocks[0]
        return value

    @property
    def n_sites(self) -> int:
        """Sites joined in each vector."""
        return len(self.layer) if isinstance(self.layer, tuple) else 1


class TrainConfig(Config):
    """How SAEs are trained."""

    n_tokens: Auto[PositiveInt] = affects("result", "pass", default="auto")
    """Training vectors in all; `auto`: 20 passes over the training images, at most 100,000,000."""
    batch_size: int = affects("result", "pass", "step", default=4096, ge=1)
    """Vectors per step."""
    lr: Auto[PositiveFloat] = "auto"
    """Peak learning rate; `auto`: the variant's own choice for its width, times 10 for muon, 4 for schedule-free."""
    optimizer: Literal["adam", "muon", "schedule-free"] = affects("result", "step", default="adam")
    """What moves the weights: Adam; muon for matrices and Adam for the rest; Adam whose steps are averaged, with no decay."""
    n_lr_warmup: int = Field(default=500, ge=0)
    """Steps of linear learning rate warm-up, at most a tenth of the run."""
    lr_decay: OrNone[Annotated[float, Field(ge=0, le=1)]] = None
    """Share of the run over which the learning rate falls to 0 at the end; `none`: the variant's own choice, 1 for those with a k,
    0.2 for others; schedule-free has no such fall."""
    decay: Literal["linear", "cosine"] = "linear"
    """Shape of that fall; 1.0 and cosine: half a wave over the whole run."""
    clip_grad: Off[PositiveFloat] = affects("result", "step", default=1.0)
    """Largest gradient norm, or `none`: no clipping."""
    ema: Off[Share] = affects("result", "step", default=None)
    """Decay of an exponential moving average of the weights, which is then what a checkpoint holds, or `none`."""
    precision: Literal["float32", "tf32", "bf16"] = affects("result", "step", default="float32")
    """Of matmuls: tf32 on CUDA; bf16 for the sparse variants' encoder on a CPU and under autocast on CUDA. Weights stay float32."""
    compile: bool = affects("result", "step", default=False)
    """Compile the loss of variants that are differentiated by torch; those with a gradient of their own ignore it."""
    dead_after: int = Field(default=10_000_000, ge=1)
    """Vectors without an activation after which a feature counts as dead; at most a hundredth of the run."""
    n_init: int = affects("result", "pass", default=65_536, ge=1)
    """Vectors used for data-driven initialisation."""
    seed: int = affects("result", "pass", default=0)
    """Seed of initialisation and shuffling."""
    live: bool = affects("result", "pass", default=False)
    """Run the model while training, and record nothing."""
    checkpoint_every: int = affects("cost", "pass", default=1000, ge=1)
    """Steps between resumable checkpoints."""
    log_every: int = affects("cost", "pass", default=25, ge=1)
    """Steps between metric lines."""
    evaluate_every: Off[PositiveInt] = affects("cost", "pass", default=None)
    """Steps between evaluations on held-out images, and one at the end, or `none` while training."""
    evaluate_vectors: int = affects("cost", "pass", default=16_384, ge=1)
    """Held-out vectors that these use, the same ones each time."""
    memory_gb: Auto[PositiveFloat] = affects("cost", "pass", default="auto")
    """Memory in GB that the SAEs of one pass may take; `auto`: four fifths of what is free. More of them train in several passes."""

    @model_validator(mode="after")
    def _averaged_once(self) -> Self:
        if self.ema and self.optimizer == "schedule-free":
            raise ValueError("ema averages weights, and schedule-free does so already; leave one of them out")
        return self


class EvaluateConfig(Config):
    """How an SAE is measured on held-out images."""

    batch_size: int = Field(default=8192, ge=1)
    """Vectors per step."""
    almost_dead: float = Field(default=1e-7, gt=0)
    """Frequency below which a feature that fires at all counts as almost dead."""
    dense: float = Field(default=1e-2, gt=0)
    """Frequency above which a feature counts as dense."""
    best_l0: Auto[PositiveFloat] = affects("result", "comparison", default="auto")
    """Largest L0 of the SAE that is called the best of several, the one with the lowest NMSE; `auto`: 1.1 times their median L0."""
    consensus: Off[Share] = affects("result", "comparison", default=0.7)
    """Cosine between seeds above which a feature enters their consensus, an SAE made of what all seeds found, or `none`."""


class IndexConfig(Config):
    """How the feature index is built."""

    top_k: int = Field(default=24, ge=1)
    """Distinct images kept per feature."""
    n_samples: int = Field(default=40, ge=0)
    """Images per feature drawn from all that fire it, so that weak ones are seen too; 0: none."""
    batch_images: int = Field(default=32, ge=1)
    """Images per step."""
    percentile: float = Field(default=99.0, gt=0, lt=100)
    """The percentile of a feature's non-zero values that heat maps take as their upper end."""


class NamesConfig(Config):
    """How features are named."""

    source: str = Field(default="auto", min_length=1)
    """What names are proposed from: a file of concepts, one a line, or `text`, the list that is shipped, both through the model's text
    side; `truth`, `masks` or `labels` of the data set; `auto`, the first of these three that it has; `none`."""
    n_images: int = Field(default=3000, ge=2)
    """Images that names are made from, at most: two thirds to choose on, the others, held out from training, to score on."""
    fires: float = Field(default=0.5, ge=0, le=1)
    """Share of a feature's 99th percentile from which it counts as firing when names are made; 0: any value above 0."""
    threshold: float = Field(default=0.8, ge=0.5, le=1)
    """AUROC on held-out images below which a feature stays unnamed."""
    n_positive: int = Field(default=10, ge=1)
    """Held-out images that must fire a feature, and must not, for it to be named."""


class ReportConfig(Config):
    """Which features the report shows."""

    n_features: int = Field(default=60, ge=1)
    """Features in the gallery."""
    include: tuple[int, ...] = ()
    """Features always shown."""
    log_freq_range: tuple[float, float] = (-4.0, -1.0)
    """log10 of frequency that the gallery draws from."""
    log_value_range: tuple[float, float] = (-3.0, 3.0)
    """log10 of mean non-zero value that the gallery draws from."""
    n_images: int = Field(default=8, ge=1)
    """Pictures per feature."""
