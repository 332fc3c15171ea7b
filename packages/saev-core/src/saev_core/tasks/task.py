"""`Task`: base class of plugins that use a run's features. Its methods marked `@verb` become verbs of `saev task NAME`."""

from __future__ import annotations

import difflib
import inspect
import logging
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from saev_core.config.base import Config
from saev_core.errors import PluginError
from saev_core.tasks.context import TaskContext

log = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])
RESERVED = frozenset({"dataset", "device", "config", "set", "json", "debug", "help"})
"""Flags that every verb has; not available as option names."""


class NoOptions(Config):
    """The options class of a verb without options."""


def verb(method: F) -> F:
    """Mark a method `(self, cx: TaskContext, cfg: MyConfig) -> Mapping` of a `Task` as a command.

    The first line of its docstring becomes its help, the fields of `MyConfig`, a `Config`, its flags; without a third
    parameter it has none. `--json` prints its return value.
    """
    method.__saev_verb__ = True  # type: ignore[attr-defined]
    return method


@dataclass(frozen=True)
class Verb:
    """One verb of a task: its name on the command line, the name of its method, and the class of its options."""

    name: str
    method: str
    config: type[Config]
    help: str


class Task:
    """Base of every task plugin: define methods marked `@verb`. Instantiated without arguments; keeps no state between verbs."""

    @classmethod
    def verbs(cls) -> dict[str, Verb]:
        """Verbs by name, in the order of definition.

        Raises:
            PluginError: there are none, or one is invalid: its options are not a `Config`, or have a reserved name.
        """
        found = {}
        for klass in reversed(cls.__mro__):
            for method, function in vars(klass).items():
                if getattr(function, "__saev_verb__", False):
                    name = method.strip("_").replace("_", "-")
                    found[name] = Verb(name, method, _options_of(cls, function), inspect.getdoc(function) or "")
        if not found:
            raise PluginError(f"task {cls.__module__}.{cls.__qualname__} has no method marked @verb.")
        return found

    @classmethod
    def find(cls, name: str) -> Verb:
        """The verb of that name.

        Raises:
            UnknownVerbError: there is none; suggests the closest and lists all.
        """
        verbs = cls.verbs()
        if name in verbs:
            return verbs[name]
        near = difflib.get_close_matches(name, verbs, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UnknownVerbError(f"no verb named {name!r}{hint} Available: {', '.join(verbs)}.")

    def call(self, cx: TaskContext, name: str, cfg: Config | None = None) -> dict[str, Any]:
        """Run a verb; returns its result as plain JSON values.

        Raises:
            UnknownVerbError: as `find`.
            PluginError: the verb does not return a mapping of JSON-serialisable values.
        """
        found = self.find(name)
        options = [] if found.config is NoOptions else [cfg if cfg is not None else found.config()]
        result = getattr(self, found.method)(cx, *options)
        if not isinstance(result, Mapping | None):
            raise PluginError(f"{cx.name} {name} returned {type(result).__name__}, not a mapping; this is a bug in the plugin.")
        try:
            answer = plain(result or {})
        except TypeError as error:
            raise PluginError(f"{cx.name} {name} returned a value that JSON cannot hold ({error}); this is a bug in the plugin.") from None
        assert isinstance(answer, dict)
        return answer


class UnknownVerbError(PluginError):
    """A task has no verb of that name."""

    exit_code = 2


def _options_of(task: type[Task], function: Callable[..., Any]) -> type[Config]:
    """The annotated class of a verb's third parameter."""
    where = f"{task.__module__}.{task.__qualname__}.{function.__name__}"
    parameters = list(inspect.signature(function).parameters.values())
    if len(parameters) == 2:
        return NoOptions
    if len(parameters) != 3 or parameters[2].annotation is inspect.Parameter.empty:
        raise PluginError(f"{where}: wrong signature; a verb is defined as (self, cx: TaskContext, cfg: MyConfig).")
    # Only this one: other annotations may be imported for type checking only.
    holder = SimpleNamespace(__annotations__={"cfg": parameters[2].annotation})
    try:
        config = typing.get_type_hints(holder, inspect.unwrap(function).__globals__, dict(vars(task)))["cfg"]
    except NameError as error:
        raise PluginError(f"{where}: its options class is missing at run time ({error}); import it outside TYPE_CHECKING.") from None
    if not (isinstance(config, type) and issubclass(config, Config)):
        raise PluginError(f"{where}: its options are {config!r}, not a class derived from saev_core's Config.")
    if taken := RESERVED & set(config.model_fields):
        raise PluginError(f"{where}: the option name {sorted(taken)[0]} is reserved, every verb has that flag.")
    return config


def plain(value: Any) -> Any:
    """Convert a value to plain JSON types: numpy and torch numbers and arrays unpacked, paths as text, non-finite numbers as None.

    Raises:
        TypeError: it contains any other type.
    """
    if isinstance(value, Mapping):
        return {key if isinstance(key, str) else str(plain(key)): plain(each) for key, each in value.items()}
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Config):
        return value.model_dump(mode="json")
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, bytes):
        return [plain(each) for each in value]
    raise TypeError(f"a {type(value).__name__}")


__all__ = ["RESERVED", "NoOptions", "Task", "TaskContext", "UnknownVerbError", "Verb", "plain", "verb"]
