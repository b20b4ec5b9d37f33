"""Times inference of every experiment on the device at hand.

Writes ``results/<profile>/speed.csv``. The network is the paper's own (only the input size may be the
profile's), in evaluation mode with random weights, which cost the same as trained ones. Experiments whose
network is the same are timed once, and nothing else of this suite runs beside a timing.
"""

from __future__ import annotations

from typing import Any

from experiments import datasets
from experiments.config.params import Params, load_params
from experiments.config.run import Run
from experiments.running import command, digests, jobs, machine, storage
from experiments.running.jobs import Job
from experiments.running.server import COMPUTING


def main() -> None:
    parser = command.parser("speed", __doc__)
    command.add_selection(parser)
    command.add_spreading(parser, seeds=False)
    arguments = parser.parse_args()
    params = load_params()
    keys = command.choose(arguments.experiments, params.experiments, params.run)
    work: dict[str, Job] = {}
    owners: dict[str, str] = {}
    for key in params.experiments:
        job = _job(params, params.run(key))
        work.setdefault(job.digest, job)
        owners[key] = job.digest
    chosen = arguments.shard.take([work[digest] for digest in dict.fromkeys(owners[key] for key in keys)])
    if not all(job.is_done() for job in chosen):
        pool = command.pool(arguments, 0, COMPUTING, alone=True)
        jobs.finish("speed", jobs.do_jobs("speed", chosen, pool, params.paths.locks))
    write_table(params, {key: work[digest] for key, digest in owners.items()})


def write_table(params: Params, timed: dict[str, Job]) -> None:
    """Writes the rows of every experiment that is timed."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for key, job in timed.items():
        if job.is_done():
            for row in storage.read_json(job.arguments["path"], "time it again")["rows"]:
                rows.append({"experiment": key, **row, "profile": params.profile})
    storage.write_csv(params.paths.speed, pd.DataFrame(rows))


def _job(params: Params, run: Run) -> Job:
    """The job of timing an experiment's network."""
    dataset, settings = run.experiment.dataset, params.active.speed
    described = {
        "network": run.network(),
        "num_classes": len(datasets.classes(dataset, params.active.datasets.get(dataset))),
        "size": list(settings.size or run.paper_recipe.input_size),
    }
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


if __name__ == "__main__":
    command.run("speed", main)
