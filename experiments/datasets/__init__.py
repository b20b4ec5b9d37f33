"""Data sets behind one interface: a file of this package each, which defines ``DATASET``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from experiments.datasets.base import DataError, Dataset, LabelClass


@cache
def names() -> list[str]:
    """Names of the data sets, sorted."""
    files = Path(__file__).parent.glob("*.py")
    return sorted(
        path.stem for path in files if not path.name.startswith("_") and "\nDATASET = " in path.read_text()
    )


def dataset_class(name: str) -> type[Dataset]:
    """The class behind one of ``names()``."""
    cls: type[Dataset] = importlib.import_module(f"experiments.datasets.{name}").DATASET
    return cls


def create(name: str, options: dict[str, Any]) -> Dataset:
    """Builds a data set from its name and what ``params.yaml`` says of it.

    Raises:
        pydantic.ValidationError: an unknown key, a wrong type or an impossible value.
    """
    cls = dataset_class(name)
    return cls(cls.options_type.model_validate(options))


def sequences(name: str, images: Sequence[str]) -> list[str]:
    """For each image of a split, by name, the sequence that it is of (see ``Dataset.sequences``).

    Raises:
        DataError: there is no such data set, as of results that are older than the code.
    """
    if name not in names():
        raise DataError(
            f"there is no data set '{name}', which says what its images are of; expected one of {names()}"
        )
    return dataset_class(name).sequences(images)


def classes(name: str, options: dict[str, Any] | None) -> tuple[LabelClass, ...]:
    """The classes of a data set.

    Args:
        name: one of ``names()``.
        options: what ``params.yaml`` says of it; ``None`` where the profile does not have it.

    Raises:
        DataError: the classes are among the options, and there are none.
    """
    cls = dataset_class(name)
    if options is not None:
        return create(name, options).classes
    if not hasattr(cls, "classes"):
        raise DataError(
            f"params.yaml: the classes of data set '{name}' are among its options; name it under the "
            "profile's datasets"
        )
    return cls.classes
