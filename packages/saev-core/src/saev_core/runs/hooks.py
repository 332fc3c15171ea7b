"""Observers of a run (pluggy). They may fail, and never change what is computed."""

from __future__ import annotations

import difflib
import inspect
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from saev_core.errors import PluginError

if TYPE_CHECKING:
    from saev_core.runs.run import Run

log = logging.getLogger(__name__)
hookspec = pluggy.HookspecMarker("saev")
hookimpl = pluggy.HookimplMarker("saev")


class Hooks:
    """Hooks an observer may implement; an implementation may omit any argument."""

    @hookspec
    def run_started(self, run: Run, config: Mapping[str, Any]) -> None:
        """A command starts work on `run`; `config` is the saved configuration."""

    @hookspec
    def recorded(self, run: Run, store: str, n_images: int, n_missing: int) -> None:
        """A recording is complete; `store` is its address."""

    @hookspec
    def stepped(self, run: Run, name: str, step: int, metrics: Mapping[str, float]) -> None:
        """SAE `name` has taken `step` training steps; called every `train.log_every` steps."""

    @hookspec
    def evaluated(self, run: Run, name: str, step: int, card: Mapping[str, Any]) -> None:
        """SAE `name` was measured on held-out images after `step` training steps; called every `train.evaluate_every` steps."""

    @hookspec
    def checkpointed(self, run: Run, name: str, step: int, path: Path) -> None:
        """SAE `name` was written to folder `path`."""

    @hookspec
    def indexed(self, run: Run, name: str, path: Path) -> None:
        """The feature index of SAE `name` is complete."""

    @hookspec
    def run_ended(self, run: Run, error: BaseException | None) -> None:
        """The command ended; `error` is the exception that stopped it, or None."""

    @hookspec
    def viewer_tabs(self, run: Run) -> Any:
        """Tabs for the viewer on `run`: a list of `ViewerTab`, each with `title` and `build(host)`."""


class Observers:
    """The observers of one run. An observer that raises is logged with its traceback and disabled; the run continues."""

    def __init__(self, *observers: object, discover: bool = True) -> None:
        """Register `observers` and, if `discover`, every plugin of the entry-point group `saev.hooks`.

        Raises:
            PluginError: the name or arguments of an implementation do not match any hook.
        """
        self._manager = pluggy.PluginManager("saev")
        self._manager.add_hookspecs(Hooks)
        for observer in observers:
            self.add(observer)
        if discover:
            self._discover()

    def add(self, observer: object, name: str | None = None) -> None:
        """Register one observer.

        Raises:
            PluginError: the name or arguments of an implementation do not match any hook.
        """
        try:
            self._manager.register(observer, name)
            self._manager.check_pending()
        except (pluggy.PluginValidationError, ValueError) as error:
            if self._manager.is_registered(observer):
                self._manager.unregister(observer)
            raise PluginError(f"observer {name or type(observer).__name__}: {_why(error)}") from None

    def _discover(self) -> None:
        from importlib.metadata import entry_points

        for entry in entry_points(group="saev.hooks"):
            try:
                plugin = entry.load()
            except Exception:
                log.warning("observer %s (%s) cannot be imported; skipping it", entry.name, entry.value, exc_info=True)
                continue
            dist = f" (from {entry.dist.name} {entry.dist.version})" if entry.dist else ""
            self.add(plugin() if isinstance(plugin, type) else plugin, f"{entry.name}{dist}")

    def emit(self, hook: str, **arguments: Any) -> list[Any]:
        """Call every observer's `hook`; returns all results that are not None."""
        results = []
        for impl in list(getattr(self._manager.hook, hook).get_hookimpls()):
            try:
                results.append(impl.function(*(arguments[name] for name in impl.argnames)))
            except Exception:
                log.exception("observer %s failed in %s; disabling it", impl.plugin_name, hook)
                self._manager.unregister(impl.plugin)
        return [result for result in results if result is not None]


def _why(error: Exception) -> str:
    """A readable form of pluggy's error, with the closest hook name for a misspelt one."""
    text = " ".join(str(error).split())
    hooks = [name for name in vars(Hooks) if not name.startswith("_")]
    if match := re.match(r"unknown hook '(\w+)'", text):
        near = difflib.get_close_matches(match[1], hooks, n=1)
        return f"unknown hook {match[1]!r}; " + (f"did you mean {near[0]}?" if near else f"known hooks: {', '.join(hooks)}.")
    if match := re.search(r"for hook '(\w+)'.*Argument\(s\) {(.+?)}", text):
        takes = [name for name in inspect.signature(getattr(Hooks, match[1])).parameters if name != "self"]
        return f"hook {match[1]!r} has no argument {match[2]}; its arguments are {', '.join(takes)}."
    return f"{text.rstrip('.')}."
