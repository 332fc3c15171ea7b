"""What a run is told: frozen pydantic models, one line of documentation and a range per field. Imports no torch.

Order of precedence, weakest first: defaults, `--config run.toml`, typed flags, `--set key=value`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from saev_core.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: frozen, unknown keys are errors, field docstrings become help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class PluginConfig(Config):
    """Base of a plugin's own options."""

    main: ClassVar[str] = ""
    """The option that a colon sets (`--model clip:ViT-B-16/openai`); by default the first field the plugin declares."""

    @classmethod
    def main_option(cls) -> str:
        """The field that `name:VALUE` fills.

        Raises:
            ConfigError: the plugin declares no option of its own.
        """
        if cls.main:
            return cls.main
        for klass in cls.__mro__:
            if klass in (PluginConfig, Config, BaseModel):
                break
            if own := [name for name in klass.__annotations__ if name in cls.model_fields]:
                return own[0]
        raise ConfigError(f"{cls.__module__}.{cls.__qualname__} has no option for a colon to set; use --set.")


class ModelConfig(PluginConfig):
    """Options every model has; a model plugin adds its own."""

    main = "checkpoint"

    checkpoint: str = ""
    """Which weights: a hub name, or a local file or folder."""
    pretrained: bool = True
    """Load weights; false gives random ones, for tests."""
    blocks: str = ""
    """Dotted glob of the modules to hook instead of the model's own blocks, such as `layers.*`."""


class DatasetConfig(PluginConfig):
    """Options every data set has; a data set plugin adds its own."""

    locations: ClassVar[tuple[str, ...]] = ("root",)
    """Options that say where the data lie, not what they are: kept out of the store's identity."""


VECTORS_PER_FEATURE = 128
"""Training vectors of one pass that each feature gets at least, where the width is chosen automatically. At 80 (1,536
features on 549 photographs) a third of the features fired on more than 1 % of patches, at 130 the kinds came apart."""
WIDTH_STEP = 64
"""Automatic widths are multiples of this."""


class SAEConfig(PluginConfig):
    """Options every SAE has; `d_in` comes from the store."""

    d_in: int = Field(default=0, ge=0)
    """Width of the activations; filled in from the store."""
    n_sites: int = Field(default=1, ge=1)
    """Sites joined in each vector; filled in from `read.layer`."""
    d_sae: int = Field(default=0, ge=0)
    """Number of features; 0: `expansion` per dimension, but at most one for each 128 training vectors of a pass."""
    expansion: int = Field(default=16, ge=1)
    """Features per dimension of one site, used where `d_sae` is 0."""
    data_init: bool = True
    """Start decoder rows from training vectors; false: from random directions."""
    normalize_w_dec: bool = True
    """Keep decoder rows at length 1."""
    remove_parallel_grads: bool = True
    """Take out the part of the decoder's gradient that only changes its rows' lengths."""
    ghost: float = Field(default=0.0, ge=0)
    """Weight of ghost gradients, which revive dead features; 1 as published, 0: none."""
    resample_every: int = Field(default=0, ge=0)
    """Steps between resamplings of dead features, in the first four fifths of the run; 0: none."""
    warmup_shape: Literal["linear", "cosine"] = "linear"
    """Shape of the variant's own schedules: how the weight of sparsity rises, how k falls."""

    def sized(self, d_in: int, n_vectors: int = 0) -> Self:
        """This configuration for inputs of width `d_in`, with `d_sae` settled.

        Args:
            n_vectors: training vectors of one pass, where they are known. Few of them bound a width that nobody
                named (`VECTORS_PER_FEATURE`): a feature that has little to be learned from dies or memorises.

        Raises:
            ConfigError: it already names another width.
        """
        if self.d_in not in (0, d_in):
            raise ConfigError(f"sae.d_in is {self.d_in}, but the activations are {d_in} wide; leave sae.d_in out.")
        if d_in % self.n_sites:
            raise ConfigError(f"sae.n_sites is {self.n_sites}, but the activations are {d_in} wide; leave sae.n_sites out.")
        d_sae = self.d_sae or self.expansion * d_in // self.n_sites
        if n_vectors and not self.d_sae:
            affordable = n_vectors // VECTORS_PER_FEATURE // WIDTH_STEP * WIDTH_STEP
            d_sae = min(d_sae, max(affordable, WIDTH_STEP))
        return type(self).model_validate({**self.model_dump(), "d_in": d_in, "d_sae": d_sae})


