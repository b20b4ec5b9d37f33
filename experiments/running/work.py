"""What a job is given, and how it is named to the process that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any


@dataclass
class Context:
    """What a job may say while it runs."""

    device: int | None
    """Number of the GPU that the job has to itself, if there is one."""
    progress: Callable[[float], None]
    """Takes the share that is done, from 0 to 1."""
    say: Callable[[str], None]
    """Prints a line."""


def function(place: str) -> Callable[..., Any]:
    """The function at ``module:name``."""
    module, name = place.split(":")
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found
