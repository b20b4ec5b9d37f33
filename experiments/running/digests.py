"""Digests of values, files and code: by them a stage knows what is done already.

Code is found by reading import statements, not by importing: so a digest can be known before torch is
loaded, and a module that no import names does not count.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
_PACKAGES = ("models", "experiments")

TRAINING_CODE = ("experiments/samples", "experiments/training")
"""Folders that decide what weights become, besides the model's own modules. dvc.yaml follows the same."""

SCORING_CODE = ("experiments/samples", "experiments/scoring")
"""Folders that decide what trained weights score, likewise."""

COUNTING_CODE = TIMING_CODE = ("experiments/measuring",)
"""Folders that decide what a network counts and how it is timed, likewise."""


def of_value(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def of_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def of_code(modules: tuple[str, ...] = (), folders: tuple[str, ...] = ()) -> str:
    """SHA-256 over names and contents of this repository's code, in hexadecimal.

    Args:
        modules: dotted names, such as ``models.gun``; each counts with all that it imports from
            this repository.
        folders: relative to the root, such as ``experiments/training``; every file in them counts.
    """
    found = set(_imported(modules))
    for folder in folders:
        found.update(
            path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".j2", ".mplstyle")
        )
    total = hashlib.sha256()
    for path in sorted(found):
        total.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def of_model_code(model: str, folders: tuple[str, ...]) -> str:
    """Digest of a model's own modules and of what else decides a result.

    Args:
        model: a name of ``models.names()``.
        folders: such as ``TRAINING_CODE``.
    """
    is_peer = (ROOT / "models/peers" / f"{model}.py").is_file()
    return of_code((f"models.peers.{model}" if is_peer else f"models.{model}",), folders)


def _imported(modules: Iterable[str]) -> list[Path]:
    """Files of the modules and of all that they import from this repository, sorted."""
    found: set[Path] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        # Importing a.b.c runs a and a.b first.
        parts = module.split(".")
        for length in range(1, len(parts) + 1):
            path = _path(".".join(parts[:length]))
            if path is not None and path not in found:
                found.add(path)
                waiting.extend(_imports(path))
    return sorted(found)


@cache
def _imports(path: Path) -> list[str]:
    names = []
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            # What follows "import" may be a module or a name inside one.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] in _PACKAGES]


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements below a node; expressions, most of a tree, import nothing."""
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        for below in getattr(node, part, ()):
            yield below
            yield from _statements(below)


@cache
def _path(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None
