"""Hands the outstanding trainings to a cluster's queue, as an array of shards, and shows how far they are.

A job that is preempted, or reaches the end of its time, writes its checkpoints and is queued again. Progress
is read from the trainings' own files: --watch shows it, from anywhere, and hands in nothing. Afterwards
'dvc repro' finds the trainings done.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence

from experiments.config.params import Params, load_params
from experiments.running import cluster, command, jobs, machine, paths, stopping, workers
from experiments.running.command import Shard
from experiments.running.errors import StageError
from experiments.running.jobs import Job
from experiments.running.server import COMPUTING
from experiments.samples.identity import Identities
from experiments.training.jobs import share_done, training_jobs

_LOOK_EVERY = 5.0
"""Seconds between two looks at the trainings' files."""


def main() -> None:
    arguments = _parser().parse_intermixed_args()  # keys may follow options
    params = load_params()
    keys = command.choose(arguments.experiments, params.experiments, params.run)
    seeds = arguments.seeds or params.seeds
    identities = Identities(params.runs(), seeds)
    work = training_jobs(params.paths, identities, keys, seeds)
    if all(job.is_done() for job in work):
        print(f"cluster: nothing to do, {jobs.count(len(work), 'training')} there")
        return
    if arguments.watch:
        _follow(work, lambda: False)
        return
    for dataset in sorted({run.dataset for run in params.runs(keys)}):
        identities.data[dataset].check_unchanged()
    given = [*arguments.experiments, "--seeds", *map(str, seeds)]
    resources = _resources(arguments, params)
    shards = _shards(work, arguments.array)
    if arguments.local:
        _check_gpus(resources.gpus * len(shards))
    queue = cluster.Queue(
        [cluster.ShardJob(arguments.stage, tuple(given), shard, resources) for shard in shards],
        paths.CLUSTER / arguments.stage,
        resources,
        local=arguments.local,
        options=dict(arguments.slurm),
    )
    where = "of this machine" if arguments.local else f"of SLURM, {queue.name}"
    print(f"cluster: {jobs.count(len(shards), 'job')} {where}; they print to {queue.folder}", flush=True)
    _follow(work, queue.has_ended)
    _finish(work, queue, stop=arguments.local)


def _parser() -> argparse.ArgumentParser:
    parser = command.parser("cluster", __doc__)
    parser.add_argument("stage", choices=["train"], help="what the jobs do")
    command.add_selection(parser)
    parser.add_argument(
        "--seeds", nargs="+", type=command.natural, metavar="N", help="instead of the seeds of params.yaml"
    )
    parser.add_argument(
        "--array", type=command.count, default=64, metavar="N", help="at most so many jobs (64)"
    )
    parser.add_argument(
        "--hours",
        type=command.hours,
        default=12.0,
        metavar="H",
        help="time of a job until it is queued again (12)",
    )
    parser.add_argument(
        "--nodes",
        type=command.count,
        default=1,
        metavar="N",
        help="machines of one job, which do one training together (1)",
    )
    parser.add_argument(
        "--gpus-per-job", type=command.natural, default=1, metavar="N",
        help="one training over so many, by torchrun; 0 trains on the CPU (1)",
    )  # fmt: skip
    parser.add_argument(
        "--cores-per-job", type=command.count, metavar="N",
        help="on each machine. Default: what the profile's threads and loader_workers need",
    )  # fmt: skip
    parser.add_argument(
        "--slurm", nargs="+", type=command.setting, default=[], metavar="NAME=VALUE",
        help="further options of sbatch, such as partition=gpu account=vision",
    )  # fmt: skip
    parser.add_argument(
        "--local", action="store_true", help="jobs of this machine, all at once, without SLURM"
    )
    parser.add_argument("--watch", action="store_true", help="only show how far the trainings are")
    return parser


def _resources(arguments: argparse.Namespace, params: Params) -> cluster.Resources:
    gpus, nodes = arguments.gpus_per_job, arguments.nodes
    if nodes > 1 and (arguments.local or gpus == 0 or gpus % nodes):
        asked = f"--nodes {nodes} with --gpus-per-job {gpus}{' --local' if arguments.local else ''}"
        raise StageError(f"{asked}; several machines need SLURM, and as many GPUs on each")
    training = params.active.training
    processes = max(1, gpus // nodes)
    cores = arguments.cores_per_job or processes * (max(1, training.threads) + training.loader_workers)
    return cluster.Resources(arguments.hours, nodes, gpus // nodes, cores)


def _shards(work: Sequence[Job], at_most: int) -> list[str]:
    """The shards that have something left, as the option of a stage says them."""
    outstanding = sum(not job.is_done() for job in work)
    parts = [Shard(i, min(at_most, outstanding)) for i in range(1, min(at_most, outstanding) + 1)]
    return [f"{part.number}/{part.of}" for part in parts if not all(job.is_done() for job in part.take(work))]


def _check_gpus(wanted: int) -> None:
    found = 0
    if wanted and machine.may_have_gpu():
        found = workers.ask("experiments.running.devices:count", imports=COMPUTING)
    if wanted > found:
        raise StageError(
            f"the jobs want {jobs.count(wanted, 'GPU')} at once, this machine has {found}; lower --array or "
            "--gpus-per-job (0 trains on the CPU)"
        )


def _follow(work: Sequence[Job], has_ended: Callable[[], bool]) -> None:
    """Says how far the trainings are, whenever that changes, until no more will."""
    said = ""
    while True:
        # Asked first: what ended in between has written its files.
        ended = has_ended() or stopping.requested()
        shares = [share_done(job) for job in work]
        line = (
            f"cluster: {shares.count(1.0)} of {jobs.count(len(shares), 'training')} done, "
            f"{sum(0 < share < 1 for share in shares)} begun, {sum(shares) / len(shares):.0%} of all steps"
        )
        if line != said:
            said = line
            print(line, flush=True)
        if ended or min(shares) == 1:
            return
        until = time.monotonic() + _LOOK_EVERY
        while time.monotonic() < until and not stopping.requested():
            time.sleep(0.1)


def _finish(work: Sequence[Job], queue: cluster.Queue, *, stop: bool) -> None:
    """Exits with what went wrong; returns if all is done.

    Args:
        work: all trainings.
        queue: the jobs that do them.
        stop: whether the jobs end when this command is asked to.
    """
    left = [job.name for job in work if not job.is_done()]
    if not left:
        return
    code = stopping.exit_code()
    if code is not None:
        if stop:
            queue.cancel()
        goes_on = (
            "the same command goes on where they stopped" if stop else "the jobs go on; --watch shows how far"
        )
        print(f"cluster: {jobs.count(len(left), 'training')} left; {goes_on}", file=sys.stderr)
        sys.exit(code)
    for failure in queue.failures():
        print(f"cluster: {failure}", file=sys.stderr)
    shown = ", ".join(left[:5]) + (" ..." if len(left) > 5 else "")
    raise StageError(f"{jobs.count(len(left), 'training')} not done: {shown}")


if __name__ == "__main__":
    command.run("cluster", main)
