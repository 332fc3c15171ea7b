"""Base classes of configuration models: frozen pydantic models with a docstring and a range per field. Imports no torch.

Order of precedence, weakest first: defaults, `--config run.toml`, typed flags, `--set key=value`.
"""

from __future__ import annotations

import difflib
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from saev_core.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: frozen, rejects unknown keys, field docstrings become help texts."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class PluginConfig(Config):
    """Base class for a plugin's options."""

    main: ClassVar[str] = ""
    """The option set after a colon (`--model clip:ViT-B-16/openai`); by default the first field the plugin declares."""

    @classmethod
    def main_option(cls) -> str:
        """The field that `name:VALUE` sets.

        Raises:
            ConfigError: the plugin declares no options.
        """
        if cls.main:
            return cls.main
        for klass in cls.__mro__:
            if klass in (PluginConfig, Config, BaseModel):
                break
            if own := [name for name in klass.__annotations__ if name in cls.model_fields]:
                return own[0]
        raise ConfigError(f"{cls.__module__}.{cls.__qualname__} has no main option to set after a colon; use --set.")


class PluginRef(Config):
    """A plugin by name, with its options. `clip:ViT-B-16/openai` sets its main option.

    Keys other than `name` and `options` are treated as options, so `--set model.blocks=layers.*` works.
    """

    name: str
    """Entry point name; `dist:name` if two distributions use the same one."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Plugin options, validated by its Config when the plugin is loaded."""

    @model_validator(mode="before")
    @classmethod
    def _gather(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"name": data}
        if isinstance(data, dict) and (loose := {k: v for k, v in data.items() if k not in ("name", "options")}):
            return {"name": data.get("name"), "options": {**data.get("options", {}), **loose}}
        return data


C = TypeVar("C", bound=Config)


def validate(kind: type[C], data: dict[str, Any], where: str = "") -> C:
    """Validate `data` as a `kind`; errors name the first wrong key, its place and the closest valid key in one line.

    Raises:
        ConfigError: a key is unknown or a value is invalid.
    """
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(_one_line(kind, error.errors()[0], where)) from None


def _one_line(kind: type[Config], detail: ErrorDetails, where: str) -> str:
    place = ".".join([where, *map(str, detail["loc"])] if where else [str(part) for part in detail["loc"]])
    if detail["type"] != "extra_forbidden":
        got = "" if isinstance(detail["input"], dict) else f" (got {detail['input']!r})"
        return f"{place or 'config'}: {detail['msg'].removeprefix('Value error, ')}{got}."
    known = _fields_at(kind, detail["loc"][:-1])
    near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
    return f"{place}: unknown; " + (f"did you mean {near[0]}?" if near else f"known keys: {', '.join(sorted(known))}.")


def _fields_at(kind: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    for key in loc:
        field = kind.model_fields.get(str(key))
        annotation = field.annotation if field else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        kind = annotation
    return list(kind.model_fields)
