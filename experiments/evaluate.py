"""Scores what is trained and not scored yet on the validation images, for each seed.

Writes ``results/<profile>/evaluate/<experiment>.json`` and the counts by image that it is summed from, in
``<experiment>/seed-<n>.npz`` beside it; and, for the report's gallery, what the first seed makes of a few
images, in ``results/<profile>/predictions/<experiment>/``: the prediction as a label file, and the model's
maps (attention, offsets, priors) in half precision.

With ``--checkpoint FILE`` it scores one network of a paper with weights that its authors released, by the
paper's protocol on the paper's data set, and writes ``results/released/<experiment>.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.config.params import Params, load_params
from experiments.config.strict import ConfigError
from experiments.running import command, jobs, locks, storage, workers
from experiments.running.jobs import Outcome
from experiments.running.server import COMPUTING
from experiments.running.work import function
from experiments.samples.identity import Identities, Identity
from experiments.scoring.counts import digest_of
from experiments.scoring.scores import write_released_scores, write_scores
from experiments.scoring.slices import SlicedEvaluation, of_checkpoint, of_training, released_digest
from experiments.training.folder import Trainings

_CHECK = "experiments.scoring.networks:check"


def main() -> None:
    parser = command.parser("evaluate", __doc__)
    command.add_selection(parser)
    command.add_spreading(parser, seeds=True)
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights that the authors released")
    arguments = parser.parse_args()
    params = load_params()
    keys = command.choose(arguments.experiments, params.experiments, params.run)
    if arguments.checkpoint is None:
        _score_trained(arguments, params, keys)
    else:
        _score_released(arguments, params)


def _score_trained(arguments: argparse.Namespace, params: Params, keys: Sequence[str]) -> None:
    seeds = arguments.seeds or params.seeds
    identities = Identities(params.runs(), sorted({*seeds, *params.seeds}))
    trainings = Trainings(params.paths.trainings)
    evaluations: dict[str, SlicedEvaluation] = {}
    untrained: dict[str, str] = {}
    for seed in seeds:
        for key in keys:
            identity = identities.scoring_owner(identities.of(key, seed))
            training = trainings.find(identity.training)
            if training is None:
                what = command.selection(key, seed, params.seeds)
                untrained[f"{key} seed {seed}"] = (
                    f"is not trained; run 'python -m experiments.train {what}' first"
                )
            elif identity.scoring not in evaluations:
                gallery = seed == params.seeds[0] and params.active.evaluation.gallery > 0
                evaluations[identity.scoring] = of_training(identity, identities, training.weights, gallery)
    outcome = _score(arguments, params, list(evaluations.values()))
    written = _write_scores(keys, params.seeds, identities)
    print(f"evaluate: {jobs.count(len(written), 'experiment')} with all seeds scored")
    outcome.failed.update(untrained)
    jobs.finish("evaluate", outcome)


def _score_released(arguments: argparse.Namespace, params: Params) -> None:
    if len(arguments.experiments) != 1 or arguments.seeds is not None:
        raise ConfigError("--checkpoint takes one experiment, whose network the file holds, and no seeds")
    key = arguments.experiments[0]
    evaluation = of_checkpoint(params, key, arguments.checkpoint)
    if not evaluation.is_done() and arguments.workers == 0:
        function(_CHECK)(evaluation.scoring.network)
    elif not evaluation.is_done():
        workers.ask(_CHECK, evaluation.scoring.network, imports=COMPUTING)
    outcome = _score(arguments, params, [evaluation])
    if evaluation.is_done():
        path = write_released_scores(key, evaluation, released_digest(params.run(key)))
        print(f"evaluate: wrote {path}")
    jobs.finish("evaluate", outcome)


def _score(arguments: argparse.Namespace, params: Params, evaluations: list[SlicedEvaluation]) -> Outcome:
    """Does the slices that are outstanding, and adds them up."""
    locks.clear(params.paths.locks)
    chosen = arguments.shard.take([job for evaluation in evaluations for job in evaluation.jobs()])
    outcome = Outcome()
    if not all(job.is_done() for job in chosen):
        for data in {
            evaluation.scoring.data.name: evaluation.scoring.data for evaluation in evaluations
        }.values():
            data.check_unchanged()
        pool = command.pool(arguments, params.active.training.threads, COMPUTING)
        outcome = jobs.do_jobs("evaluate", chosen, pool, params.paths.locks)
    for evaluation in evaluations:
        evaluation.merge()
    return outcome


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
        if all(_is_counted(identities.scoring_owner(identity)) for identity in wanted):
            write_scores(key, seeds, identities, path)
            complete.append(key)
    return complete


def _is_counted(owner: Identity) -> bool:
    return digest_of(owner.run.paths.counts(owner.run.key, owner.seed)) == owner.scoring


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
