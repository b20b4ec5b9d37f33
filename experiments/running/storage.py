"""Reading and writing results. Writing goes beside the final place first and is moved there whole.

A killed stage leaves the old file or the new one, never half of one: the data reach the disk before
the name does, and the name before the call returns.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.running import machine
from experiments.running.errors import ExpectedError

if TYPE_CHECKING:
    import pandas as pd


MOST_BYTES = 64 * 2**20
"""A larger text file than this is none of ours; reading it could take all memory."""
_ENDINGS = ("partial", "old")
"""Of what is being written, and of a folder that is being replaced."""
_MOST_COLUMNS = 1000
"""Of a table that is read."""
_NUMBERS = re.compile(r"\[((?:\s*-?[\d.eE+-]+,?)+)\s*\]")


class StorageError(ExpectedError):
    """A file cannot be read or written; the message names the path and the reason, in one line."""


def write(path: Path, save: Callable[[Path], object]) -> None:
    """Calls ``save`` with a path beside ``path`` and moves what it wrote into place.

    Raises:
        StorageError: the disk is full, or the folder is not writable.
    """
    partial = _beside(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(path)
        save(partial)
        _flush(partial)
        os.replace(partial, path)
        _flush(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _cannot_write(path, error) from error
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Writes a file of bytes."""
    write(path, lambda partial: partial.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8 with Unix line ends."""
    write(path, lambda partial: partial.write_text(text, encoding="utf-8", newline="\n"))


def write_json(path: Path, value: Any) -> None:
    """Writes JSON that a person can read and ``diff`` can compare: a list of numbers is one line."""
    text = json.dumps(value, indent=2, allow_nan=False)
    write_text(path, _NUMBERS.sub(lambda match: f"[{' '.join(match[1].split())}]", text) + "\n")


def write_csv(path: Path, table: pd.DataFrame) -> None:
    """Writes a table without its index; missing values are empty."""
    write(path, lambda partial: table.to_csv(partial, index=False, lineterminator="\n"))


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a table of rows; its columns are the keys of all of them, a missing value is empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value is None else value for name, value in row.items()} for row in rows)
    write_text(path, text.getvalue())


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """A new folder to fill, which replaces ``path`` when the block ends without an error.

    Raises:
        StorageError: something in it cannot be written.
    """
    partial = _beside(path, "partial")
    try:
        clear_leftovers(path)
        partial.mkdir(parents=True)
        yield partial
        for file in (*partial.rglob("*"), partial):
            _flush(file)
        replace_folder(partial, path)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not _is_below(error.filename, path, partial):
            raise
        raise _cannot_write(path, error) from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def replace_folder(new: Path, path: Path) -> None:
    """Moves the folder ``new`` to ``path``, in the place of the one that may be there."""
    old = _beside(path, "old")
    with suppress(FileNotFoundError):
        os.replace(path, old)
    os.replace(new, path)
    _flush(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Removes a file that is no longer of use.

    Raises:
        StorageError: it cannot be.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be removed ({reason(error)}); remove it by hand") from error


def clear_partials(place: Path) -> None:
    """Removes what killed processes left half-written in a folder that nobody else writes to."""
    for ending in _ENDINGS:
        for path in place.glob(f".*.{ending}"):
            _remove(path)


def read_text(path: Path, remedy: str) -> str:
    """A text file in UTF-8.

    Args:
        path: of the file.
        remedy: what to do where it is missing or broken, such as "run ... again".

    Raises:
        StorageError: it is missing, cannot be read or is not text.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise StorageError(f"{path}: has {size} bytes, expected at most {MOST_BYTES}; {remedy}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StorageError(f"{path}: no such file; {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: cannot be read ({reason(error)}); {remedy}") from None


def read_json(path: Path, remedy: str) -> Any:
    """The value of a JSON file; the arguments and errors are ``read_text``'s."""
    text = read_text(path, remedy)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of more digits than Python reads
        what = "is empty" if not text.strip() else f"is not JSON ({reason(error)})"
        raise StorageError(f"{path}: {what}; {remedy}") from None


def read_csv(path: Path, columns: set[str], remedy: str, **options: Any) -> pd.DataFrame:
    """A table.

    Args:
        path: of the file.
        columns: that it has to have at least.
        remedy: as in ``read_text``.
        options: further keywords of ``pandas.read_csv``.

    Raises:
        StorageError: as ``read_text``; also if a column is missing.
    """
    import pandas as pd  # here, as half of the commands need no table and importing it takes 0.4 s

    text = read_text(path, remedy)
    head = text.partition("\n")[0].count(",") + 1
    if head > _MOST_COLUMNS:  # a million of them took pandas more than half a minute
        raise StorageError(f"{path}: has {head} columns, expected at most {_MOST_COLUMNS}; {remedy}")
    try:
        table: pd.DataFrame = pd.read_csv(io.StringIO(text), **options)
    except (ValueError, OSError) as error:  # what pandas raises of a broken table is a ValueError
        raise StorageError(f"{path}: is not a table ({reason(error)}); {remedy}") from None
    missing = sorted(columns - set(table.columns))
    if missing:
        raise StorageError(f"{path}: has no column '{missing[0]}'; {remedy}")
    return table


def reason(error: BaseException) -> str:
    """What an exception says, in one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:200] or type(error).__name__


def _beside(path: Path, ending: str) -> Path:
    # With the process in its name: two that write the same file never share a half-written one.
    return path.with_name(f"{_start_of_name(path)}{os.getpid()}.{ending}")


def _start_of_name(path: Path) -> str:
    return f".{path.name}.{platform.node()}."


def clear_leftovers(path: Path) -> None:
    """Removes what earlier processes of this machine left of ``path`` when they were killed."""
    start = _start_of_name(path)
    for other in path.parent.glob(f"{glob.escape(start)}*"):
        process, _, ending = other.name[len(start) :].partition(".")
        if ending in _ENDINGS and process.isdigit() and machine.started(int(process)) is None:
            _remove(other)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_below(name: Any, *folders: Path) -> bool:
    # A read error inside the block names another file: it is not a write error of the folder.
    return name is None or any(str(name).startswith(str(folder)) for folder in folders)


def _cannot_write(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path}: cannot be written ({reason(error)}); free space or choose a writable folder"
    )
