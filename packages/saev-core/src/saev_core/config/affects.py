"""What a setting affects, stated once on its field: the result, or only how it is come by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

from pydantic import Field
from pydantic.fields import FieldInfo

from saev_core.config.base import Config

What = Literal["result", "cost", "nothing"]
"""`result`: other values give other numbers. `cost`: only speed, memory or how often something is reported or kept.
`nothing`: what is finished is the same."""
Scope = Literal["pass", "order", "step", "comparison", "extends"]
"""`pass`: one for all SAEs that share a pass over the data. `order`: which vectors there are is the same, their order is not.
`step`: decides how much memory and time a training step takes. `comparison`: of several SAEs, not of each.
`extends`: other values add to what is there."""


class Effect(NamedTuple):
    """What one setting affects."""

    what: What = "result"
    scopes: frozenset[Scope] = frozenset()


def affects(what: What, *scopes: Scope, default: Any = ..., **field: Any) -> Any:
    """A pydantic `Field` that states what the setting affects; one that states nothing affects the result.

    Args:
        default: as all that follows, an argument of `Field`.
    """
    if what not in get_args(What) or not set(scopes) <= set(get_args(Scope)):
        raise TypeError(f"a setting affects {get_args(What)} within {get_args(Scope)}, not {(what, *scopes)}")
    extra: dict[str, Any] = {"affects": what, "scopes": list(scopes)}
    if "default_factory" in field:
        return Field(json_schema_extra=extra, **field)
    return Field(default, json_schema_extra=extra, **field)


def effect_of(kind: type[Config], key: str) -> Effect:
    """The effect of a dotted key; one inside a setting that is no table has the effect of that setting."""
    name, _, rest = key.partition(".")
    field = kind.model_fields.get(name)
    if field is None:
        return Effect()
    inner = field.annotation
    if rest and isinstance(inner, type) and issubclass(inner, Config):
        return effect_of(inner, rest)
    return _stated(field)


def settings_within(kind: type[Config], scope: Scope) -> list[str]:
    """The fields of a table that state this scope, in order."""
    return [name for name, field in kind.model_fields.items() if scope in _stated(field).scopes]


def settings_that_matter(config: Config, *, without: Iterable[Scope] = (), defaults: bool = True) -> dict[str, Any]:
    """A configuration as JSON, nested ones too, without the settings that leave the result as it is.

    Args:
        without: scopes whose settings do not matter here either.
        defaults: false leaves out what stands at its default.
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
