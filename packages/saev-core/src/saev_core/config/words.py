"""Settings whose value may be a word instead of a number: `auto`, `none`, `all`; parsed the same way from flags, TOML and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

T = TypeVar("T")


@dataclass(frozen=True)
class Word:
    """Annotates a union type: its first member is validated unless the value is the word."""

    text: str
    value: str | None
    """The word's value in Python and in JSON."""
    zero: bool = True
    """Whether 0, as written in older files, is read as the word."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Use only the other member's schema, so that an error describes what is wrong with the number.
        other, said = handler.generate_schema(get_args(source)[0]), self.said
        if self.value is None:
            other, plain = core_schema.nullable_schema(other), None
        else:
            plain = core_schema.plain_serializer_function_ser_schema(lambda value: value)
        return core_schema.no_info_wrap_validator_function(
            lambda given, check: self.value if said(given) else check(given), other, serialization=plain
        )

    def said(self, given: Any) -> bool:
        """Whether a value is the word, or the 0 that older files use for it."""
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
    """Narrow the type of a number whose `auto` has been resolved; see `SAEConfig.sized`."""
    assert value != "auto"
    return value
