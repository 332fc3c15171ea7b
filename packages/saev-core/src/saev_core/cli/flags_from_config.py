"""Command-line flags of a task verb, derived from the fields of its configuration."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from saev_core.config.base import Config, validate
from saev_core.config.toml_and_set import load_toml, merge, set_key
from saev_core.errors import UsageError

_NONE = "none"


def flag_name(key: str) -> str:
    """`n_epochs` -> `--n-epochs`."""
    return f"--{key.replace('_', '-')}"


def flag(key: str, field: FieldInfo) -> Any:
    """A field as a typer annotation: typer shows the help and parses the words, pydantic validates the value."""
    shape, metavar = shape_of(field.annotation)
    default = default_text(field)
    text = " ".join((field.description or "").split()) + (f" Default: {default}." if default else "")
    if shape == "bool":
        return Annotated[bool | None, typer.Option(f"{flag_name(key)}/--no-{flag_name(key)[2:]}", help=text)]
    kind: Any = list[str] if shape in ("list", "dict") else str
    return Annotated[kind | None, typer.Option(flag_name(key), help=text, metavar=metavar)]


def typed_as(key: str, field: FieldInfo) -> tuple[str, str, str]:
    """A field's flag, value placeholder and default, for a table in the documentation."""
    shape, metavar = shape_of(field.annotation)
    name = flag_name(key)
    shown = f"`{name}`, `--no-{name[2:]}`" if shape == "bool" else f"`{name}`"
    value = (metavar.lower() if metavar == metavar.upper() else metavar).replace("|", " or ")
    default = default_text(field)
    return shown, value, default if default in ("", "required", "yes", "no") else f"`{default}`"


def default_text(field: FieldInfo) -> str:
    """A field's default as typed on the command line; empty if there is none worth showing."""
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
    """How a field is typed (`bool`, `list`, `dict` or `one`), and the placeholder for its value in help."""
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
    """A verb's options from defaults, the file, flags and --set, in ascending precedence.

    Raises:
        ConfigError: a key or value is invalid.
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
    """The typed value in the form pydantic expects: lists and pairs split, `none` as None."""
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