class PluginRef(Config):
    """A plugin by name, with its options. `clip:ViT-B-16/openai` is short for its main option.

    Keys beside `name` and `options` are taken as options, so `--set model.blocks=layers.*` works.
    """

    name: str
    """The entry point's name; `dist:name` where two distributions share one."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The plugin's own options, checked by its Config when it is loaded."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"name": data}
        if isinstance(data, dict) and (loose := {k: v for k, v in data.items() if k not in ("name", "options")}):
            return {"name": data.get("name"), "options": {**data.get("options", {}), **loose}}
        return data


class RecordConfig(Config):
    """How activations are recorded."""

    layers: tuple[int, ...] = Field(default=(-2,), min_length=1)
    """Blocks to record; negative ones count from the end."""
    stream: str = "resid"
    """What of each block: `resid`, its output, or a dotted module inside it (`mlp`)."""
    dtype: Literal["float16", "float32"] = "float16"
    """Stored precision; float16 halves the disk and refuses values above 65,504."""
    batch_size: int = Field(default=64, ge=1)
    """Images per forward pass."""
    n_workers: int = Field(default=-1, ge=-1)
    """Decoding threads; -1: one per core, at most 16; 0: none, images are decoded between forward passes."""
    on_bad_image: Literal["missing", "stop"] = "missing"
    """What an unreadable image does: it is recorded as missing and listed, or it stops the recording."""
    n_images: int = Field(default=0, ge=0)
    """Record only the first so many images; 0: all."""
    chunk_images: int = Field(default=16, ge=1)
    """Images per inner chunk: the smallest piece that is read at once."""
    shard_images: int = Field(default=512, ge=1)
    """Images per shard file: the piece that resumes and that one writer owns; a multiple of chunk_images."""
    part: str = Field(default="1/1", pattern=r"^\d+/\d+$")
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
    clamp: float | None = Field(default=None, gt=0)
    """Clip raw activations to [-clamp, clamp] before normalising; none: do not."""
    labels: tuple[int, ...] | None = None
    """Use only images with these labels; none: all."""
    heldout: float = Field(default=0.1, ge=0, lt=1)
    """Share of IMAGES kept from training, for evaluation."""
    split_seed: int = 0
    """Seed of the division into training and held-out images."""
    buffer_mb: int = Field(default=1024, ge=1)
    """Memory of the shuffle buffer in MB; larger mixes better."""
    n_threads: int = Field(default=2, ge=1)
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

    stream: ClassVar[tuple[str, ...]] = (
        *("n_tokens", "batch_size", "n_init", "seed", "live"),
        *("checkpoint_every", "log_every", "evaluate_every", "evaluate_vectors", "memory_gb"),
    )
    """Options that belong to the pass over the data, and are one for all SAEs that share it."""

    n_tokens: int = Field(default=0, ge=0)
    """Training vectors in all; 0: 20 passes over the training images, at most 100,000,000."""
    batch_size: int = Field(default=4096, ge=1)
    """Vectors per step."""
    lr: float = Field(default=0.0, ge=0)
    """Peak learning rate; 0: the variant's own choice for its width, times 10 for muon, 4 for schedule-free."""
    optimizer: Literal["adam", "muon", "schedule-free"] = "adam"
    """What moves the weights: Adam; muon for matrices and Adam for the rest; Adam whose steps are averaged, with no decay."""
    n_lr_warmup: int = Field(default=500, ge=0)
    """Steps of linear learning rate warm-up, at most a tenth of the run."""
    lr_decay: float | None = Field(default=None, ge=0, le=1)
    """Share of the run over which the learning rate falls to 0 at the end; none: the variant's own choice, 1 for those with a k,
    0.2 for others; schedule-free has no such fall."""
    decay: Literal["linear", "cosine"] = "linear"
    """Shape of that fall; 1.0 and cosine: half a wave over the whole run."""
    clip_grad: float = Field(default=1.0, ge=0)
    """Largest gradient norm; 0: no clipping."""
    ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which is then what a checkpoint holds; 0: none."""
    precision: Literal["float32", "tf32", "bf16"] = "float32"
    """Of matmuls: tf32 on CUDA; bf16 for the sparse variants' encoder on a CPU and under autocast on CUDA. Weights stay float32."""
    compile: bool = False
    """Compile the loss of variants that are differentiated by torch; those with a gradient of their own ignore it."""
    dead_after: int = Field(default=10_000_000, ge=1)
    """Vectors without an activation after which a feature counts as dead; at most a hundredth of the run."""
    n_init: int = Field(default=65_536, ge=1)
    """Vectors used for data-driven initialisation."""
    seed: int = 0
    """Seed of initialisation and shuffling."""
    live: bool = False
    """Run the model while training, and record nothing."""
    checkpoint_every: int = Field(default=1000, ge=1)
    """Steps between resumable checkpoints."""
    log_every: int = Field(default=25, ge=1)
    """Steps between metric lines."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between evaluations on held-out images, and one at the end; 0: none while training."""
    evaluate_vectors: int = Field(default=16_384, ge=1)
    """Held-out vectors that these use, the same ones each time."""
    memory_gb: float = Field(default=0.0, ge=0)
    """Memory in GB that the SAEs of one pass may take; 0: four fifths of what is free. More of them train in several passes."""

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
    best_l0: float = Field(default=0.0, ge=0)
    """Largest L0 of the SAE that is called the best of several, the one with the lowest NMSE; 0: 1.1 times their median L0."""
    consensus: float = Field(default=0.7, ge=0, lt=1)
    """Cosine between seeds above which a feature enters their consensus, an SAE made of what all seeds found; 0: none is made."""


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
    names: str = Field(default="auto", min_length=1)
    """What names are proposed from: a file of concepts, one a line, or `text`, the list that is shipped, both through the model's text
    side; `truth`, `masks` or `labels` of the data set; `auto`, the first of these three that it has; `none`."""
    names_images: int = Field(default=3000, ge=2)
    """Images that names are made from, at most: two thirds to choose on, the others, held out from training, to score on."""
    names_fires: float = Field(default=0.5, ge=0, le=1)
    """Share of a feature's 99th percentile from which it counts as firing when names are made; 0: any value above 0."""
    names_threshold: float = Field(default=0.8, ge=0.5, le=1)
    """AUROC on held-out images below which a feature stays unnamed."""
    names_positive: int = Field(default=10, ge=1)
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


