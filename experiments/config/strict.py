"""Typed settings that accept no unknown key and convert nothing silently, and what they say of errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.types import Strict
from pydantic_core import ErrorDetails, PydanticCustomError

from experiments.running.errors import ExpectedError

MOST = 10**9
"""A larger count or size is a slip of the pen, and some would take all memory."""
Count = Annotated[int, Field(ge=1, le=MOST)]
Natural = Annotated[int, Field(ge=0, le=MOST)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
# Strict scalars in a tuple that may be written as a YAML list.
Side = Annotated[int, Field(ge=1, le=16384)]
Size = Annotated[tuple[Side, Side], Strict(False)]
"""Height and width in pixels."""
_NAME = r"^[^/\\\x00-\x1f\x7f.][^/\\\x00-\x1f\x7f]{0,99}$"
Name = Annotated[str, Field(pattern=_NAME)]
"""Words that can be in a file's name."""
_LINE = r"^[^\x00-\x1f\x7f]{1,200}$"
Line = Annotated[str, Field(pattern=_LINE)]
Interval = Annotated[tuple[Positive, Positive], Strict(False)]


class ConfigError(ExpectedError):
    """A params file that cannot be used; the message names the key, in one line."""


class StrictModel(BaseModel):
    """No unknown keys, no silent conversions."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, protected_namespaces=(), allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, values: Any) -> Any:
        if isinstance(values, dict):
            for key in values:
                if key not in cls.model_fields:
                    raise unknown_key(key, cls.model_fields)
        return values


def unknown_key(key: str, valid: Iterable[str]) -> PydanticCustomError:
    """The validation error for a key that nobody reads."""
    return PydanticCustomError(
        "unknown_key", "unknown key; {hint}", {"key": str(key), "hint": nearest(key, valid)}
    )


def nearest(word: str, valid: Iterable[str]) -> str:
    """``did you mean 'x'?`` for the likeliest of the valid words, or all of them."""
    known = sorted(valid)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"valid: {', '.join(known)}"


def describe(error: ErrorDetails) -> tuple[list[str], str]:
    """Path of the key and what is wrong with it."""
    # Names of a union's members are pydantic's business, not keys of the file.
    path = [str(part) for part in error["loc"] if part not in _UNION_MEMBERS]
    context = error.get("ctx", {})
    if error["type"] == "missing":
        return path, "missing; it has to be given"
    if "key" in context:
        return [*path, str(context["key"])], error["msg"]
    if error["type"] in ("too_short", "too_long"):
        bound, limit = (
            ("at least", "min_length") if error["type"] == "too_short" else ("at most", "max_length")
        )
        items = "item" if context[limit] == 1 else "items"
        return path, f"should have {bound} {context[limit]} {items}, found {context['actual_length']}"
    if error["type"] in _CONTAINERS:
        found = error["input"]
        said = (
            "a mapping" if isinstance(found, dict) else "a list" if isinstance(found, list) else repr(found)
        )
        return path, f"should be {_CONTAINERS[error['type']]}, found {said}"
    if isinstance(error["input"], dict | list):
        return path, error["msg"]
    wanted = _PATTERNS_IN_WORDS.get(str(context.get("pattern")), error["msg"].removeprefix("Input "))
    return path, f"{wanted}, found {error['input']!r}"


def at(where: str, error: ValidationError) -> PydanticCustomError:
    """The first error of a part that was validated by itself, with its place in the file."""
    path, message = describe(error.errors()[0])
    return PydanticCustomError("part", "{problem}", {"problem": message, "key": ".".join([where, *path])})


_CONTAINERS = {
    "dict_type": "a mapping ('key: value' for each)",
    "model_type": "a mapping ('key: value' for each)",
    "model_attributes_type": "a mapping ('key: value' for each)",
    "list_type": "a list",
    "tuple_type": "a list",
}
_PATTERNS_IN_WORDS = {
    _NAME: "should be 1 to 100 characters without slashes, not beginning with a dot",
    _LINE: "should be one line of 1 to 200 characters",
}
_UNION_MEMBERS = {
    "poly", "step", "bool", "str",
    "cross-entropy", "ohem", "hardest", "lovasz", "class-balanced", "masks",
}  # fmt: skip
