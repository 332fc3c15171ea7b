"""Settings whose value may be a word instead of a number: `auto`, `none`, `all`; read alike from flags, TOML and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

T = TypeVar("T")


@dataclass(frozen=True)
class Word:
    """Marks a type whose first part is validated unless the value is the word. 0, which older files hold, is read as the word."""

    text: str
    value: str | None
    """What the word is in Python, and in JSON."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        # Only the number's own schema, so that an error names what is wrong with the number.
        number = handler.generate_schema(get_args(source)[0])
        return core_schema.no_info_wrap_validator_function(
            lambda given, check: self.value if self.said(given) else check(given),
            number,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda value: value),
        )

    def said(self, given: Any) -> bool:
        """Whether a value is the word, or the 0 that stood for it."""
        return (given is None and self.value is None) or str(given).strip().lower() in (self.text, "0", "0.0")


Auto = Annotated[T | Literal["auto"], Word("auto", "auto")]
"""A number, or `auto`: chosen from the data or the variant."""
OrNone = Annotated[T | None, Word("none", None)]
"""A number, or `none`: switched off."""
OrAll = Annotated[T | Literal["all"], Word("all", "all")]
"""A number, or `all`."""


def settled(value: int | Literal["auto"]) -> int:
    """A number that was `auto` until it was chosen; see `SAEConfig.sized`."""
    assert value != "auto"
    return value
