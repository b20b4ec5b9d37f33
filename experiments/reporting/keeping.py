"""Keeping a reference: what this run measured, and what of it an earlier run of the same settings did."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments.config.params import Params
from experiments.reporting import verdicts
from experiments.reporting.measurements import Measurements
from experiments.reporting.references import SCHEMA, Reference, load, rows, settings_of, write_readme
from experiments.running import paths, storage
from experiments.running.errors import StageError
from experiments.samples.identity import identities_or_reason
from experiments.scoring.counts import Counts, Evaluation
from experiments.scoring.scores import read_scores
from experiments.training.folder import Trainings

COST_COLUMNS = ("experiment", "parameters", "macs", "height", "width", "num_classes")
"""Of ``complexity.csv``, those that a reference has."""


@dataclass(frozen=True)
class Kept:
    """What became of the experiments of a reference that was kept."""

    reference: Reference
    new: list[str]
    """Experiments that this run measured."""
    staying: list[str]
    """Experiments that were in it, are of the present settings, and were not measured by this run."""
    leaving: list[str]
    """Experiments that were in it, and are of other settings, data or code than there are now or share their
    scores with one that this run measured."""


def keep(name: str, params: Params, found: Measurements, summary: Path) -> Kept:
    """Makes a reference of what this run measured, and of what it holds already of the same settings.

    So a reference can grow over several runs, on several machines, and never mixes settings: an experiment
    stays if its scores have the digests that the present settings, data and code would give them.

    Args:
        name: of the reference.
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
    tables = "run 'python -m experiments.tables' first"
    storage.read_text(summary, tables)
    before = _before(name, params)
    staying = [] if before is None else _staying(before, params, found)
    about = _about(name, params, found, before if staying else None, staying)
    summaries = rows(summary, ("experiment",), tables)
    with storage.folder(paths.REFERENCE / name) as folder:
        _write_scores(folder / "evaluate", params, found)
        costs = [{column: row[column] for column in COST_COLUMNS} for row in found.costs.values()]
        timings = [dict(row) for row in found.timings]
        if before is not None and staying:
            _copy_scores(folder / "evaluate", before, staying)
            earlier = rows(before.folder / "summary.csv", ("experiment",), before.found.remedy)
            summaries = _replaced(summaries, earlier, staying)
            costs = _joined(
                costs, rows(before.folder / "complexity.csv", COST_COLUMNS, before.found.remedy), staying
            )
            timings = _joined(timings, before.found.timings, staying)
        storage.write_rows(folder / "summary.csv", summaries)
        storage.write_rows(folder / "complexity.csv", costs or [dict.fromkeys(COST_COLUMNS)])
        if timings:
            storage.write_rows(folder / "speed.csv", timings)
        storage.write_json(folder / "about.json", about)
    # From what was kept, and not from what it was kept of: the same will come out for whoever asks again.
    reference = load(name, params)
    verdicts.write(reference.folder / "claims.csv", verdicts.judge(params.claims, reference.found, params))
    write_readme(params)
    were = [] if before is None else list(before.about["experiments"])
    leaving = [key for key in were if key not in staying and key not in found.scores]
    return Kept(reference, list(found.scores), staying, leaving)


def _write_scores(folder: Path, params: Params, found: Measurements) -> None:
    """What this run scored, without what only its own report shows, and the counts that claims need."""
    for key, scores in found.scores.items():
        seeds = [
            {field: value for field, value in seed.items() if field not in ("image_iou", "confusion")}
            for seed in scores["seeds"]
        ]
        storage.write_json(folder / f"{key}.json", scores | {"seeds": seeds})
    # By owner, as an experiment may be scored whose owner is not: the counts are there all the same.
    compared = _compared(params, found)
    owners = {found.owner(key): key for key in found.scores}
    for key in (key for owner, key in owners.items() if owner in compared):
        for seed in (seed["seed"] for seed in found.scores[key]["seeds"]):
            narrowed = _narrow(found.evaluation(key, seed), _widths(params))
            narrowed.save(folder / found.counts_path(key, seed).relative_to(found.folder))


def _copy_scores(folder: Path, before: Reference, staying: Sequence[str]) -> None:
    """The same of what stays of an earlier run."""
    for key in staying:
        shutil.copyfile(before.found.scores_path(key), folder / f"{key}.json")
    for owner in dict.fromkeys(before.found.owner(key) for key in staying):
        if (before.found.folder / owner).is_dir():
            shutil.copytree(before.found.folder / owner, folder / owner)


