"""Scores what is trained and not scored yet on the validation images, for each seed.

Writes ``results/<profile>/evaluate/<experiment>.json`` and the counts by image that it is summed from, in
``<experiment>/seed-<n>.npz`` beside it; and, for the report's gallery, what the first seed makes of a few
images, in ``results/<profile>/predictions/<experiment>/``: the prediction as a label file, and the model's
maps (attention, offsets, priors) in half precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.config.params import load_params
from experiments.running import command, jobs, storage
from experiments.running.jobs import Job, Outcome
from experiments.running.server import COMPUTING
from experiments.samples.identity import Identities, Identity
from experiments.scoring.counts import digest_of
from experiments.scoring.scores import write_scores
from experiments.training.folder import Trainings


def main() -> None:
    parser = command.parser("evaluate", __doc__)
    command.add_selection(parser)
    command.add_spreading(parser, seeds=True)
    arguments = parser.parse_args()
    params = load_params()
    keys = command.choose(arguments.experiments, params.experiments, params.run)
    seeds = arguments.seeds or params.seeds
    identities = Identities(params.runs(), sorted({*seeds, *params.seeds}))
    trainings = Trainings(params.paths.trainings)
    work: dict[str, Job] = {}
    untrained: dict[str, str] = {}
    for seed in seeds:
        for key in keys:
            identity = identities.scoring_owner(identities.of(key, seed))
            training = trainings.find(identity.training)
            if training is None:
                untrained[f"{key} seed {seed}"] = (
                    f"is not trained; run 'python -m experiments.train {key}' first"
                )
            elif identity.scoring not in work:
                gallery = seed == params.seeds[0] and params.active.evaluation.gallery > 0
                work[identity.scoring] = _job(identity, identities, training.weights, gallery)
    chosen = arguments.shard.take(list(work.values()))
    outcome = Outcome()
    if not all(job.is_done() for job in chosen):
        for dataset in sorted({run.dataset for run in params.runs(keys)}):
            identities.data[dataset].check_unchanged()
        pool = command.pool(arguments, params.active.training.threads, COMPUTING)
        outcome = jobs.do_jobs("evaluate", chosen, pool, params.paths.locks)
    written = _write_scores(keys, params.seeds, identities)
    print(f"evaluate: {jobs.count(len(written), 'experiment')} with all seeds scored")
    outcome.failed.update(untrained)
    jobs.finish("evaluate", outcome)


def _job(identity: Identity, identities: Identities, weights: Path, gallery: bool) -> Job:
    """The job of one evaluation, which the first of the experiments that share it does."""
    run, seed, digest = identity.run, identity.seed, identity.scoring
    pictures = run.paths.predictions(run.key) if gallery else None

    def is_done() -> bool:
        if pictures is not None and not pictures.is_dir():
            return False
        return digest_of(run.paths.counts(run.key, seed)) == digest

    return Job(
        name=f"{run.key} seed {seed}",
        digest=digest,
        work="experiments.scoring.evaluation:evaluate",
        arguments={
            "run": run,
            "data": identities.data[run.dataset],
            "seed": seed,
            "weights": weights,
            "digest": digest,
            "gallery": pictures,
        },
        is_done=is_done,
    )


def _write_scores(keys: Sequence[str], seeds: Sequence[int], identities: Identities) -> list[str]:
    """Writes the scores of the experiments whose seeds are all counted; which these are."""
    complete = []
    for key in keys:
        run = identities.of(key, seeds[0]).run
        wanted = [identities.of(key, seed) for seed in seeds]
        path = run.paths.scores(key)
        shared = [identities.same_training_as(key, seeds[0]), identities.same_scores_as(key, seeds[0])]
        if _written(path) == [*shared, *(identity.scoring for identity in wanted)]:
            complete.append(key)
            continue
        owners = [identities.scoring_owner(identity) for identity in wanted]
        if all(digest_of(o.run.paths.counts(o.run.key, o.seed)) == o.scoring for o in owners):
            write_scores(key, seeds, identities, path)
            complete.append(key)
    return complete


def _written(path: Path) -> list[str | None] | None:
    """Of scores on disk: with whom they are shared, and the digest of each seed."""
    try:
        scores = storage.read_json(path, "")
        shared = [scores["same_training_as"], scores["same_scores_as"]]
        return [*shared, *(entry["digest"] for entry in scores["seeds"])]
    except (storage.StorageError, KeyError, TypeError):
        return None


if __name__ == "__main__":
    command.run("evaluate", main)
