"""Which files of this repository a model is made of, and the digest of files.

Found by reading import statements, not by importing: so the digest of a run can be known before
torch is loaded, and a model that no import names does not count.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
_PACKAGES = ("models", "experiments")


def files(modules: Iterable[str]) -> list[Path]:
    """Files of the modules and of all that they import from this repository, sorted.

    Args:
        modules: dotted names, such as ``experiments.train`` or ``models.gun``.
    """
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


def digest(paths: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files of this repository, in hexadecimal."""
    total = hashlib.sha256()
    for path in sorted(paths):
        total.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


@cache
def _imports(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            # What follows "import" may be a module or a name inside one.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] in _PACKAGES]


def _path(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None
