"""`saev plugins` and `saev data list`: list what is installed."""

from __future__ import annotations

from saev_core.cli.console import Screen
from saev_core.data.dataset import DatasetConfig
from saev_core.errors import PluginError
from saev_core.plugins.registry import GROUPS, check, config_class, installed


def show(*, check: bool, as_json: bool, debug: bool) -> None:
    """List every plugin from metadata only; with `check`, import each one.

    Raises:
        PluginError: with `check`, if any cannot be imported; the message gives the number.
    """
    screen = Screen(as_json=as_json, debug=debug)
    problems = dict(pair for kind in GROUPS for pair in _check(kind)) if check else {}
    found = [plugin for kind in GROUPS for plugin in installed(kind)]
    screen.result(
        [
            {"kind": p.kind, "name": p.name, "dist": p.dist, "version": p.version, "target": p.target}
            | ({"ok": not problems[p], "error": problems[p] or None} if check else {})
            for p in found
        ]
    )
    rows = [[p.kind, p.name, f"{p.dist} {p.version}", p.target, *([problems[p] or "ok"] if check else [])] for p in found]
    screen.table(rows, ["kind", "name", "from", "target", *(["check"] if check else [])])
    if bad := sum(map(bool, problems.values())):
        raise PluginError(f"{bad} of {len(found)} plugins cannot be imported; fix or uninstall them. The others are not affected.")


_check = check


def datasets(*, as_json: bool, debug: bool) -> None:
    """List every data set with its own options; one that cannot be imported is listed with the reason."""
    screen = Screen(as_json=as_json, debug=debug)
    found = []
    for plugin in installed("dataset"):
        options, problem = dict[str, str](), ""
        try:
            fields = config_class(plugin).model_fields
            options = {name: field.description or "" for name, field in fields.items() if name not in DatasetConfig.model_fields}
        except PluginError as error:
            problem = str(error)
        found.append({"name": plugin.name, "dist": plugin.dist, "options": options, "error": problem or None})
        screen.say(f"{plugin.name}  ({plugin.dist} {plugin.version})" + (f"  {problem}" if problem else ""))
        screen.table([[f"    {name}", text] for name, text in options.items()])
    screen.result(found)
