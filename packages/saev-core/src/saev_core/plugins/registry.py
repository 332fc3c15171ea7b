"""Find a plugin by name in an entry-point group. Only the requested plugin is imported.

A plugin is any class behind an entry point; our plugins use the same entry points as third-party ones.
Names come from installed metadata only, so a broken plugin affects only commands that use it.
"""

from __future__ import annotations

import difflib
import functools
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from saev_core.config.base import PluginConfig, PluginRef, validate
from saev_core.errors import PluginError, UnknownPluginError
from saev_core.plugins.known_packages import KNOWN

GROUPS = {
    "model": "saev.models",
    "dataset": "saev.datasets",
    "sae": "saev.saes",
    "task": "saev.tasks",
    "tracker": "saev.trackers",
    "viewer": "saev.viewers",
}
"""Kind of plugin -> entry-point group."""


@dataclass(frozen=True)
class Plugin:
    """One registered name; `target` is `module:attribute`, not imported until `load`."""

    kind: str
    name: str
    target: str
    dist: str
    version: str
    entry: EntryPoint

    def load(self) -> Any:
        """Import the object behind the name.

        Raises:
            PluginError: the import fails; the message names plugin, target, distribution and cause.
        """
        try:
            return self.entry.load()
        except Exception as error:
            raise PluginError(
                f"{self.kind} plugin {self.name!r} ({self.target}, from {self.dist} {self.version}) cannot be imported: "
                f"{type(error).__name__}: {error}{self._extra(error)}"
            ) from error

    def _extra(self, error: Exception) -> str:
        """The install command, if a library is missing and the distribution has an extra with the plugin's name."""
        extras = (self.entry.dist.metadata.get_all("Provides-Extra") if self.entry.dist else None) or []
        fits = isinstance(error, ModuleNotFoundError) and self.name in extras
        return f'; pip install "{self.dist}[{self.name}]"' if fits else ""


def installed(kind: str) -> list[Plugin]:
    """Every registered plugin of a kind, sorted by name; reads metadata, imports nothing."""
    return list(_installed(kind, tuple(sys.path)))


@functools.lru_cache(maxsize=len(GROUPS))
def _installed(kind: str, path: tuple[str, ...]) -> tuple[Plugin, ...]:
    # Cached by sys.path: reading all metadata takes 50 ms, and a command does it a dozen times.
    found: dict[tuple[str, str], Plugin] = {}
    for entry in entry_points(group=GROUPS[kind]):
        dist = entry.dist
        name, version = (_canonical(dist.name), dist.version) if dist else ("unknown", "?")
        # An editable install can appear twice on sys.path; the first occurrence of a distribution wins.
        found.setdefault((entry.name, name), Plugin(kind, entry.name, entry.value, name, version, entry))
    return tuple(sorted(found.values(), key=lambda p: (p.name, p.dist)))


def find(kind: str, name: str) -> Plugin:
    """The plugin named `name`, or `dist:name`.

    Raises:
        UnknownPluginError: no plugin has that name, or several distributions provide it.
    """
    return _pick(kind, name, installed(kind))


def _pick(kind: str, name: str, plugins: Iterable[Plugin]) -> Plugin:
    plugins = list(plugins)
    dist, colon, bare = name.rpartition(":")
    matches = [p for p in plugins if p.name == bare and (not colon or p.dist == _canonical(dist))]
    if len(matches) == 1:
        return matches[0]
    if matches:
        dists = [p.dist for p in matches]
        spelled = " or ".join(f"{d}:{bare}" for d in dists)
        raise UnknownPluginError(f"{kind} {bare!r} is provided by {' and '.join(dists)}; use {spelled}.")
    raise UnknownPluginError(_unknown(kind, name, plugins))


