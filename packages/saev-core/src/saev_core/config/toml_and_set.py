"""Read configuration values from TOML files and `--set key=value`; merge and compare nested tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saev_core.errors import ConfigError


def load_toml(path: str | Path, *, flag: str = "--config") -> dict[str, Any]:
    """A configuration file as nested dicts.

    Raises:
        ConfigError: the file does not exist or is not valid TOML (the message gives the line).
    """
    import tomllib

    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; {flag} needs a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from None


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old, new) for every leaf in which two nested dicts differ; None if missing on one side."""
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


def merge(data: dict[str, Any], over: dict[str, Any]) -> None:
    """Merge `over` into `data` in place. A different plugin name discards the previous plugin's options."""
    for key, value in over.items():
        old = data.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and value.get("name", old.get("name")) == old.get("name"):
            merge(old, value)
        else:
            data[key] = value


def set_key(data: dict[str, Any], assignment: str) -> None:
    """Apply `a.b=VALUE` to nested dicts in place; VALUE is parsed as TOML, falling back to a plain string.

    Raises:
        ConfigError: there is no `=`, or `a` already holds a plain value.
    """
    import tomllib

    key, eq, text = assignment.partition("=")
    if not eq or not key.strip():
        raise ConfigError(f"--set {assignment}: expected KEY=VALUE, such as --set train.lr=3e-4.")
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
