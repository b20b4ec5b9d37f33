"""Typed settings that accept no unknown key and convert nothing silently."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError


class Strictly(BaseModel):
    """No unknown keys, no silent conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

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
