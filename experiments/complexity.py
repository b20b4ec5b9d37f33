"""Counts parameters and multiply-accumulates of every experiment at the paper's own scale.

Writes ``results/complexity.csv``. The counts do not depend on the profile: the backbone is the
paper's, the input is the recipe's ``input_size``, the classes are those of the paper's data set. Experiments
whose network is the same are counted once.
"""

from __future__ import annotations

import importlib.util
from typing import Any

from experiments import datasets
from experiments.config.params import Params, load_params
from experiments.config.run import Run
from experiments.running import command, digests, jobs, paths, storage
from experiments.running.jobs import Job, Pool
from experiments.running.server import COMPUTING


def main() -> None:
    parser = command.parser("complexity", __doc__)
    command.add_selection(parser)
    command.add_spreading(parser, seeds=False)
    arguments = parser.parse_args()
    params = load_params()
    keys = command.choose(arguments.experiments, params.experiments, params.run)
    work: dict[str, Job] = {}
    owners: dict[str, str] = {}
    for key in params.experiments:  # in the order of all of them, whichever are asked for
        job = _job(params, params.run(key))
        work.setdefault(job.digest, job)
        owners[key] = job.digest
    chosen = arguments.shard.take([work[digest] for digest in dict.fromkeys(owners[key] for key in keys)])
    pool: Pool | None = None
    if not all(job.is_done() for job in chosen):
        pool = command.pool(arguments, 1, COMPUTING)
        jobs.finish("complexity", jobs.do_jobs("complexity", chosen, pool, params.paths.locks))
    write_table(params, {key: work[digest] for key, digest in owners.items()})


def write_table(params: Params, counted: dict[str, Job]) -> None:
    """Writes one row per experiment that is counted."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for key, job in counted.items():
        if job.is_done():
            counts = storage.read_json(job.arguments["path"], "count it again")["counts"]
            experiment = params.experiments[key]
            backbone = params.run(key).settled.paper.get("backbone", "")
            rows.append({"experiment": key, "model": experiment.model, "backbone": backbone, **counts})
    storage.write_csv(paths.COMPLEXITY, pd.DataFrame(rows))


def _job(params: Params, run: Run) -> Job:
    """The job of counting an experiment's network."""
    dataset = run.experiment.dataset
    num_classes = len(datasets.classes(dataset, params.active.datasets.get(dataset)))
    settings = {
        "network": run.network(),
        "num_classes": num_classes,
        "size": list(run.paper_recipe.input_size),
    }
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


if __name__ == "__main__":
    command.run("complexity", main)
