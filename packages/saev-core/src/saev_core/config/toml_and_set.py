"""Where configuration values come from: TOML files, `--set key=value`, and how nested tables are merged and compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from saev_core.errors import ConfigError


def load_toml(path: str | Path, *, flag: str = "--config") -> dict[str, Any]:
    """A configuration file as nested dicts.

    Raises:
        ConfigError: it does not exist or is not TOML; the line is named.
    """
    import tomllib

    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}; {flag} takes a TOML file.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from None


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old, new) for every leaf in which two nested dicts differ; None where a side lacks it."""
    for key in [*old, *(key for key in new if key not in old)]:
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from differences(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", a, b


def merge(data: dict[str, Any], over: dict[str, Any]) -> None:
    """Lay nested dicts over others in place. Another plugin's name clears the options of the one before."""
    for key, value in over.items():
        old = data.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and value.get("name", old.get("name")) == old.get("name"):
            merge(old, value)
        else:
            data[key] = value


def set_key(data: dict[str, Any], assignment: str) -> None:
    """Apply `a.b=VALUE` to nested dicts in place; VALUE is read as TOML, and as a plain string where that fails.

    Raises:
        ConfigError: there is no `=`, or `a` already holds a plain value.
    """
    import tomllib

    key, eq, text = assignment.partition("=")
    if not eq or not key.strip():
        raise ConfigError(f"--set {assignment}: write it like --set train.lr=3e-4.")
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