class RunConfig(Config):
    """Everything that decides what a run does; saved as `config.json` in the run folder."""

    model: PluginRef = PluginRef(name="tiny")
    """The vision model."""
    dataset: PluginRef = PluginRef(name="shapes")
    """The images."""
    sae: PluginRef = PluginRef(name="topk")
    """The SAE variant."""
    record: RecordConfig = RecordConfig()
    read: ReadConfig = ReadConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    index: IndexConfig = IndexConfig()
    report: ReportConfig = ReportConfig()
    trackers: tuple[str, ...] = ("jsonl",)
    """Trackers by name; JSON lines are always written."""
    store: str = ""
    """Where the activations lie, if not in the run folder."""
    device: str = "auto"
    """`auto` picks cuda, mps or cpu; or one of these."""
    sweep: dict[str, Any] = Field(default_factory=dict)
    """What `--sweep FILE` held: settings whose lists expand to a grid of SAEs; empty: one SAE."""


C = TypeVar("C", bound=Config)


def validate(kind: type[C], data: dict[str, Any], where: str = "") -> C:
    """`data` as a `kind`, or one line that names the first wrong key, its place and the nearest right one.

    Raises:
        ConfigError: a key is unknown or a value does not fit.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_one_line(kind, error.errors()[0], where)) from None


def _one_line(kind: type[Config], detail: ErrorDetails, where: str) -> str:
    place = ".".join([where, *map(str, detail["loc"])] if where else [str(part) for part in detail["loc"]])
    if detail["type"] != "extra_forbidden":
        got = "" if isinstance(detail["input"], dict) else f" (got {detail['input']!r})"
        return f"{place or 'config'}: {detail['msg'].removeprefix('Value error, ')}{got}."
    known = _fields_at(kind, detail["loc"][:-1])
    near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
    return f"{place}: unknown; " + (f"did you mean {near[0]}?" if near else f"known here: {', '.join(sorted(known))}.")


def _fields_at(kind: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    for key in loc:
        field = kind.model_fields.get(str(key))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        kind = annotation
    return list(kind.model_fields)


def load_toml(path: str | Path, *, flag: str = "--config") -> dict[str, Any]:
    """A configuration file as nested dicts.

    Raises:
        ConfigError: it does not exist or is not TOML; the line is named.
    """
    import tomllib

    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; {flag} takes a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from None


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old, new) for every leaf in which two nested dicts differ; None where a side lacks it."""
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


def merge(data: dict[str, Any], over: dict[str, Any]) -> None:
    """Lay nested dicts over others in place. Another plugin's name clears the options of the one before."""
    for key, value in over.items():
        old = data.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and value.get("name", old.get("name")) == old.get("name"):
            merge(old, value)
        else:
            data[key] = value


def set_key(data: dict[str, Any], assignment: str) -> None:
    """Apply `a.b=VALUE` to nested dicts in place; VALUE is read as TOML, and as a plain string where that fails.

    Raises:
        ConfigError: there is no `=`, or `a` already holds a plain value.
    """
    import tomllib

    key, eq, text = assignment.partition("=")
    if not eq or not key.strip():
        raise ConfigError(f"--set {assignment}: write it like --set train.lr=3e-4.")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {assignment}: {parent} is a value, not a table.")
    data[last] = value
