"""Trains what is not trained yet: every experiment under the active profile, once for each seed.

Writes, for each, ``results/<profile>/train/<experiment>/seed-<n>/``: ``history.csv`` (loss terms and
learning rate, while it trains), ``weights.safetensors`` and ``run.json`` (provenance). A training that was
stopped or killed goes on from its last checkpoint and ends in the same weights as one that was not.
Experiments whose training is the same function of the same inputs share one.

One training over several GPUs: torchrun --nproc-per-node 4 -m experiments.train KEY

With --dry-run it trains nothing: it prints what a training would be, takes a few timed steps, and writes
``results/<profile>/dry-run/<experiment>/``. Data that are not prepared are replaced by generated pictures.
"""

from __future__ import annotations

import sys
from collections import Counter

from safetensors import SafetensorError, safe_open

from experiments.config.params import Params, load_params
from experiments.config.strict import ConfigError
from experiments.running import command, jobs, locks, storage
from experiments.running.server import COMPUTING
from experiments.samples.identity import Identities
from experiments.training import space
from experiments.training.folder import TrainingFolder, Trainings
from experiments.training.jobs import training_jobs


def main() -> None:
    parser = command.parser("train", __doc__)
    command.add_selection(parser)
    command.add_spreading(parser, seeds=True)
    parser.add_argument(
        "--most-claims-first", action="store_true", help="begin with the experiments that most claims compare"
    )
    parser.add_argument(
        "--tensorboard", metavar="DIR", help="write live curves there, and predictions at checkpoints"
    )
    group = parser.add_argument_group("dry run")
    group.add_argument("--dry-run", action="store_true", help="say what would happen, and time a few steps")
    group.add_argument("--profile", metavar="NAME", help="instead of the profile of params.yaml")
    group.add_argument("--timed-steps", type=command.natural, metavar="N", help="default: 3")
    arguments = parser.parse_args()
    if arguments.dry_run:
        timed = 3 if arguments.timed_steps is None else arguments.timed_steps
        _dry_run(load_params(profile=arguments.profile), arguments.experiments, timed)
        return
    if arguments.profile is not None:
        raise ConfigError(
            "--profile is for --dry-run; set 'profile' in params.yaml to train under another one"
        )
    if arguments.timed_steps is not None:
        raise ConfigError("--timed-steps is for --dry-run; a training has the steps of its recipe")
    params = load_params()
    locks.clear(params.paths.locks)
    _tidy_finished(params)
    keys = command.choose(arguments.experiments, params.experiments, params.run)
    if arguments.most_claims_first:
        keys = _most_claims_first(params, keys)
    seeds = arguments.seeds or params.seeds
    identities = Identities(params.runs(), seeds)
    work = training_jobs(params.paths, identities, keys, seeds, arguments.tensorboard)
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


def _tidy_finished(params: Params) -> None:
    """A training whose weights were cut short, say by a full disk, is none: it is done again.

    Checkpoints of the others go: a process that was killed after the last file of its training left them.
    """
    for about in sorted(params.paths.trainings.glob("*/seed-*/run.json")):
        folder = TrainingFolder(about.parent)
        try:
            with safe_open(folder.weights, "np"):  # checks the head, and that the file is as long as it says
                pass
        except OSError:
            pass  # not there, or not to be read now, which says nothing of what is in it
        except SafetensorError as error:
            problem = storage.reason(error)
            print(f"train: {folder.weights}: {problem}; no longer counts as trained", file=sys.stderr)
            storage.remove(about)
        else:
            for checkpoint in (folder.checkpoint, folder.previous_checkpoint):
                storage.remove(checkpoint)


def _dry_run(params: Params, keys: list[str], timed_steps: int) -> None:
    if not keys:
        raise ConfigError("--dry-run needs the keys of the experiments that it is to rehearse")
    chosen = command.choose(keys, params.experiments, params.run)
    # Only now: importing torch takes seconds, and what is refused above needs none of it.
    from experiments.reporting.dry_run import dry_run

    for run in params.runs(chosen):
        print(dry_run(run, timed_steps), flush=True)


def _most_claims_first(params: Params, keys: list[str]) -> list[str]:
    """The experiments by how many claims compare them; equals stay in their order."""
    compared = Counter(side.experiment for claim in params.claims.values() for side in claim.sides().values())
    return sorted(keys, key=lambda key: -compared[key])


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
