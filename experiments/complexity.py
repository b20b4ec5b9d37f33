"""Counts parameters and multiply-accumulates of every experiment at the paper's own scale.

Writes ``results/complexity.csv``. The counts do not depend on the profile: the backbone is the
paper's, the input is the recipe's ``input_size``, the classes are those of the paper's data set. Experiments
whose network is the same are counted once.
"""

from __future__ import annotations

from experiments.config.params import load_params
from experiments.measuring.jobs import counted_rows, counting_job
from experiments.running import command, jobs, locks, paths, storage
from experiments.running.server import COMPUTING


def main() -> None:
    parser = command.parser("complexity", __doc__)
    command.add_selection(parser)
    command.add_spreading(parser, seeds=False)
    arguments = parser.parse_args()
    params = load_params()
    locks.clear(params.paths.locks)
    keys = command.choose(arguments.experiments, params.experiments, params.run)
    work = {job.digest: job for job in reversed([counting_job(params, run) for run in params.runs(keys)])}
    chosen = arguments.shard.take(list(reversed(work.values())))
    if not all(job.is_done() for job in chosen):
        pool = command.pool(arguments, 1, COMPUTING)
        jobs.finish("complexity", jobs.do_jobs("complexity", chosen, pool, params.paths.locks))
    storage.write_rows(paths.COMPLEXITY, counted_rows(params))


if __name__ == "__main__":
    command.run("complexity", main)
