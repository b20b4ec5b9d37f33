"""Trains what is not trained yet: every experiment under the active profile, once for each seed.

Writes, for each, ``results/<profile>/train/<experiment>/seed-<n>/``: ``history.csv`` (loss terms and
learning rate, while it trains), ``weights.safetensors`` and ``run.json`` (provenance). A training that was
stopped or killed goes on from its last checkpoint and ends in the same weights as one that was not.
Experiments whose training is the same function of the same inputs share one.

One training over several GPUs: torchrun --nproc-per-node 4 -m experiments.train KEY
"""

from __future__ import annotations

import sys

from experiments.config.params import Params, load_params
from experiments.running import command, jobs
from experiments.running.server import COMPUTING
from experiments.samples.identity import Identities
from experiments.training import space
from experiments.training.folder import Trainings
from experiments.training.jobs import training_jobs


def main() -> None:
    parser = command.parser("train", __doc__)
    command.add_selection(parser)
    command.add_spreading(parser, seeds=True)
    arguments = parser.parse_args()
    params = load_params()
    keys = command.choose(arguments.experiments, params.experiments, params.run)
    seeds = arguments.seeds or params.seeds
    identities = Identities(params.runs(), seeds)
    work = training_jobs(params.paths, identities, keys, seeds)
    chosen = arguments.shard.take(work)
    if all(job.is_done() for job in chosen) and not command.is_group():
        print(f"train: nothing to do, {jobs.count(len(chosen), 'training')} there")
    else:
        _say_what_holds(params, keys, seeds, len(work))
        for dataset in sorted({run.dataset for run in params.runs(keys)}):
            identities.data[dataset].check_unchanged()
        pool = command.pool(arguments, params.active.training.threads, COMPUTING)
        if pool.rank == 0:
            outstanding = [job for job in chosen if not job.is_done()]
            said = space.warning(outstanding, max(1, pool.workers), params.paths.trainings)
            if said:
                print(f"train: {said}", file=sys.stderr)
        jobs.finish("train", jobs.do_jobs("train", chosen, pool, params.paths.locks))
    earlier = Trainings(params.paths.trainings).earlier()
    if earlier:
        found = jobs.count(len(earlier), "training")
        print(f"train: {found} of earlier settings kept; 'make prune' removes them")


def _say_what_holds(params: Params, keys: list[str], seeds: list[int], different: int) -> None:
    """What a reader of params.yaml might not expect: shared trainings, and settings that do not count."""
    trainings, profile = len(keys) * len(seeds), params.active
    if different < trainings:
        print(f"train: {jobs.count(trainings, 'training')}, {different} of them different")
    replaced = sorted(profile.recipe.model_fields_set)
    if replaced:
        print(f"train: profile '{params.profile}' replaces in every recipe: {', '.join(replaced)}")
    for run in params.runs(keys):
        for option in run.settled.without_effect:
            print(f"train: experiments.{run.key}.options.{option} has no effect beside the other options")
    sys.stdout.flush()


if __name__ == "__main__":
    command.run("train", main)