def _unknown(kind: str, name: str, plugins: list[Plugin]) -> str:
    names = sorted({p.name for p in plugins})
    text = f"no {kind} plugin named {name!r}"
    if dist := KNOWN[kind].get(name):
        return f"{text}; pip install {dist}."
    if near := difflib.get_close_matches(name, names, n=3, cutoff=0.5):
        text += f"; did you mean {' or '.join(near)}?"
    else:
        text += "."
    return f"{text} Installed: {', '.join(names) or 'none'}."


def missing(kind: str) -> list[tuple[str, str]]:
    """(name, distribution) of each of our plugins that is not installed."""
    names = {p.name for p in installed(kind)}
    return [(name, dist) for name, dist in KNOWN[kind].items() if name not in names]


def parse_ref(kind: str, text: str) -> PluginRef:
    """`name`, `name:VALUE`, `dist:name` or `dist:name:VALUE` as a reference; VALUE fills the plugin's main option.

    Raises:
        UnknownPluginError: as `find`.
    """
    plugins = installed(kind)
    head, _, rest = text.partition(":")
    if rest and head not in {p.name for p in plugins}:
        second, _, value = rest.partition(":")
        if any(p.dist == _canonical(head) and p.name == second for p in plugins):
            return _with_main(kind, f"{head}:{second}", value, plugins)
    return _with_main(kind, head, rest, plugins)


def _with_main(kind: str, name: str, value: str, plugins: list[Plugin]) -> PluginRef:
    plugin = _pick(kind, name, plugins)
    if not value:
        return PluginRef(name=name)
    return PluginRef(name=name, options={config_class(plugin).main_option(): value})


def config_class(plugin: Plugin) -> type[PluginConfig]:
    """A plugin's `Config` class; imports the plugin.

    Raises:
        PluginError: it has none.
    """
    config = getattr(plugin.load(), "Config", None)
    if not (isinstance(config, type) and issubclass(config, PluginConfig)):
        raise PluginError(f"{plugin.kind} plugin {plugin.name!r} ({plugin.target}) has no `Config` class derived from saev_core's.")
    return config


def resolve(kind: str, ref: PluginRef | str) -> tuple[Any, Any]:
    """The plugin's class and its checked Config instance.

    Raises:
        UnknownPluginError, PluginError: as `find` and `Plugin.load`.
        ConfigError: an option is unknown or invalid; the message names it as `model.options.<key>`.
    """
    if isinstance(ref, str):
        ref = parse_ref(kind, ref)
    plugin = find(kind, ref.name)
    config = config_class(plugin)
    options = {key.replace("-", "_"): value for key, value in ref.options.items()}
    return plugin.load(), validate(config, options, where=f"{kind}.options")


def check(kind: str) -> list[tuple[Plugin, str]]:
    """Import every plugin of a kind; pairs each with `""` or the reason it is unusable."""
    results = []
    for plugin in installed(kind):
        try:
            _use(plugin)
        except PluginError as error:
            results.append((plugin, str(error)))
        else:
            results.append((plugin, ""))
    return results


def _use(plugin: Plugin) -> None:
    """Import a plugin and check that it satisfies the contract of its group."""
    if plugin.kind == "viewer":
        if not getattr(plugin.load(), "offered", list)():
            what = "is not a class derived from saev_core's RunViewer, or defines none of its methods"
            raise PluginError(f"viewer plugin {plugin.name!r} ({plugin.target}) {what}.")
    elif plugin.kind == "task":
        if not hasattr(task := plugin.load(), "verbs"):
            raise PluginError(f"task plugin {plugin.name!r} ({plugin.target}) is not a class derived from saev_core's Task.")
        task.verbs()  # each verb has its own Config
    else:
        config_class(plugin)


def _canonical(dist: str) -> str:
    """A distribution's normalised name, per the packaging standard."""
    return re.sub(r"[-_.]+", "-", dist).lower()


__all__ = ["GROUPS", "Plugin", "check", "config_class", "find", "installed", "missing", "parse_ref", "resolve"]
