"""One file per experiment for what a whole-suite stage measured, so that a change re-measures little."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.running import storage


def recall(path: Path, configuration: dict[str, Any], measure: Callable[[], Any]) -> Any:
    """What ``measure`` returned when last called for this configuration, or what it returns now.

    Args:
        path: JSON file that keeps the value.
        configuration: everything that the value depends on, of JSON types.
        measure: makes the value, of JSON types.
    """
    try:
        kept = json.loads(path.read_text())
        if kept["configuration"] == configuration:
            return kept["value"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError):
        pass  # never measured, or not by this code
    value = measure()
    storage.write_json(path, {"configuration": configuration, "value": value})
    return value


def forget_others(folder: Path, keys: set[str]) -> None:
    """Removes the files of experiments that are no longer in params.yaml."""
    for path in folder.glob("*.json"):
        if path.stem not in keys:
            path.unlink()
