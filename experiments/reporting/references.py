"""References: measurements of an earlier, longer run, kept in git and shown beside the present one.

``results/reference/<name>/`` holds ``about.json``, the scores and the counts by image of what the claims
compare, from which every verdict can be computed again, the claims, the summary and the costs.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.params import Params
from experiments.reporting import verdicts
from experiments.reporting.measurements import Measurements
from experiments.running import paths, storage
from experiments.running.errors import StageError

SCHEMA = 1
_NEEDED = {
    "schema", "profile", "description", "dataset", "split", "device", "commits", "seeds", "threads", "date",
    "command", "experiments",
}  # fmt: skip
_REMEDY = "take it from git, or keep it again with 'python -m experiments.claims --keep {name}'"


@dataclass(frozen=True)
class Reference:
    """A kept run."""

    name: str
    about: dict[str, Any]
    """What ``about.json`` says."""
    found: Measurements

    @property
    def folder(self) -> Path:
        """Where it is kept."""
        return paths.REFERENCE / self.name

    @property
    def where(self) -> str:
        """Where its numbers come from, short enough for the head of a column."""
        return f"reference {self.name}: {self.about['dataset']} {self.about['split']}"

    def claims(self) -> list[dict[str, str]]:
        """The rows of its ``claims.csv``.

        Raises:
            StorageError: the file is missing.
            StageError: it is of another edition.
        """
        remedy = f"run 'python -m experiments.claims --from {self.name}'"
        return rows(self.folder / "claims.csv", verdicts.COLUMNS, remedy)


def names() -> list[str]:
    """Names of the references, sorted."""
    return sorted(path.name for path in paths.REFERENCE.glob("*") if path.is_dir())


def load(name: str, params: Params) -> Reference:
    """Reads a reference.

    An experiment that params.yaml now describes otherwise than the reference does has no scores in it: its
    numbers are of something else.

    Raises:
        StageError: no such reference, or it is of another schema.
        StorageError: a file is missing or broken.
    """
    folder, remedy = paths.REFERENCE / name, _REMEDY.format(name=name)
    if not folder.is_dir():
        known = ", ".join(names()) or "none"
        raise StageError(f"{folder}: no such reference; there is {known}")
    path = folder / "about.json"
    about = storage.read_json(path, remedy)
    schema = about.get("schema") if isinstance(about, dict) else None
    if schema != SCHEMA:
        raise StageError(f"{path}: has schema {schema}, expected {SCHEMA}; {remedy}")
    missing = sorted(_NEEDED - set(about))
    if missing:
        raise StageError(f"{path}: has no '{missing[0]}'; {remedy}")
    scores, reasons = {}, {}
    for key, kept in about["experiments"].items():
        now = params.experiments.get(key)
        if now is None or kept["settings"] != settings_of(params, key):
            reasons[key] = f"has other settings in reference '{name}'"
            continue
        file = folder / "evaluate" / f"{key}.json"
        scores[key] = storage.read_json(file, remedy)
        for needed in ("dataset", "split", "miou", "same_training_as", "same_scores_as", "seeds"):
            if not isinstance(scores[key], dict) or needed not in scores[key]:
                raise StageError(f"{file}: not scores of this edition, '{needed}' is missing; {remedy}")
        for needed in ("seed", "training", "class_iou"):
            if not all(needed in seed for seed in scores[key]["seeds"]):
                raise StageError(f"{file}: not scores of this edition, '{needed}' is missing; {remedy}")
    costs = {
        row["experiment"]: {"parameters": float(row["parameters"]), "macs": float(row["macs"])}
        for row in rows(folder / "complexity.csv", ("experiment", "parameters", "macs"), remedy)
    }
    timings = folder / "speed.csv"
    columns = ("experiment", "batch", "height", "width", "fps", "device")
    found = Measurements(
        name=f"reference '{name}'",
        folder=folder / "evaluate",
        scores=scores,
        reasons=reasons,
        costs=costs,
        timings=rows(timings, columns, remedy) if timings.is_file() else [],
        seconds={key: kept["training_seconds"] for key, kept in about["experiments"].items()},
        exceptions={
            key: kept["exception"] for key, kept in about["experiments"].items() if kept.get("exception")
        },
        remedy=remedy,
    )
    return Reference(name, about, found)


def settings_of(params: Params, key: str) -> dict[str, Any]:
    """What makes an experiment the same in a reference and now, at the paper's own scale."""
    experiment = params.experiments[key]
    settings: dict[str, Any] = experiment.model_dump(
        mode="json", include={"model", "options", "dataset", "recipe"}
    )
    return settings


def rows(path: Path, columns: Iterable[str], remedy: str) -> list[dict[str, str]]:
    """The rows of a table of a reference.

    Raises:
        StorageError: the file is missing.
        StageError: it lacks a column.
    """
    reader = csv.DictReader(storage.read_text(path, remedy).splitlines())
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        raise StageError(f"{path}: has no column '{missing[0]}'; {remedy}")
    return [row for row in reader if any(row.values())]


def write_readme(params: Params) -> None:
    """Writes ``results/reference/README.md`` from the references that there are."""
    storage.write_text(paths.REFERENCE / "README.md", readme([load(name, params) for name in names()]))


def readme(references: Iterable[Reference]) -> str:
    """What a reader of the folder has to know, in Markdown."""
    parts = [
        "# Reference measurements",
        "Measured with this suite, and kept for readers who run nothing. This page is written by "
        "`python -m experiments.claims --keep NAME`; `--from NAME` computes a reference's verdicts again "
        "from its counts. What the columns and verdicts mean stands in the README of the repository.",
    ]
    found = list(references)
    if not found:
        parts.append("No reference is kept yet.")
    for reference in found:
        about = reference.about
        changes = ", with uncommitted changes" if about["uncommitted_changes"] else ""
        facts = {
            "profile": f"`{about['profile']}`: {about['description']}",
            "data": f"{about['dataset']}, {about['split']}",
            "experiments": f"{len(about['experiments'])}, of which {about['trainings']} different trainings",
            "seeds": ", ".join(map(str, about["seeds"])),
            "device": "; ".join(about["device"]),
            "threads of a training": about["threads"],
            "hours of training": f"{about['training_hours']:.1f}",
            "commits": ", ".join(f"`{commit[:12]}`" for commit in about["commits"]) + changes,
            "date": about["date"],
            "command": f"`{about['command']}`",
        }
        table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
        parts += [
            f"## {reference.name}",
            f"| | |\n| --- | --- |\n{table}",
            _verdict_table(reference.claims()),
        ]
    return "\n\n".join(parts) + "\n"


def _verdict_table(claims: Iterable[Mapping[str, str]]) -> str:
    lines = ["| paper | claim | compared | difference | verdict |", "| --- | --- | --- | --- | --- |"]
    for row in claims:
        compared = f"`{row['better']}`" + (f" - `{row['worse']}`" if row["worse"] else "")
        interval = f" [{row['low']}, {row['high']}]" if row["low"] else ""
        value = f"{row['difference']}{interval} {row['unit']}" if row["difference"] else ""
        reason = f" ({row['reason']})" if row["reason"] else ""
        lines.append(
            f"| {row['paper']} | {row['says']} | {compared}, {row['metric']} | {value} | "
            f"{row['verdict']}{reason} |"
        )
    return "\n".join(lines)
