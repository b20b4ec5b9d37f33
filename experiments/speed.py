"""Times inference of every experiment on the device at hand.

Writes ``results/<profile>/speed.csv``. The network is the paper's own (only the input size may be the
profile's), in evaluation mode with random weights, which cost the same as trained ones. Experiments whose
network is the same are timed once, and nothing else of this suite runs beside a timing. With --minutes the
most wanted rows come first: every network as the papers time it, then in the profile's other ways.
"""

from __future__ import annotations

from experiments.config.params import load_params
from experiments.measuring.jobs import timed_rows, timing_jobs
from experiments.running import command, jobs, locks, storage
from experiments.running.server import COMPUTING


def main() -> None:
    parser = command.parser("speed", __doc__)
    command.add_selection(parser)
    command.add_spreading(parser, seeds=False)
    arguments = parser.parse_args()
    params = load_params()
    locks.clear(params.paths.locks)
    keys = command.choose(arguments.experiments, params.experiments, params.run)
    chosen = arguments.shard.take(timing_jobs(params, params.runs(keys)))
    if not all(job.is_done() for job in chosen):
        pool = command.pool(arguments, 0, COMPUTING, alone=True)
        outcome = jobs.do_jobs("speed", chosen, pool, params.paths.locks)
        storage.write_rows(params.paths.speed, timed_rows(params))
        jobs.finish("speed", outcome)
    storage.write_rows(params.paths.speed, timed_rows(params))


if __name__ == "__main__":
    command.run("speed", main)
