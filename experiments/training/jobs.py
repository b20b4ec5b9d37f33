"""The trainings that experiments and seeds ask for, as jobs of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.running.jobs import Job
from experiments.running.paths import ProfilePaths
from experiments.samples.identity import Identities, Identity
from experiments.training.folder import EARLIER, TrainingFolder, Trainings


def training_jobs(
    paths: ProfilePaths,
    identities: Identities,
    keys: Sequence[str],
    seeds: Sequence[int],
    tensorboard: str | None = None,
) -> list[Job]:
    """One job for each different training, in the order of seeds, then experiments.

    Args:
        paths: of the profile in force.
        identities: of its experiments for these seeds at least.
        keys: of the experiments.
        seeds: of each.
        tensorboard: folder for live curves; ``None`` draws none.
    """
    trainings = Trainings(paths.trainings)
    work: dict[str, Job] = {}
    for seed in seeds:
        for key in keys:
            identity = identities.training_owner(identities.of(key, seed))
            if identity.training not in work:
                work[identity.training] = _job(identity, identities, trainings, tensorboard)
    return list(work.values())


def folder_of(arguments: dict[str, Any]) -> TrainingFolder:
    """Where the job of these arguments writes."""
    run = arguments["run"]
    return TrainingFolder(run.paths.training(run.key, arguments["seed"]))


def _job(identity: Identity, identities: Identities, trainings: Trainings, tensorboard: str | None) -> Job:
    """The job of one training, which the first of the experiments that share it does."""
    run, seed, digest = identity.run, identity.seed, identity.training
    arguments = {"run": run, "data": identities.data[run.dataset], "seed": seed, "digest": digest}
    folder = folder_of(arguments)

    def is_done() -> bool:
        if folder.digest() == digest:
            return True
        found = trainings.find(digest)
        if found is None or found.digest() != digest:
            return False
        if found.path.parent == folder.path.parent / EARLIER:
            folder.bring_back(found)
        return True  # also where another experiment, or an earlier order of them, has it

    place = "experiments.training.loop:train"
    if tensorboard is not None:
        place, arguments["tensorboard"] = "experiments.reporting.curves:train", tensorboard
    return Job(f"{run.key} seed {seed}", digest, place, arguments, is_done)


def share_done(job: Job) -> float:
    """The share of a training that its files tell of: 1 once it is done, less as long as it is not."""
    if job.is_done():
        return 1.0
    try:
        last = folder_of(job.arguments).history.read_text(encoding="utf-8").splitlines()[-1]
        step = int(last.split(",")[0])
    except (OSError, UnicodeDecodeError, IndexError, ValueError):
        return 0.0  # not begun, or no row written yet
    steps = int(job.arguments["run"].recipe.steps)
    return min(step, steps) / (steps + 1)  # after the last step the weights are still to be written
