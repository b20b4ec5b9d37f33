"""Ending work early without losing it: signals and deadlines ask, and work looks whether it is asked.

A signal arrives between any two instructions, where nothing may be left half-done. So its handler only
notes it, and what takes long looks at ``requested()`` where it can stop, writes what it has and raises
``Stopped``.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

OUT_OF_TIME = 75
"""Exit code of work that ended at its deadline or at SIGUSR1 (EX_TEMPFAIL: run it again to go on)."""

EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: OUT_OF_TIME}
"""What a command exits with that a signal asked to stop."""

_handlers: dict[signal.Signals, Any] = {}
_exit_code: int | None = None
_deadline = float("inf")
_abandoned: Callable[[], bool] | None = None


class Stopped(Exception):  # noqa: N818 (being asked to stop is no error)
    """Work ended before it was done, because it was asked to, and can be taken up where it ended."""


def listen() -> None:
    """Makes SIGINT, SIGTERM and SIGUSR1 requests to stop, in place of what they did."""
    for number in EXIT_CODES:
        _handlers.setdefault(number, signal.signal(number, _note))


def restore() -> None:
    """Gives the signals back what ``listen`` took from them."""
    for number, handler in _handlers.items():
        signal.signal(number, handler)
    _handlers.clear()


def leave_to_others(number: int = 0) -> None:  # noqa: ARG001 (a loader says which of its processes this is)
    """Has a helper process pay no attention to requests: the process that it helps ends it in time.

    A queue signals every process of a job. A process that loads samples would die of it, and take the
    step with it in which a checkpoint is written.
    """
    for each in EXIT_CODES:
        signal.signal(each, signal.SIG_IGN)


def set_deadline(seconds: float) -> None:
    """Asks to stop when so many seconds have passed from now."""
    global _deadline
    _deadline = time.monotonic() + seconds


def watch(abandoned: Callable[[], bool] | None) -> None:
    """Asks to stop once ``abandoned`` says that whoever waits for the work has gone; ``None`` ends that."""
    global _abandoned
    _abandoned = abandoned


def requested() -> bool:
    """Whether somebody asked to stop."""
    return exit_code() is not None


def exit_code() -> int | None:
    """What a command that was asked to stop exits with; ``None`` while nobody asked."""
    if _exit_code is not None:
        return _exit_code
    abandoned = _abandoned is not None and _abandoned()
    return OUT_OF_TIME if abandoned or time.monotonic() >= _deadline else None


def reset() -> None:
    """Forgets requests and deadline, for a process that goes on to something else."""
    global _exit_code, _deadline, _abandoned
    _exit_code, _deadline, _abandoned = None, float("inf"), None


def _note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 (the signature of a handler)
    global _exit_code
    if number == signal.SIGINT and _exit_code == EXIT_CODES[signal.SIGINT]:
        raise KeyboardInterrupt  # asked twice by hand: now, and not at the next good place
    _exit_code = EXIT_CODES[signal.Signals(number)]
