"""Settings whose value may be a word instead of a number: `auto`, `none`, `all`; read alike from flags, TOML and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

T = TypeVar("T")


@dataclass(frozen=True)
class Word:
    """Marks a type whose first part is validated unless the value is the word."""

    text: str
    value: str | None
    """What the word is in Python, and in JSON."""
    zero: bool = True
    """Whether 0, which older files hold, is read as the word."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Only the other part's own schema, so that an error names what is wrong with the number.
        other, said = handler.generate_schema(get_args(source)[0]), self.said
        if self.value is None:
            other, plain = core_schema.nullable_schema(other), None
        else:
            plain = core_schema.plain_serializer_function_ser_schema(lambda value: value)
        return core_schema.no_info_wrap_validator_function(
            lambda given, check: self.value if said(given) else check(given), other, serialization=plain
        )

    def said(self, given: Any) -> bool:
        """Whether a value is the word, or the 0 that stood for it."""
        return str(given).strip().lower() in (self.text, *(("0", "0.0") if self.zero else ()))


Auto = Annotated[T | Literal["auto"], Word("auto", "auto")]
"""A number, or `auto`: chosen from the data or the variant."""
Off = Annotated[T | None, Word("none", None)]
"""A number, or `none`: switched off."""
OrNone = Annotated[T | None, Word("none", None, zero=False)]
"""A value, which may be 0, or `none`."""
OrAll = Annotated[T | Literal["all"], Word("all", "all")]
"""A number, or `all`."""


def settled(value: int | Literal["auto"]) -> int:
    """A number that was `auto` until it was chosen; see `SAEConfig.sized`."""
    assert value != "auto"
    return value
