"""Errors that a user can mend, which end a command with one line and no traceback."""

from __future__ import annotations


class ExpectedError(Exception):
    """Something that a user can mend: the message says, in one line, what was found and how to fix it."""


class StageError(ExpectedError):
    """A stage, or one of its jobs, cannot go on."""
