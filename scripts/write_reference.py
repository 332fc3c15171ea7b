"""Generate documentation pages from the code: commands, configuration, hooks, names, tasks.

`python scripts/write_reference.py docs` writes them; a test fails when one is stale.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin

from typer.models import ArgumentInfo, OptionInfo

_STAMP = "<!-- Written by `make fix` from the code; edit that. -->\n\n"


def pages() -> dict[str, str]:
    """File name -> text of every generated page."""
    reference = {"config": config_page, "hooks": hooks_page, "names": names_page, "tasks": tasks_page}
    return {"cli.md": commands_page(), **{f"reference/{name}.md": page() for name, page in reference.items()}}


def commands_page() -> str:
    """Every command with its arguments and flags."""
    from saev_core.cli.app import app

    lines = [
        f"{_STAMP}# Commands\n\n`saev --help`, and `--help` after any command, print this help in the terminal.",
        "\nExit codes: 0 success, 1 error, 2 wrong usage, 130 interrupted (the same command resumes). Every",
        "error is one line; `--debug` shows the traceback. Set a plugin's main option after a colon, as in `--sae topk:32`.\n",
    ]
    for path, callback, text in _walk("saev", app, str(app.info.help)):
        lines.append(f"\n## `{path}`\n\n{inspect.cleandoc(text)}\n")
        if rows := [_parameter(p) for p in inspect.signature(callback, eval_str=True).parameters.values()] if callback else []:
            lines += ["| | | |", "| --- | --- | --- |", *filter(None, rows)]
    return "\n".join(lines) + "\n"


def _walk(path: str, app: Any, text: str) -> Iterator[tuple[str, Callable[..., object] | None, str]]:
    """Every command: its full name, its function, its help."""
    group = app.registered_callback
    yield path, group.callback if group else None, text
    for command in app.registered_commands:
        yield f"{path} {command.name or command.callback.__name__}", command.callback, command.callback.__doc__
    for inner in app.registered_groups:
        yield from _walk(f"{path} {inner.name}", inner.typer_instance, inner.typer_instance.info.help)


def _parameter(parameter: inspect.Parameter) -> str:
    """One row of a command's table; empty for parameters that are not command-line options."""
    if get_origin(parameter.annotation) is not Annotated:
        return ""
    annotation, info = get_args(parameter.annotation)
    name = info.metavar if isinstance(info, ArgumentInfo) else info.default
    text = info.help.replace("<", "&lt;").replace("|", "\\|")
    return f"| `{name}` | {_value(annotation, info)} | {text} |"


def _value(annotation: Any, info: ArgumentInfo | OptionInfo) -> str:
    """What is typed for a flag or an argument; empty where nothing is."""
    kinds = {kind for kind in get_args(annotation) or [annotation] if kind is not NoneType}
    if kinds == {bool}:
        return ""
    several = any(get_origin(kind) is list for kind in kinds)
    if isinstance(info, OptionInfo) and info.metavar:
        shown = " or ".join(word.lower() for word in info.metavar.split("|"))
    else:
        shown = "text" if kinds & {str, list[str]} else "number"
    return f"{shown}, several" if several else shown


def config_page() -> str:
    """Every configuration key, and the options of the plugins of this repository."""
    from saev_core.config.base import Config
    from saev_core.config.run import RunConfig
    from saev_core.plugins.known_packages import OUR_DISTS
    from saev_core.plugins.registry import config_class, installed

    lines = [
        f"{_STAMP}# Configuration\n\nDefaults, then `--config run.toml`, then flags, then `--set KEY=VALUE`: the later wins. A run keeps",
        "what came of it in `config.json`. `auto`, `none` and `all` may stand for a number where the table names them; in TOML they are",
        'strings (`lr = "auto"`). Older files, in which 0 said the same, still open.',
        "\n## `run.toml`\n\n| key | default | meaning |\n| --- | --- | --- |",
    ]
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config) and not field.description:
            lines += _rows(field.annotation, f"{name}.")
        else:
            lines.append(_row(name, field))
    for kind in ("model", "dataset", "sae"):
        for plugin in installed(kind):
            if plugin.dist in OUR_DISTS:
                config = config_class(plugin)
                lines.append(
                    f"\n## `--{kind} {plugin.name}`\n\nFrom `{plugin.dist}`. `{plugin.name}:VALUE` sets `{config.main_option()}`.\n"
                )
                lines += ["| key | default | meaning |", "| --- | --- | --- |", *_rows(config, f"{kind}.")]
    return "\n".join(lines) + "\n"


