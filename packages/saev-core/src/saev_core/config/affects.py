"""What a setting affects, declared once on its field: the result, or only the cost of computing it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

from pydantic import Field
from pydantic.fields import FieldInfo

from saev_core.config.base import Config

What = Literal["result", "cost", "nothing"]
"""`result`: other values give other numbers. `cost`: only speed, memory or how often something is reported or saved.
`nothing`: finished artifacts are identical."""
Scope = Literal["pass", "order", "step", "comparison", "extends"]
"""`pass`: shared by all SAEs on one pass over the data. `order`: changes the order of the vectors, not which ones are used.
`step`: changes the memory and time of a training step. `comparison`: applies to several SAEs compared, not to each one.
`extends`: other values add to existing artifacts."""


class Effect(NamedTuple):
    """What one setting affects."""

    what: What = "result"
    scopes: frozenset[Scope] = frozenset()


def affects(what: What, *scopes: Scope, default: Any = ..., **field: Any) -> Any:
    """A pydantic `Field` that declares what the setting affects; a plain `Field` affects the result.

    Args:
        default: passed to `Field`, as are all further arguments.
    """
    if what not in get_args(What) or not set(scopes) <= set(get_args(Scope)):
        raise TypeError(f"a setting affects one of {get_args(What)} with scopes from {get_args(Scope)}, got {(what, *scopes)}")
    extra: dict[str, Any] = {"affects": what, "scopes": list(scopes)}
    if "default_factory" in field:
        return Field(json_schema_extra=extra, **field)
    return Field(default, json_schema_extra=extra, **field)


def effect_of(kind: type[Config], key: str) -> Effect:
    """The effect of a dotted key; a key inside a setting that is not a table has the effect of that setting."""
    name, _, rest = key.partition(".")
    field = kind.model_fields.get(name)
    if field is None:
        return Effect()
    inner = field.annotation
    if rest and isinstance(inner, type) and issubclass(inner, Config):
        return effect_of(inner, rest)
    return _stated(field)


def settings_within(kind: type[Config], scope: Scope) -> list[str]:
    """The fields of a table that declare this scope, in order."""
    return [name for name, field in kind.model_fields.items() if scope in _stated(field).scopes]


def settings_that_matter(config: Config, *, without: Iterable[Scope] = (), defaults: bool = True) -> dict[str, Any]:
    """A configuration as JSON, nested tables included, without the settings that do not affect the result.

    Args:
        without: scopes whose settings are left out as well.
        defaults: false leaves out settings at their default value.
    """
    return config.model_dump(mode="json", exclude=_exempt(config, frozenset(without)), exclude_defaults=not defaults)


def _exempt(config: Config, without: frozenset[Scope]) -> dict[str, Any]:
    left: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        effect, value = _stated(field), getattr(config, name)
        if effect.what != "result" or effect.scopes & without:
            left[name] = True
        elif isinstance(value, Config) and (inner := _exempt(value, without)):
            left[name] = inner
    return left


def _stated(field: FieldInfo) -> Effect:
    extra = field.json_schema_extra
    if not isinstance(extra, dict) or "affects" not in extra:
        return Effect()
    stated: dict[str, Any] = extra
    return Effect(stated["affects"], frozenset(stated["scopes"]))
