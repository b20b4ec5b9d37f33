"""The jobs of counting and timing a network, and what has been measured of each experiment."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from experiments import datasets
from experiments.config.entries import SpeedSettings
from experiments.config.params import Params
from experiments.config.run import Run
from experiments.measuring.latency import TIMING_COLUMNS, describe, rounded
from experiments.running import digests, machine, paths, storage
from experiments.running.jobs import Job

LAUNCH_BOUND = 0.8
"""Of a pass's time, how much the host needs to issue it where the device waits for the host."""


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


def timing_jobs(params: Params, runs: Iterable[Run]) -> list[Job]:
    """The jobs of timing the networks of some experiments on this machine, the most wanted first.

    The ceilings of the device come first. Then every network is timed in the first kind, round by round, then
    in the second: when time runs out there is a whole table of fewer kinds. A network that two experiments
    share is timed once.
    """
    chosen = list(runs)
    jobs = [ceilings_job(params)]
    for kind in kinds(params.active.speed):
        for turn in range(params.active.speed.rounds):
            jobs += [timing_job(params, run, kind, turn) for run in chosen]
    return list({job.digest: job for job in reversed(jobs)}.values())[::-1]


def kinds(settings: SpeedSettings) -> list[dict[str, Any]]:
    """All ways in which a network is timed: as the papers do first, as a user meets it after that."""
    return [
        {"precision": precision, "mode": mode, "batch": batch, "end_to_end": end_to_end}
        for end_to_end in (False, True)[: 1 + settings.end_to_end]
        for batch in settings.batch_sizes
        for mode in settings.modes
        for precision in settings.precisions
    ]


def timing_job(params: Params, run: Run, kind: dict[str, Any], turn: int) -> Job:
    """The job of timing the network of an experiment in one way, in one of the rounds."""
    settings = params.active.speed
    described = {**_network(params, run), "size": list(settings.size or run.paper_recipe.input_size)}
    code = digests.of_model_code(run.experiment.model, digests.TIMING_CODE)
    often = [settings.warmup, settings.repetitions]
    digest = digests.of_value([described, kind, turn, often, code, machine.description()])
    path = params.paths.timings / f"{digest[:32]}.json"
    return Job(
        name=f"{run.key} ({kind['precision']}, {kind['mode']}, batch {kind['batch']})",
        digest=digest,
        work="experiments.measuring.timing:time_network",
        arguments={**described, "kind": kind, "settings": settings, "digest": digest, "path": path},
        is_done=path.is_file,
    )


def ceilings_job(params: Params) -> Job:
    """The job of measuring what the device does at most."""
    settings = params.active.speed
    code = digests.of_code(folders=digests.TIMING_CODE)
    digest = digests.of_value(
        ["ceilings", settings.precisions, settings.repetitions, code, machine.description()]
    )
    path = params.paths.timings / f"ceilings-{digest[:32]}.json"
    return Job(
        name="what the device does at most",
        digest=digest,
        work="experiments.measuring.timing:measure_ceilings",
        arguments={
            "precisions": [p for p in settings.precisions if p != "tf32" or machine.may_have_gpu()],
            "settings": settings,
            "digest": digest,
            "path": path,
        },
        is_done=path.is_file,
    )


def counted_rows(params: Params) -> list[dict[str, Any]]:
    """One row for each experiment whose network is counted as it is now."""
    rows = []
    for run in params.runs():
        job = counting_job(params, run)
        if job.is_done():
            counts = _read(job, "complexity", "counts")["counts"]
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
    counted = _read(job, "complexity", "modules", "by_size")
    return {"modules": counted["modules"], "by_size": counted["by_size"]}


def timed_rows(params: Params) -> list[dict[str, Any]]:
    """A row for each experiment and way in which its network is timed as it is now, and here."""
    settings = params.active.speed
    top = ceilings(params)
    rows = []
    for run in params.runs():
        for kind in kinds(settings):
            jobs = [timing_job(params, run, kind, turn) for turn in range(settings.rounds)]
            rounds = [_read(job, "speed", "row", "seconds") for job in jobs if job.is_done()]
            if rounds:
                rows.append({"experiment": run.key, **_timed_row(rounds, top), "profile": params.profile})
    return rows


def ceilings(params: Params) -> dict[str, Any]:
    """What the device does at most: ``macs_a_second`` by precision, and ``bytes_a_second`` if it is known."""
    job = ceilings_job(params)
    return _read(job, "speed", "macs_a_second") if job.is_done() else {"macs_a_second": {}}


def _timed_row(rounds: Sequence[dict[str, Any]], top: dict[str, Any]) -> dict[str, Any]:
    """One row from the rounds of one kind: all their timings together."""
    row = dict(rounds[-1]["row"])
    seconds = [value for found in rounds for value in found["seconds"]]
    said = describe(seconds, row["batch"]) if seconds else dict.fromkeys(TIMING_COLUMNS)
    place = ["device", "precision", "mode", "batch", "height", "width"]
    issue = min((found["issue_ms"] for found in rounds if found.get("issue_ms")), default=None)
    most = top["macs_a_second"].get(row["precision"])
    a_second = row["batch"] / statistics.median(seconds) if seconds else 0.0
    return {
        **{name: row[name] for name in place},
        **{name: said[name] for name in ("latency_ms_median", "latency_ms_p95", "fps")},
        "peak_memory_mb": max((f["peak_memory_mb"] for f in rounds if f.get("peak_memory_mb")), default=None),
        "latency_ms_low": said["latency_ms_low"],
        "latency_ms_high": said["latency_ms_high"],
        "end_to_end": row["end_to_end"],
        "repetitions": len(seconds),
        "macs": row["macs"],
        "traffic_mb": row["traffic_mb"],
        "compute_share": rounded(row["macs"] * a_second / most, 3) if most and a_second else None,
        "bandwidth_share": (
            rounded(row["traffic_mb"] * 2**20 * a_second / top["bytes_a_second"], 3)
            if most and a_second
            else None
        ),
        "launch_bound": None
        if issue is None
        else issue > LAUNCH_BOUND * (said["latency_ms_median"] or issue),
        "note": rounds[-1]["note"],
        **{name: row[name] for name in ("circumstances", "time", "commit", "torch")},
    }


def _read(job: Job, stage: str, *keys: str) -> dict[str, Any]:
    """What a job wrote.

    Raises:
        StorageError: the file is broken, or lacks one of the keys.
    """
    path: Path = job.arguments["path"]
    remedy = f"remove it and run 'python -m experiments.{stage}'"
    found = storage.read_json(path, remedy)
    missing = [key for key in keys if not isinstance(found, dict) or key not in found]
    if missing:
        raise storage.StorageError(f"{path}: holds no '{missing[0]}' of this edition; {remedy}")
    known: dict[str, Any] = found
    return known


def _network(params: Params, run: Run) -> dict[str, Any]:
    dataset = run.experiment.dataset
    classes = datasets.classes(dataset, params.active.datasets.get(dataset))
    return {"network": run.network(), "num_classes": len(classes)}
