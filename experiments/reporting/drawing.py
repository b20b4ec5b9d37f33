"""Drawing the report's figures: those that have changed, several at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.config.params import Params
from experiments.reporting.evidence import Evidence
from experiments.reporting.papers import PaperPage
from experiments.running import digests, jobs, machine, server, storage
from experiments.running.jobs import Job, Outcome, Pool

ENDINGS = ("svg", "png")
"""Of the files of a figure."""
_STYLE = Path(__file__).with_name("report.mplstyle")


@dataclass(frozen=True)
class Drawing:
    """A figure of the report: what it says, and how it is drawn."""

    name: str
    title: str
    text: str
    place: str
    """Section of the page: ``claims``, the key of a paper, ``across``, ``costs`` or ``check``."""
    function: str
    """Of ``reporting.figures``, by name: importing it takes seconds, and often nothing is to be drawn."""
    arguments: tuple[Any, ...]
    """Values, tables and files: the figure is a function of these and of the code."""


@dataclass(frozen=True)
class Measured:
    """All that figures are drawn from."""

    params: Params
    keys: list[str]
    """The experiments that are shown."""
    pages: list[PaperPage]
    evidence: Evidence
    summary: pd.DataFrame
    """Of those, one row each; an experiment that shares its scores with another has none of its own."""
    speed: pd.DataFrame

    def row(self, key: str) -> str:
        """What the paper calls an experiment, and of which data set where it calls several so."""
        own = self.params.experiments[key]
        alike = {
            other.dataset
            for other in self.params.experiments.values()
            if (other.paper, other.row) == (own.paper, own.row)
        }
        return f"{own.row}, {own.dataset}" if len(alike) > 1 else own.row


def draw(
    drawings: Sequence[Drawing], folder: Path, known: Mapping[str, str], locks: Path
) -> tuple[dict[str, str], Outcome]:
    """Draws what is new, and removes what no drawing is of.

    Args:
        drawings: all figures of the report.
        folder: where they are kept.
        known: digests of the figures that are in the folder, by name.
        locks: folder for the locks.

    Returns:
        The digests of all that are there now, and what became of the work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = {f"{drawing.name}.{ending}" for drawing in drawings for ending in ENDINGS}
    for path in folder.iterdir():
        if path.name not in wanted:
            storage.remove(path)
    work = [_job(drawing, folder, known) for drawing in drawings]
    pool = Pool(min(machine.cores(), len(work)), 1, imports=server.DRAWING)
    outcome = jobs.do_jobs("report", work, pool, locks)
    undone = {*outcome.failed, *outcome.left}
    done = {job.name: job.digest for job in work if job.name not in undone}
    return done, outcome


def _job(drawing: Drawing, folder: Path, known: Mapping[str, str]) -> Job:
    digest = _digest(drawing)

    def is_done() -> bool:
        files = [folder / f"{drawing.name}.{ending}" for ending in ENDINGS]
        return known.get(drawing.name) == digest and all(path.is_file() for path in files)

    return Job(
        name=drawing.name,
        digest=digest,
        work=f"{server.DRAWING[0]}:draw",
        arguments={
            "function": drawing.function,
            "arguments": drawing.arguments,
            "folder": folder,
            "name": drawing.name,
        },
        is_done=is_done,
    )


def _digest(drawing: Drawing) -> str:
    """Digest of all that a figure is a function of: its arguments, the files among them, and the code."""
    code = digests.of_code(server.DRAWING)
    style = digests.of_file(_STYLE)
    total = hashlib.sha256(f"{code} {style} {drawing.function} {drawing.name}".encode())
    total.update(repr(_described(drawing.arguments)).encode())
    return total.hexdigest()


def _described(value: Any) -> Any:
    """A value in which tables are text, and files their content's digest."""
    if isinstance(value, pd.DataFrame):
        return value.to_csv()
    if isinstance(value, Path):
        return digests.of_file(value)
    if isinstance(value, Mapping):
        return {str(key): _described(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(item) for item in value]
    return value