def _replaced(
    rows: Sequence[dict[str, str]], earlier: Sequence[dict[str, str]], staying: Sequence[str]
) -> list[dict[str, str]]:
    """A run's table of all experiments, with the earlier rows of those that stay."""
    kept = {row["experiment"]: row for row in earlier if row["experiment"] in staying}
    return [{name: kept.get(row["experiment"], row).get(name, "") for name in row} for row in rows]


def _joined(
    rows: Sequence[Mapping[str, Any]], earlier: Sequence[Mapping[str, Any]], staying: Sequence[str]
) -> list[dict[str, Any]]:
    """A run's table of what it measured, and the earlier rows of those that stay and are not in it."""
    there = {row["experiment"] for row in rows}
    missing = [row for row in earlier if row["experiment"] in staying and row["experiment"] not in there]
    return [dict(row) for row in (*rows, *missing)]


def _before(name: str, params: Params) -> Reference | None:
    """The reference that is there already; ``None`` if there is none, or it is broken and can only go."""
    try:
        return load(name, params)
    except (StageError, storage.StorageError):
        return None


def _staying(before: Reference, params: Params, found: Measurements) -> list[str]:
    """Experiments of a reference that are of the present settings and that this run did not measure.

    One that claims compare has to have its counts of all seeds, or no verdict could be computed again.
    """
    identities, _ = identities_or_reason(params.runs(), params.seeds)
    compared = _compared(params, before.found)
    measured = {found.owner(key) for key in found.scores}
    staying = []
    for key, scores in before.found.scores.items():
        owner = before.found.owner(key)
        # They would no longer be the scores of these counts, which are measured anew.
        if owner in measured:
            continue
        valid = read_scores(key, params.seeds, identities, before.found.scores_path(key))
        if isinstance(valid, str):
            continue
        counts = [before.found.counts_path(key, seed["seed"]) for seed in scores["seeds"]]
        if owner not in compared or all(path.is_file() for path in counts):
            staying.append(key)
    return staying


def _about(
    name: str, params: Params, found: Measurements, before: Reference | None, staying: Sequence[str]
) -> dict[str, Any]:
    """Where the numbers come from: those of this run, and of what stays of an earlier one."""
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
    experiments: dict[str, dict[str, Any]] = {
        key: {
            "settings": settings_of(params, key),
            "training_seconds": round(found.seconds[key], 1),
            "exception": found.exceptions.get(key, ""),
        }
        for key in found.scores
    }
    scored = dict(found.scores)
    earlier: dict[str, Any] = {} if before is None else before.about
    for key in staying:
        experiments[key] = earlier["experiments"][key]
        assert before is not None
        scored[key] = before.found.scores[key]
    order = [key for key in params.experiments if key in experiments]
    seconds = {
        seed["training"]: experiments[key]["training_seconds"]
        for key in order
        for seed in scored[key]["seeds"]
    }
    dates = [about["time"][:10] for about in abouts.values()]
    return {
        "schema": SCHEMA,
        "profile": params.profile,
        "description": params.active.description,
        "dataset": ", ".join(_distinct(scores["dataset"] for scores in scored.values())),
        "split": ", ".join(_distinct(scores["split"] for scores in scored.values())),
        "device": _distinct([*(about["device"] for about in abouts.values()), *earlier.get("device", [])]),
        "commits": _distinct([*(about["commit"] for about in abouts.values()), *earlier.get("commits", [])]),
        "uncommitted_changes": bool(earlier.get("uncommitted_changes"))
        or any(about["uncommitted_changes"] for about in abouts.values()),
        "seeds": [seed["seed"] for seed in scored[order[0]]["seeds"]],
        "threads": params.active.training.threads,
        "trainings": len(seconds),
        "training_hours": round(sum(seconds.values()) / 3600, 3),
        "date": max([*dates, earlier.get("date", "")]),
        "command": " ".join(["python -m experiments.claims", *sys.argv[1:]]),
        "experiments": {key: experiments[key] for key in order},
    }


def _distinct(values: Iterable[Any]) -> list[Any]:
    return sorted({str(value) for value in values})


def _compared(params: Params, found: Measurements) -> set[str]:
    """Experiments that claims about scores compare, each named by the one whose counts it has."""
    return {
        found.owner(side.experiment)
        for claim in params.claims.values()
        if claim.what.is_score
        for side in claim.sides().values()
        if side.experiment in found.scores
    }


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
