"""Typed flags: one table maps each flag to its setting; each command selects the flags it takes. Imports no pydantic."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from saev_core.config.run import RunConfig


@dataclass(frozen=True)
class Flag:
    """A typed flag: its name, the configuration key it sets (empty: not part of the configuration), type and help."""

    name: str
    key: str
    kind: Any
    help: str
    panel: str = "Options"
    metavar: str | None = None
    """What stands for the value in help, where that is more than its type."""


_WHAT, _RUN, _TALK = "Inputs", "Output", "Logging"
FLAGS = {
    flag.name: flag
    for flag in [
        Flag("--model", "model", str, "Model plugin, with its main option after a colon: tiny, clip:ViT-B-16/openai.", _WHAT),
        Flag("--dataset", "dataset", str, "Data set plugin, with its main option: shapes, image-folder:FOLDER.", _WHAT),
        Flag("--sae", "sae", str, "SAE plugin, with its main option: topk:32, relu.", _WHAT),
        Flag("--record-layers", "record.layers", list[int], "Blocks to record, several after one flag: --record-layers -1 -2.", _WHAT),
        Flag(
            "--layer",
            "read.layer",
            str,
            "Recorded block to train on (default: the first of --record-layers); all; mean; or several, joined: 6,10.",
            _WHAT,
        ),
        Flag("--stream", "record.stream", str, "Site in each block: resid (its output) or a module inside it (mlp).", _WHAT),
        Flag("--tokens", "read.tokens", str, "Vectors to train on: patches, cls, or mean (over patches).", _WHAT),
        Flag("--labels", "read.labels", list[int], "Train only on images with these labels.", _WHAT),
        Flag("--clamp", "read.clamp", float, "Clip raw activations to plus or minus this.", _WHAT),
        Flag("--n-images", "record.n_images", str, "Record only the first so many images.", _WHAT, "NUMBER|all"),
        Flag("--dtype", "record.dtype", str, "Stored precision: float16 or float32."),
        Flag("--on-bad-image", "record.on_bad_image", str, "missing: record an unreadable image as missing; stop: stop the recording."),
        Flag("--part", "record.part", str, "2/4: record the second of four disjoint parts."),
        Flag(
            "--n-tokens", "train.n_tokens", str, "Training vectors in all; auto: 20 passes over the training images.", metavar="NUMBER|auto"
        ),
        Flag("--lr", "train.lr", str, "Peak learning rate; auto: the variant's own choice.", metavar="NUMBER|auto"),
        Flag("--live", "train.live", bool, "Train directly on the model's activations, without recording them."),
        Flag("--sweep", "sweep", str, "TOML file whose lists expand to a grid of SAEs; those that read the same data share a pass."),
        Flag("--dry-run", "", bool, "Show what would be trained, with memory, time and disk; write nothing."),
        Flag("--yes", "", bool, "Skip the confirmation for sweeps of more than 1,000 SAEs."),
        Flag("--only", "", list[str], "SAE to index; may be repeated."),
        Flag("--seed", "train.seed", int, "Seed of initialisation and shuffling."),
        Flag("--heldout", "read.heldout", float, "Share of images held out from training, for evaluation."),
        Flag("--top-k", "index.top_k", int, "Distinct images kept per feature."),
        Flag("--names", "names.source", str, "Names of features: a file of concepts; no value: our list; or labels, masks, truth, none."),
        Flag("--n-features", "report.n_features", int, "Features in the report's gallery."),
        Flag("--include", "report.include", list[int], "Features that the report always shows."),
        Flag("--device", "device", str, "cuda, mps or cpu; auto picks the first available."),
        Flag("--tracker", "trackers", list[str], "Tracker plugin; may be repeated. JSON lines are always written."),
        Flag("--out", "", str, "Run folder (default: runs/<date>-<model>-<dataset>).", _RUN),
        Flag("--store", "store", str, "Location of the activation store, if not in the run folder.", _RUN),
        Flag("--config", "", str, "TOML file of settings; flags override it.", _RUN),
        Flag("--set", "", list[str], "Any setting by its key, overrides flags: --set train.lr=3e-4.", _RUN),
    ]
}
PLUGIN_KEYS = ("model", "dataset", "sae")
_BATCH = {"record": "Images per forward pass.", "train": "Vectors per training step.", "evaluate": "Vectors per step."}


@dataclass(frozen=True)
class Flags:
    """The flags given on the command line: flag -> value."""

    given: Mapping[str, Any] = field(default_factory=dict)
    run: str = ""
    """The RUN argument, or --out."""
    json: bool = False
    debug: bool = False
    batch: str = "train"
    """The section that --batch-size belongs to in this command."""
    whole: bool = False
    """The flags are the complete configuration; that of an existing run is not used as a base."""

    def config(self, base: RunConfig | None = None) -> RunConfig:
        """The configuration from `base` or the defaults, --config, flags and --set, in ascending precedence.

        Raises:
            ConfigError, UnknownPluginError: a key, value or plugin name is invalid.
        """
        from saev_core.config.base import validate
        from saev_core.config.run import RunConfig
        from saev_core.config.toml_and_set import load_toml, merge, set_key
        from saev_core.plugins.registry import parse_ref

        data: dict[str, Any] = (base or RunConfig()).model_dump(mode="json")
        if "--config" in self.given:
            loaded = load_toml(self.given["--config"])
            merge(data, {key: parse_ref(key, value).model_dump() if _names_plugin(key, value) else value for key, value in loaded.items()})
        for name, value in self.given.items():
            key = f"{self.batch}.batch_size" if name == "--batch-size" else FLAGS[name].key
            if key and name not in ("--tracker", "--sweep"):
                place(data, key, parse_ref(key, value).model_dump() if _names_plugin(key, value) else value)
        if "--sweep" in self.given:
            data["sweep"] = load_toml(self.given["--sweep"], flag="--sweep")
        if "--record-layers" in self.given and "--layer" not in self.given:
            place(data, "read.layer", self.given["--record-layers"][0])
        if "--live" in self.given and "--record-layers" not in self.given and (blocks := re.findall(r"-?\d+", str(data["read"]["layer"]))):
            # A later recording must include what the SAE is trained on.
            place(data, "record.layers", [int(block) for block in blocks])
        if "--stream" in self.given:
            place(data, "read.stream", self.given["--stream"])
        if "--tracker" in self.given:
            data["trackers"] = list(dict.fromkeys(["jsonl", *self.given["--tracker"]]))
        for assignment in self.given.get("--set", []):
            set_key(data, assignment)
        for key in PLUGIN_KEYS:
            if _names_plugin(key, data[key]):
                data[key] = parse_ref(key, data[key]).model_dump()
        config = validate(RunConfig, data)
        if "--sweep" in self.given and self.whole and "--record-layers" not in self.given:
            config = _recording_swept_layers(config)
        return config


def _recording_swept_layers(config: RunConfig) -> RunConfig:
    """`config`, changed to record the blocks that its sweep reads."""
    from saev_core.config.base import validate
    from saev_core.config.run import RunConfig
    from saev_core.runs.sweep import expand

    read = [point.config.read.layer for point in expand(config).points]
    if any(isinstance(layer, str) for layer in read):
        return config  # `all` and `mean` refer to the blocks that --record-layers names
    blocks = [block for layer in read for block in (layer if isinstance(layer, tuple) else [layer])]
    data = config.model_dump(mode="json")
    place(data, "record.layers", list(dict.fromkeys(blocks)))
    return validate(RunConfig, data)


def _names_plugin(key: str, value: Any) -> bool:
    return key in PLUGIN_KEYS and isinstance(value, str)


def place(data: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested dicts."""
    *parents, last = key.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
    data[last] = value


