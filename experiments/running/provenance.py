"""Where a number comes from: code, software, hardware and time."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from typing import Any

from experiments.running.devices import Devices

_PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy")


def provenance(devices: Devices) -> dict[str, Any]:
    """What ``run.json`` says of the circumstances. Not part of a result: it differs between runs."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(
            _git("status", "--porcelain", "--", "models", "experiments", "params.yaml")
        ),
        "device": devices.description,
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