def tasks_page() -> str:
    """Every verb of the tasks of this repository, with its options."""
    from saev_core.cli.flags_from_config import typed_as
    from saev_core.cli.task import load
    from saev_core.plugins.known_packages import OUR_DISTS
    from saev_core.plugins.registry import installed

    lines = [
        f"{_STAMP}# Tasks\n\n`saev task` lists the installed tasks, `saev task NAME` the verbs of one, and",
        "`saev task NAME VERB RUN` runs a verb. Every verb also takes `--dataset`, `--device`, `--config`, `--set`,",
        "`--json` and `--debug`, like other [commands](../cli.md).",
    ]
    for plugin in installed("task"):
        if plugin.dist not in OUR_DISTS:
            continue
        task = load(plugin)
        lines.append(f"\n## `{plugin.name}`\n\nFrom `{plugin.dist}`. {inspect.getdoc(task)}")
        for verb in task.verbs().values():
            lines.append(f"\n### `saev task {plugin.name} {verb.name} RUN`\n\n{verb.help}\n")
            if verb.config.model_fields:
                lines += ["| flag | value | default | meaning |", "| --- | --- | --- | --- |"]
            for key, field in verb.config.model_fields.items():
                lines.append(f"| {' | '.join([*typed_as(key, field), _cells(field)[1]])} |")
    return "\n".join(lines) + "\n"


def _rows(kind: Any, prefix: str) -> list[str]:
    return [_row(f"{prefix}{name}", field) for name, field in kind.model_fields.items()]


def _row(name: str, field: Any) -> str:
    default, text = _cells(field)
    return f"| `{name}` | {default} | {text} |"


def _cells(field: Any) -> tuple[str, str]:
    """A field's default and meaning."""
    from saev_core.config.words import Word

    default = field.get_default(call_default_factory=True)
    if hasattr(default, "name"):
        default = default.name
    if default is None and any(isinstance(mark, Word) for mark in field.metadata):
        default = "none"
    shown = "required" if field.is_required() else f"`{list(default) if isinstance(default, tuple) else default!r}`"
    text = " ".join((field.description or "").split()).replace("|", "\\|")
    return shown, text


def hooks_page() -> str:
    """Every hook of an observer."""
    from saev_core.runs.hooks import Hooks

    lines = [
        f"{_STAMP}# Hooks\n\nAn observer is any class with methods marked `@hookimpl`, registered in the entry-point group `saev.hooks` or",
        "selected as a tracker (`--tracker NAME`, group `saev.trackers`). Its methods declare only the arguments they need. It observes",
        "and never changes results. An observer that raises is logged and removed, and the run continues; a misspelt hook or",
        "argument is an error at start.\n",
    ]
    for name, hook in vars(Hooks).items():
        if not name.startswith("_"):
            arguments = ", ".join(argument for argument in inspect.signature(hook).parameters if argument != "self")
            lines.append(f"\n## `{name}({arguments})`\n\n{inspect.cleandoc(hook.__doc__ or '')}\n")
    return "\n".join(lines) + "\n"


_VERBS = (
    "activations.recording.record.record",
    "training.train.train",
    "evaluation.measure.evaluate",
    "features.build.index_features",
    "evaluation.known_truth.recover",
    "pipeline.pipeline.Pipeline",
)
_LOADERS = ("models.base.load_model", "data.dataset.load_dataset", "sae.base.make_sae")


def names_page() -> str:
    """Every public name of `saev_core`, and what its verbs take and raise."""
    import saev_core

    lines = [
        f"{_STAMP}# Names\n\nImported from `saev_core`; each is resolved on first use, so `import saev_core` imports no torch.\n",
        "| | |\n| --- | --- |",
    ]
    lines += [f"| `{name}` | {_first_line(getattr(saev_core, name))} |" for name in saev_core.__all__]
    for title, names in (("Verbs", _VERBS), ("Builders", _LOADERS)):
        lines.append(f"\n## {title}\n")
        for name in names:
            room, _, what = name.rpartition(".")
            found = getattr(import_module(f"saev_core.{room}"), what)
            arguments = ", ".join(inspect.signature(found).parameters)
            text = inspect.cleandoc(found.__doc__ or "").replace("\n    ", "\n- ")
            lines.append(f"### `{what}({arguments})`\n\n{text}\n")
    return "\n".join(lines) + "\n"


def _first_line(thing: object) -> str:
    text = inspect.cleandoc(getattr(thing, "__doc__", None) or "").partition("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def main(folder: str) -> None:
    """Write every page under `folder`."""
    for name, text in pages().items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
