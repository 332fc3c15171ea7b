"""Checks of a run configuration before anything starts, and the default run path."""

from __future__ import annotations

import re
from pathlib import Path

from saev_core.config.run import RunConfig
from saev_core.runs.sweep import expand


def plugin_versions(config: RunConfig) -> dict[str, str]:
    """`model:tiny` -> `saev-core 0.1.0` for every plugin a configuration names."""
    from saev_core.plugins.registry import find, parse_ref

    saes = dict.fromkeys(point.config.sae.name for point in expand(config).points)
    named = [("model", config.model.name), ("dataset", config.dataset.name), *(("sae", name) for name in saes)]
    versions = {}
    for kind, name in [*named, *(("tracker", parse_ref("tracker", text).name) for text in config.trackers)]:
        plugin = find(kind, name)
        versions[f"{kind}:{plugin.name}"] = f"{plugin.dist} {plugin.version}"
    return versions


def check_config(config: RunConfig) -> None:
    """Check everything that can be checked before any work starts: plugins, their options, the device.

    Raises:
        UnknownPluginError, PluginError, ConfigError, DeviceError: the first problem found.
    """
    from saev_core.plugins.registry import find, resolve

    kinds = ("dataset", "sae", "model")
    # Check names first: they come from metadata, so a typo is reported before torch is imported.
    for kind in kinds:
        find(kind, getattr(config, kind).name)
    for kind in kinds:
        resolve(kind, getattr(config, kind))
    expand(config)
    for name in config.trackers:
        resolve("tracker", name)
    if config.device not in ("auto", "cpu"):
        from saev_core.support.devices import pick_device

        pick_device(config.device)


def default_path(config: RunConfig, date: str) -> Path:
    """`runs/<date>-<model>-<dataset>`, with plugin names made safe for file systems."""

    def plain(name: str) -> str:
        return re.sub(r"[^\w.-]+", "-", name.rpartition(":")[2])

    return Path("runs") / f"{date}-{plain(config.model.name)}-{plain(config.dataset.name)}"