def takes(*names: str, run: str = "", batch: str = "") -> Callable[[Callable[[Flags], None]], Callable[..., None]]:
    """Give a command body `body(flags)` the named flags, and --json and --debug.

    Args:
        run: help of an optional RUN argument; empty: the command has none.
        batch: the section that --batch-size sets; empty: the command has no such flag.
    """

    def wrap(body: Callable[[Flags], None]) -> Callable[..., None]:
        parameters = []

        def add(name: str, annotation: Any, default: Any) -> None:
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))

        if run:
            add("run", Annotated[str | None, typer.Argument(help=run, metavar="RUN")], None)
        typed = {name.lstrip("-").replace("-", "_"): FLAGS[name] for name in names}
        if batch:
            typed["batch_size"] = Flag("--batch-size", f"{batch}.batch_size", int, _BATCH[batch])
        for name, flag in typed.items():
            option = typer.Option(flag.name, help=flag.help, rich_help_panel=flag.panel, metavar=flag.metavar)
            add(name, Annotated[flag.kind | None, option], None)
        add("json", Annotated[bool, typer.Option("--json", help="Machine-readable output.", rich_help_panel=_TALK)], False)
        add("debug", Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.", rich_help_panel=_TALK)], False)

        @functools.wraps(body)
        def command(**values: Any) -> None:
            given = {flag.name: values[name] for name, flag in typed.items() if values[name] not in (None, [])}
            place_ = given.get("--out") or values.get("run") or ""
            body(Flags(given, place_, values["json"], values["debug"], batch, whole=not run))

        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        return command

    return wrap
