"""`saev task`: list the installed tasks or one task's verbs, or run a verb. Flags come from the verb's own Config."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from saev_core.cli.console import Screen
from saev_core.cli.flags_from_config import flag, options
from saev_core.config.base import Config
from saev_core.errors import PluginError, UsageError
from saev_core.plugins.registry import Plugin, find, installed, missing
from saev_core.runs.run import Run
from saev_core.tasks.context import TaskContext
from saev_core.tasks.task import Task

_WHERE, _TALK = "Run and configuration", "Logging"


def main(args: Sequence[str], *, debug: bool = False) -> None:
    """Run `saev task ARGS`.

    Raises:
        UnknownPluginError, UnknownVerbError: no task or verb has that name.
        UsageError: arguments are missing or superfluous, or a flag is unknown.
        ConfigError: a value is invalid.
    """
    args = list(args)
    words = [arg for arg in args if arg not in ("--json", "--debug")]
    screen = Screen(as_json="--json" in args, debug=debug or "--debug" in args)
    if not words:
        list_tasks(screen)
        return
    if words[0].startswith("-"):
        raise UsageError(f"saev task expects a task name first, not {words[0]}. See saev task --help.")
    plugin = find("task", words[0])
    task = load(plugin)
    if len(words) == 1:
        list_verbs(screen, plugin, task)
        return
    if not words[1].startswith("-"):
        task.find(words[1])
    elif words[1] not in ("--help", "-h"):
        raise UsageError(f"saev task {words[0]} expects a verb next, not {words[1]}: {', '.join(task.verbs())}.")
    commands(plugin, task)(args[args.index(words[0]) + 1 :], prog_name=f"saev task {words[0]}", standalone_mode=False)


def load(plugin: Plugin) -> type[Task]:
    """Load a task's class.

    Raises:
        PluginError: it cannot be imported, or is not a `Task`.
    """
    task = plugin.load()
    if not (isinstance(task, type) and issubclass(task, Task)):
        raise PluginError(f"task plugin {plugin.name!r} ({plugin.target}) is not a class derived from saev_core's Task.")
    return task


def list_tasks(screen: Screen) -> None:
    """List every task from metadata only, and our own tasks that are not installed."""
    found, absent = installed("task"), missing("task")
    screen.result(
        [{"name": p.name, "dist": p.dist, "version": p.version, "target": p.target} for p in found]
        + [{"name": name, "dist": dist, "version": None, "target": None} for name, dist in absent]
    )
    rows = [[p.name, f"{p.dist} {p.version}"] for p in found] + [[name, f"pip install {dist}"] for name, dist in absent]
    screen.table(rows, ["task", "from"])
    screen.say("\nsaev task NAME lists the verbs of a task.")


def list_verbs(screen: Screen, plugin: Plugin, task: type[Task]) -> None:
    """List the verbs of a task, one per line."""
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
        "dataset": Annotated[str, typer.Option(help="New location of the images: image-folder:FOLDER.", rich_help_panel=_WHERE)],
        "device": Annotated[str, typer.Option(help="auto, cpu, cuda or mps (default: the run's).", rich_help_panel=_WHERE)],
        "config": Annotated[str, typer.Option(help="TOML file of these options; flags override it.", rich_help_panel=_WHERE)],
        "set": Annotated[
            list[str] | None,
            typer.Option(help="Any option by its key, overrides flags: --set KEY=VALUE.", metavar="KEY=VALUE", rich_help_panel=_WHERE),
        ],
        "json": Annotated[bool, typer.Option("--json", help="Machine-readable output.", rich_help_panel=_TALK)],
        "debug": Annotated[bool, typer.Option("--debug", help="Show tracebacks and debug messages.", rich_help_panel=_TALK)],
    }
    defaults = {"dataset": "", "device": "", "config": "", "set": None, "json": False, "debug": False}
    run = Annotated[str, typer.Argument(help="Run folder.", metavar="RUN")]
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("run", kind, annotation=run)]
    parameters += [inspect.Parameter(key, kind, default=None, annotation=each) for key, each in flags.items()]
    parameters += [inspect.Parameter(key, kind, default=defaults[key], annotation=each) for key, each in common.items()]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command
