"""The jobs of counting and timing a network, and what has been measured of each experiment."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, TypeVar

from experiments import datasets
from experiments.config.params import Params
from experiments.config.run import Run
from experiments.running import digests, machine, paths, storage
from experiments.running.jobs import Job

T = TypeVar("T")


def counting_job(params: Params, run: Run) -> Job:
    """The job of counting the network of an experiment, at the paper's own scale."""
    settings = {**_network(params, run), "size": list(run.paper_recipe.input_size)}
    code = digests.of_model_code(run.experiment.model, digests.COUNTING_CODE)
    with_check = importlib.util.find_spec("fvcore") is not None
    digest = digests.of_value([settings, code, with_check])
    path = paths.COMPLEXITY_COUNTS / f"{digest[:32]}.json"
    return Job(
        name=run.key,
        digest=digest,
        work="experiments.measuring.counting:count",
        arguments={**settings, "digest": digest, "path": path},
        is_done=path.is_file,
    )


def timing_job(params: Params, run: Run) -> Job:
    """The job of timing the network of an experiment on this machine."""
    settings = params.active.speed
    described = {**_network(params, run), "size": list(settings.size or run.paper_recipe.input_size)}
    code = digests.of_model_code(run.experiment.model, digests.TIMING_CODE)
    digest = digests.of_value([described, settings.model_dump(mode="json"), code, machine.description()])
    path = params.paths.timings / f"{digest[:32]}.json"
    return Job(
        name=run.key,
        digest=digest,
        work="experiments.measuring.timing:time_network",
        arguments={**described, "settings": settings, "digest": digest, "path": path},
        is_done=path.is_file,
    )


def counted_rows(params: Params) -> list[dict[str, Any]]:
    """One row for each experiment whose network is counted as it is now."""
    rows = []
    for run in params.runs():
        job = counting_job(params, run)
        if job.is_done():
            counts = _read(job, "complexity", "counts", dict)
            backbone = run.settled.paper.get("backbone", "")
            rows.append(
                {"experiment": run.key, "model": run.experiment.model, "backbone": backbone, **counts}
            )
    return rows


def timed_rows(params: Params) -> list[dict[str, Any]]:
    """The rows of each experiment whose network is timed as it is now, with these settings and here."""
    rows = []
    for run in params.runs():
        job = timing_job(params, run)
        if job.is_done():
            rows += [
                {"experiment": run.key, **row, "profile": params.profile}
                for row in _read(job, "speed", "rows", list)
            ]
    return rows


def _read(job: Job, stage: str, key: str, kind: type[T]) -> T:
    """A value of the file that a job wrote.

    Raises:
        StorageError: the file is broken.
    """
    path: Path = job.arguments["path"]
    remedy = f"remove it and run 'python -m experiments.{stage}'"
    found = storage.read_json(path, remedy)
    value = found.get(key) if isinstance(found, dict) else None
    rows = value if isinstance(value, list) else [value]
    if not isinstance(value, kind) or not all(isinstance(row, dict) for row in rows):
        raise storage.StorageError(f"{path}: holds no '{key}' of this edition; {remedy}")
    return value


def _network(params: Params, run: Run) -> dict[str, Any]:
    dataset = run.experiment.dataset
    classes = datasets.classes(dataset, params.active.datasets.get(dataset))
    return {"network": run.network(), "num_classes": len(classes)}
