"""`saev task`: the tasks that are installed, the verbs of one, or one verb done on a run. Flags come from the verb's own Config."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from saev_core.cli.screen import Screen
from saev_core.config import Config, load_toml, merge, set_key, validate
from saev_core.errors import PluginError, UsageError
from saev_core.plugins import Plugin, find, installed, missing
from saev_core.run import Run
from saev_core.task import Task, TaskContext

_NONE = "none"
_WHERE, _TALK = "Where and how", "What is said"


def main(args: Sequence[str], *, debug: bool = False) -> None:
    """Do what `saev task ARGS` asks for.

    Raises:
        UnknownPluginError, UnknownVerbError: no task or verb has that name.
        UsageError: words are missing or too many, or a flag is unknown.
        ConfigError: a value does not fit.
    """
    args = list(args)
    words = [arg for arg in args if arg not in ("--json", "--debug")]
    screen = Screen(as_json="--json" in args, debug=debug or "--debug" in args)
    if not words:
        list_tasks(screen)
        return
    if words[0].startswith("-"):
        raise UsageError(f"saev task takes a task's name first, not {words[0]}. See saev task --help.")
    plugin = find("task", words[0])
    task = load(plugin)
    if len(words) == 1:
        list_verbs(screen, plugin, task)
        return
    if not words[1].startswith("-"):
        task.find(words[1])
    elif words[1] not in ("--help", "-h"):
        raise UsageError(f"saev task {words[0]} takes a verb next, not {words[1]}: {', '.join(task.verbs())}.")
    commands(plugin, task)(args[args.index(words[0]) + 1 :], prog_name=f"saev task {words[0]}", standalone_mode=False)


def load(plugin: Plugin) -> type[Task]:
    """A task's class.

    Raises:
        PluginError: it cannot be imported, or is not a `Task`.
    """
    task = plugin.load()
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise PluginError(f"task plugin {plugin.name!r} ({plugin.target}) is not a class derived from saev_core's Task.")
    return task


def list_tasks(screen: Screen) -> None:
    """Every task from metadata alone, and those of ours that are not installed."""
    found, absent = installed("task"), missing("task")
    screen.result(
        [{"name": p.name, "dist": p.dist, "version": p.version, "target": p.target} for p in found]
        + [{"name": name, "dist": dist, "version": None, "target": None} for name, dist in absent]
    )
    rows = [[p.name, f"{p.dist} {p.version}"] for p in found] + [[name, f"pip install {dist}"] for name, dist in absent]
    screen.table(rows, ["task", "from"])
    screen.say("\nsaev task NAME lists what a task does.")


def list_verbs(screen: Screen, plugin: Plugin, task: type[Task]) -> None:
    """What a task does, a line a verb."""
    verbs = task.verbs().values()
    screen.result([{"verb": each.name, "help": each.help, "options": list(each.config.model_fields)} for each in verbs])
    screen.say(" ".join((inspect.getdoc(task) or plugin.name).partition("\n\n")[0].split()) + "\n")
    screen.table([[each.name, each.help.partition("\n")[0]] for each in verbs], ["verb", "what it does"])
    screen.say(f"\nsaev task {plugin.name} VERB --help lists the options of a verb.")


def commands(plugin: Plugin, task: type[Task]) -> typer.Typer:
    """A task's verbs as commands with typed flags."""
    app = typer.Typer(
        help=inspect.getdoc(task),
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(lambda: None)  # without it, typer makes a lone verb the whole command
    for each in task.verbs().values():
        app.command(each.name, help=each.help)(_command(plugin, task, each.name, each.config))
    return app


def _command(plugin: Plugin, task: type[Task], name: str, config: type[Config]) -> Any:
    def command(run: str, **typed: Any) -> None:
        screen = Screen(as_json=typed["json"], debug=typed["debug"])
        cfg = options(config, {key: typed[key] for key in config.model_fields}, config_file=typed["config"], assignments=typed["set"] or ())
        where = {"device": typed["device"], "dataset": typed["dataset"]}
        cx = TaskContext(Run.open(run), plugin.name, **where, say=screen.say, table=screen.table, track=screen.track)
        screen.result(task().call(cx, name, cfg))

    flags = {key: flag(key, field) for key, field in config.model_fields.items()}
    common = {
        "dataset": Annotated[str, typer.Option(help="Where the pictures lie now: image-folder:FOLDER.", rich_help_panel=_WHERE)],
        "device": Annotated[str, typer.Option(help="auto, cpu, cuda or mps; by default the run's.", rich_help_panel=_WHERE)],
        "config": Annotated[str, typer.Option(help="TOML file of these options, weaker than flags.", rich_help_panel=_WHERE)],
        "set": Annotated[
            list[str] | None,
            typer.Option(help="Any option by its key, stronger than flags: --set KEY=VALUE.", metavar="KEY=VALUE", rich_help_panel=_WHERE),
        ],
        "json": Annotated[bool, typer.Option("--json", help="Machine-readable output.", rich_help_panel=_TALK)],
        "debug": Annotated[bool, typer.Option("--debug", help="Tracebacks and debug messages.", rich_help_panel=_TALK)],
    }
    defaults = {"dataset": "", "device": "", "config": "", "set": None, "json": False, "debug": False}
    run = Annotated[str, typer.Argument(help="The run folder.", metavar="RUN")]
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("run", kind, annotation=run)]
    parameters += [inspect.Parameter(key, kind, default=None, annotation=each) for key, each in flags.items()]
    parameters += [inspect.Parameter(key, kind, default=defaults[key], annotation=each) for key, each in common.items()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def flag_name(key: str) -> str:
    """`n_epochs` -> `--n-epochs`."""
    return f"--{key.replace('_', '-')}"


def flag(key: str, field: FieldInfo) -> Any:
    """A field as an annotation that typer draws help and reads words from; pydantic judges the value."""
    shape, metavar = shape_of(field.annotation)
    default = default_text(field)
    text = " ".join((field.description or "").split()) + (f" Default: {default}." if default else "")
    if shape == "bool":
        return Annotated[bool | None, typer.Option(f"{flag_name(key)}/--no-{flag_name(key)[2:]}", help=text)]
    kind: Any = list[str] if shape in ("list", "dict") else str
    return Annotated[kind | None, typer.Option(flag_name(key), help=text, metavar=metavar)]


def typed_as(key: str, field: FieldInfo) -> tuple[str, str, str]:
    """A field's flag, what follows it and its default, for a table of a page."""
    shape, metavar = shape_of(field.annotation)
    name = flag_name(key)
    shown = f"`{name}`, `--no-{name[2:]}`" if shape == "bool" else f"`{name}`"
    value = (metavar.lower() if metavar == metavar.upper() else metavar).replace("|", " or ")
    default = default_text(field)
    return shown, value, default if default in ("", "required", "yes", "no") else f"`{default}`"


def default_text(field: FieldInfo) -> str:
    """A field's default as it would be typed; empty where there is nothing to say."""
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return "required"
    if value is None or value in ("", (), {}):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ",".join(f"{k}={v}" for k, v in value.items())
    return ",".join(f"{v:g}" if isinstance(v, float) else str(v) for v in (value if isinstance(value, tuple | list) else [value]))


def shape_of(annotation: Any) -> tuple[str, str]:
    """How a field is typed (`bool`, `list`, `dict` or `one`), and what stands for its value in help."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return shape_of(inner[0])
    if origin in (typing.Union, types.UnionType):
        shapes = [shape_of(each) for each in inner if each is not type(None)]
        first = next((shape for shape, _ in shapes if shape in ("list", "dict")), shapes[0][0])
        return ("one" if first == "bool" else first), "|".join(dict.fromkeys(metavar for _, metavar in shapes))
    if origin is Literal:
        return "one", "|".join(map(str, inner))
    if origin in (list, tuple, set, frozenset, Sequence) or annotation in (list, tuple):
        return "list", f"{shape_of(inner[0])[1] if inner else 'TEXT'},.."
    if origin in (dict, Mapping):
        return "dict", f"{shape_of(inner[0])[1]}={shape_of(inner[1])[1]},.."
    names = {bool: ("bool", ""), int: ("one", "INTEGER"), float: ("one", "NUMBER"), Path: ("one", "PATH")}
    return names.get(annotation, ("one", "TEXT"))


def options(config: type[Config], typed: Mapping[str, Any], *, config_file: str = "", assignments: Sequence[str] = ()) -> Config:
    """A verb's options: defaults, then the file, then flags, then --set.

    Raises:
        ConfigError: a key or value is wrong.
    """
    data: dict[str, Any] = {}
    if config_file:
        merge(data, load_toml(config_file))
    for key, value in typed.items():
        if value not in (None, []):
            data[key] = _read(key, value, config.model_fields[key])
    for assignment in assignments:
        set_key(data, assignment.replace("-", "_", assignment.partition("=")[0].count("-")))
    return validate(config, data)


def _read(key: str, value: Any, field: FieldInfo) -> Any:
    """What was typed, as pydantic takes it: lists and pairs taken apart, `none` as None."""
    shape, _ = shape_of(field.annotation)
    if shape == "bool":
        return value
    if type(None) in get_args(field.annotation) and value in (_NONE, [_NONE]):
        return None
    if shape == "one":
        return value
    pieces = [piece.strip() for text in value for piece in text.split(",") if piece.strip()]
    if shape == "list":
        return pieces
    if wrong := [piece for piece in pieces if "=" not in piece]:
        raise UsageError(f"{flag_name(key)} takes pairs such as 17=1.5, not {wrong[0]!r}.")
    return dict(piece.split("=", 1) for piece in pieces)
