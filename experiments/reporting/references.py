"""References: measurements of an earlier, longer run, kept in git and shown beside the present one.

``results/reference/<name>/`` holds ``about.json``, the scores and the counts by image of what the claims
compare, from which every verdict can be computed again, the claims, the summary and the costs.
"""

from __future__ import annotations

import csv
import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config.params import Params
from experiments.reporting import measurements, verdicts
from experiments.reporting.measurements import Measurements
from experiments.running import paths, storage
from experiments.running.errors import StageError
from experiments.scoring.counts import Counts, Evaluation
from experiments.training.folder import Trainings

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
        """
        return _rows(self.folder / "claims.csv", self.name, verdicts.COLUMNS)


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
        if now is None or kept["settings"] != _settings(params, key):
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
        for row in _rows(folder / "complexity.csv", name, ("experiment", "parameters", "macs"))
    }
    timings = folder / "speed.csv"
    columns = ("experiment", "batch", "height", "width", "fps", "device")
    found = Measurements(
        name=f"reference '{name}'",
        folder=folder / "evaluate",
        scores=scores,
        reasons=reasons,
        costs=costs,
        timings=_rows(timings, name, columns) if timings.is_file() else [],
        seconds={key: kept["training_seconds"] for key, kept in about["experiments"].items()},
        exceptions={
            key: kept["exception"] for key, kept in about["experiments"].items() if kept.get("exception")
        },
    )
    return Reference(name, about, found)


def keep(name: str, params: Params, found: Measurements, summary: Path) -> Reference:
    """Makes a reference of what this run measured.

    Args:
        name: of the reference; one of the same name is replaced.
        params: of the run.
        found: what it measured.
        summary: its ``summary.csv``.

    Raises:
        StageError: the name has other characters than a-z, 0-9 and hyphen, or nothing is measured.
        StorageError: a file is missing, or cannot be written.
    """
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise StageError(f"--keep {name}: expected a name of the characters a-z, 0-9 and hyphen")
    if not found.scores:
        key, reason = next(iter(found.reasons.items()))
        raise StageError(f"--keep {name}: nothing is scored to keep ({key}: {reason})")
    storage.read_text(summary, "run 'python -m experiments.tables' first")
    with storage.folder(paths.REFERENCE / name) as folder:
        for key, scores in found.scores.items():
            seeds = [
                {field: value for field, value in seed.items() if field not in ("image_iou", "confusion")}
                for seed in scores["seeds"]
            ]
            storage.write_json(folder / "evaluate" / f"{key}.json", scores | {"seeds": seeds})
        for key, seed in _compared(params, found):
            source = found.counts_path(key, seed)
            _narrow(found.evaluation(key, seed), _widths(params)).save(
                folder / "evaluate" / source.relative_to(found.folder)
            )
        shutil.copyfile(summary, folder / "summary.csv")
        columns = ("experiment", "parameters", "macs", "height", "width", "num_classes")
        counted = [{column: row[column] for column in columns} for row in found.costs.values()]
        storage.write_rows(folder / "complexity.csv", counted or [dict.fromkeys(columns)])
        if found.timings:
            storage.write_rows(folder / "speed.csv", found.timings)
        storage.write_json(folder / "about.json", _about(name, params, found))
    # From what was kept, and not from what it was kept of: the same will come out for whoever asks again.
    reference = load(name, params)
    verdicts.write(reference.folder / "claims.csv", verdicts.judge(params.claims, reference.found, params))
    write_readme(params)
    return reference


def _about(name: str, params: Params, found: Measurements) -> dict[str, Any]:
    """Where the numbers come from."""
    trainings = Trainings(params.paths.trainings)
    abouts = {}
    for key, scores in found.scores.items():
        for seed in scores["seeds"]:
            folder = trainings.find(seed["training"])
            if folder is None:
                raise StageError(
                    f"--keep {name}: the training of {key} seed {seed['seed']}, which says where its numbers "
                    f"come from, is not in {params.paths.trainings}; run 'python -m experiments.train {key}'"
                )
            abouts[seed["training"]] = folder.read_about()
    first = next(iter(found.scores.values()))
    seconds = sum(measurements.seconds_of(about) for about in abouts.values())
    return {
        "schema": SCHEMA,
        "profile": params.profile,
        "description": params.active.description,
        "dataset": ", ".join(_distinct(scores["dataset"] for scores in found.scores.values())),
        "split": ", ".join(_distinct(scores["split"] for scores in found.scores.values())),
        "device": _distinct(about["device"] for about in abouts.values()),
        "commits": _distinct(about["commit"] for about in abouts.values()),
        "uncommitted_changes": any(about["uncommitted_changes"] for about in abouts.values()),
        "seeds": [seed["seed"] for seed in first["seeds"]],
        "threads": params.active.training.threads,
        "trainings": len(abouts),
        "training_hours": round(seconds / 3600, 3),
        "date": max(about["time"] for about in abouts.values())[:10],
        "command": " ".join(["python -m experiments.claims", *sys.argv[1:]]),
        "experiments": {
            key: {
                "settings": _settings(params, key),
                "training_seconds": round(found.seconds[key], 1),
                "exception": found.exceptions.get(key, ""),
            }
            for key in found.scores
        },
    }


def _settings(params: Params, key: str) -> dict[str, Any]:
    """What makes an experiment the same in a reference and now, at the paper's own scale."""
    experiment = params.experiments[key]
    settings: dict[str, Any] = experiment.model_dump(
        mode="json", include={"model", "options", "dataset", "recipe"}
    )
    return settings


def _distinct(values: Iterable[Any]) -> list[Any]:
    return sorted({str(value) for value in values})


def _compared(params: Params, found: Measurements) -> list[tuple[str, int]]:
    """Experiments with counts of their own that claims about scores compare, and their seeds."""
    keys = {
        found.scores[side.experiment]["same_scores_as"] or side.experiment
        for claim in params.claims.values()
        if claim.what.is_score
        for side in claim.sides().values()
        if side.experiment in found.scores
    }
    return [(key, seed["seed"]) for key in found.scores if key in keys for seed in found.scores[key]["seeds"]]


def _widths(params: Params) -> set[int]:
    """Widths of the bands that claims are about: the other bands' counts are not kept."""
    metrics = [claim.what for claim in params.claims.values()]
    return {int(metric.of) for metric in metrics if metric.kind == "boundary_iou"}


def _narrow(evaluation: Evaluation, widths: set[int]) -> Evaluation:
    """The counts of the whole image and of some of the bands."""

    def narrowed(counts: Counts) -> Counts:
        kept = [0, *(i for i, width in enumerate(counts.widths, 1) if width in widths)]
        return Counts(
            counts.images,
            [counts.widths[i - 1] for i in kept[1:]],
            *(
                np.ascontiguousarray(a[:, kept])
                for a in (counts.intersections, counts.unions, counts.labelled)
            ),
        )

    bilinear = None if evaluation.bilinear is None else narrowed(evaluation.bilinear)
    return replace(evaluation, counts=narrowed(evaluation.counts), bilinear=bilinear)


def _rows(path: Path, name: str, columns: Iterable[str]) -> list[dict[str, str]]:
    """The rows of a table of a reference.

    Raises:
        StorageError: the file is missing.
        StageError: it lacks a column.
    """
    remedy = _REMEDY.format(name=name)
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
