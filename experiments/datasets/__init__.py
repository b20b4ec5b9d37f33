"""Data sets behind one interface: a file of this package each, which defines ``DATASET``."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

from experiments.datasets.base import Dataset, Options


@cache
def names() -> list[str]:
    """Names of the data sets, sorted."""
    folder = Path(__file__).parent
    return sorted(path.stem for path in folder.glob("*.py") if "\nDATASET = " in path.read_text())


def dataset_class(name: str) -> type[Dataset]:
    """The class behind one of ``names()``."""
    cls: type[Dataset] = importlib.import_module(f"experiments.datasets.{name}").DATASET
    return cls


def parse_options(name: str, options: dict[str, Any]) -> Options:
    """A data set's options as its own type.

    Raises:
        pydantic.ValidationError: an unknown key, a wrong type or an impossible value.
    """
    return dataset_class(name).options_type.model_validate(options)


def create(name: str, options: dict[str, Any]) -> Dataset:
    """Builds a data set from its name and what ``params.yaml`` says of it."""
    return dataset_class(name)(parse_options(name, options))
