"""Locks on a shared file system: two processes never do the same job at once.

A lock is a file that names the host and the process that holds it. Its holder touches it now and then;
one whose process has died, or which nobody on another host has touched for long, is taken over.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from experiments.running import machine
from experiments.running.storage import StorageError, reason

TOUCH_EVERY = 20.0
"""Seconds between two signs of life of a holder."""
STALE_AFTER = 180.0
"""Seconds without one after which a lock from another host is taken over."""


class Locks:
    """The locks that this process holds in one folder.

    Use it as a context: a thread of it keeps the locks alive, and what is still held at the end is
    released.

    Args:
        folder: on a file system that all processes share.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._held: set[str] = set()
        self._ended = threading.Event()
        self._touching = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> Locks:
        self._touching.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._touching.join()
        for name in list(self._held):
            self.release(name)
        with suppress(OSError):
            self.folder.rmdir()  # where nobody else holds one

    def acquire(self, name: str) -> str | None:
        """Takes a lock, also from a holder that has died.

        Returns:
            ``None`` if it is this process's now, else who holds it, in words.

        Raises:
            StorageError: the folder cannot be written.
        """
        path = self._path(name)
        if self._create(path):
            self._held.add(name)
            return None
        holder = _read(path)
        if not _has_died(holder, path):
            return _describe(holder)
        _move_away(path, holder)
        if not self._create(path):
            return _describe(_read(path))
        self._held.add(name)
        print(f"lock {path}: taken over from {_describe(holder)}, which is gone", flush=True)
        return None

    def release(self, name: str) -> None:
        """Gives a lock of this process back."""
        self._held.discard(name)
        self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.lock"

    def _create(self, path: Path) -> bool:
        content = json.dumps(
            {"host": socket.gethostname(), "process": os.getpid(), "started": machine.started(os.getpid())}
        )
        # Written under a name of its own and then linked: nobody ever reads half a lock, and linking
        # fails where the name is taken, on a network file system too.
        own = path.with_name(f"{path.name}.{os.getpid()}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            own.write_text(content)
            try:
                os.link(own, path)
            except FileExistsError:
                return False
            finally:
                own.unlink(missing_ok=True)
        except FileNotFoundError:
            return self._create(path)  # another process has just removed the empty folder, or the file
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be written ({reason(error)}); free space or choose a writable folder"
            ) from error
        return True

    def _touch(self) -> None:
        while not self._ended.wait(TOUCH_EVERY):
            for name in list(self._held):
                with suppress(OSError):
                    os.utime(self._path(name))


def clear(folder: Path) -> None:
    """Removes the locks of processes that have died, which nobody may ask for again.

    A worker can end its job although the stage that held the lock was killed. The job is done then, and no
    later process takes the lock over.
    """
    for path in folder.glob("*.new"):
        path.unlink(missing_ok=True)  # whoever is about to link it writes it again
    for path in (*folder.glob("*.lock"), *folder.glob("*.stale")):
        holder = _read(path)
        if _has_died(holder, path):
            _move_away(path, holder)
    with suppress(OSError):
        folder.rmdir()  # where nobody holds one


def live(folder: Path) -> list[str]:
    """The holders of the folder's locks that are alive, in words."""
    found = []
    for path in sorted(folder.glob("*.lock")):
        holder = _read(path)
        if not _has_died(holder, path):
            found.append(_describe(holder))
    return found


def _move_away(path: Path, holder: dict[str, object]) -> None:
    """Removes a lock whose holder has died, unless another process has taken it over since."""
    # Whoever moves the stale file away first may create the new one. The other then moves that one away, and
    # puts it back.
    stale = path.with_name(f"{path.name}.{os.getpid()}.stale")
    with suppress(FileNotFoundError):
        os.replace(path, stale)
        if _read(stale) != holder:
            with suppress(FileExistsError):
                os.link(stale, path)
        stale.unlink()


def _read(path: Path) -> dict[str, object]:
    try:
        holder = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}  # released just now, or not a lock of ours
    return holder if isinstance(holder, dict) else {}


def _has_died(holder: dict[str, object], path: Path) -> bool:
    process = holder.get("process")
    if holder.get("host") == socket.gethostname() and isinstance(process, int):
        started = machine.started(process)
        # A number that another process has got since belongs to one that started later.
        return started is None or started != holder.get("started")
    try:
        return time.time() - path.stat().st_mtime > STALE_AFTER
    except FileNotFoundError:
        return True


def _describe(holder: dict[str, object]) -> str:
    return f"process {holder.get('process', 'unknown')} on {holder.get('host', 'an unknown host')}"
