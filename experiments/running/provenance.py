"""Where a number comes from: code, software, hardware and time."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from typing import Any

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy")


def provenance(device: str) -> dict[str, Any]:
    """What a result says of the circumstances. Not part of it: it differs between runs.

    Args:
        device: in words.
    """
    return {"time": datetime.now(UTC).isoformat(timespec="seconds"), "device": device, **_circumstances()}


@cache  # a worker asks after every job, and neither code nor software changes under it
def _circumstances() -> dict[str, Any]:
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(
            _git("status", "--porcelain", "--", "models", "experiments", "params.yaml")
        ),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
    }


def _git(*arguments: str) -> str | None:
    """Output of a git command; ``None`` outside a repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
