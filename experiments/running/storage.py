"""Writing results: beside the final place first, moved there whole.

A killed stage leaves the old file or the new one, never half of one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd


class StorageError(Exception):
    """An output cannot be written; the message names the path and the reason, in one line."""


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Calls ``save`` with a path beside ``path`` and moves what it wrote into place.

    Raises:
        StorageError: the disk is full, or the folder is not writable.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(partial)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise StorageError(_reason(path, error)) from error
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8 with Unix line ends."""
    write(path, lambda partial: partial.write_text(text, encoding="utf-8", newline="\n"))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that a person can read and ``diff`` can compare."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Writes a table without its index; missing values are empty."""
    write(path, lambda partial: table.to_csv(partial, index=False, lineterminator="\n"))


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which replaces ``path`` when the block ends without an error."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # of an earlier, killed run
        partial.mkdir(parents=True)
        yield partial
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise StorageError(_reason(path, error)) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _reason(path: Path, error: OSError) -> str:
    return f"{path}: cannot be written ({error.strerror or error}); free space or choose a writable folder"
