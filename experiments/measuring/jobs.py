"""The jobs of counting and timing a network, and what has been measured of each experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import datasets
from experiments.config.params import Params
from experiments.config.run import Run
from experiments.running import digests, machine, paths, storage
from experiments.running.jobs import Job


def counting_job(params: Params, run: Run) -> Job:
    """The job of counting the network of an experiment, at the paper's own scale."""
    settings = {**_network(params, run), "size": list(run.paper_recipe.input_size)}
    code = digests.of_model_code(run.experiment.model, digests.COUNTING_CODE)
    digest = digests.of_value([settings, code])
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
            counts = _read(job, "complexity")["counts"]
            backbone = run.settled.paper.get("backbone", "")
            rows.append(
                {"experiment": run.key, "model": run.experiment.model, "backbone": backbone, **counts}
            )
    return rows


def count_details(params: Params, key: str) -> dict[str, dict[str, int]] | None:
    """Multiply-accumulates of an experiment's network, or ``None`` if it is not counted as it is now.

    By module in ``modules``, where the whole is ``""``, and by input size in ``by_size``: ``512x1024``.
    """
    job = counting_job(params, params.run(key))
    if not job.is_done():
        return None
    counted = _read(job, "complexity")
    return {"modules": counted["modules"], "by_size": counted["by_size"]}


def timed_rows(params: Params) -> list[dict[str, Any]]:
    """The rows of each experiment whose network is timed as it is now, with these settings and here."""
    rows = []
    for run in params.runs():
        job = timing_job(params, run)
        if job.is_done():
            rows += [
                {"experiment": run.key, **row, "profile": params.profile}
                for row in _read(job, "speed")["rows"]
            ]
    return rows


def _read(job: Job, stage: str) -> dict[str, Any]:
    path: Path = job.arguments["path"]
    found: dict[str, Any] = storage.read_json(path, f"remove it and run 'python -m experiments.{stage}'")
    return found


def _network(params: Params, run: Run) -> dict[str, Any]:
    dataset = run.experiment.dataset
    classes = datasets.classes(dataset, params.active.datasets.get(dataset))
    return {"network": run.network(), "num_classes": len(classes)}
