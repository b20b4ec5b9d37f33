"""Which experiments are the same training, and which the same scores: found by their digests."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from experiments.config.run import Run
from experiments.datasets.base import DataError
from experiments.samples.prepared import PreparedDataset


@dataclass(frozen=True)
class Identity:
    """One experiment with one seed, as a function of its inputs."""

    run: Run
    seed: int
    training: str
    """Digest of the training."""
    scoring: str
    """Digest of the scores."""


class Identities:
    """All experiments of a params file with some seeds.

    Args:
        runs: all experiments, in their order: of those that share, the first does the work.
        seeds: to look at.

    Raises:
        DataError: a data set is not prepared.
    """

    def __init__(self, runs: Iterable[Run], seeds: Sequence[int]):
        self.data: dict[str, PreparedDataset] = {}
        """By name, the data sets that the experiments use."""
        self._all: dict[tuple[str, int], Identity] = {}
        self._first_training: dict[str, Identity] = {}
        self._first_scoring: dict[str, Identity] = {}
        for run in runs:
            if run.dataset not in self.data:
                self.data[run.dataset] = PreparedDataset.load(run)
            data = self.data[run.dataset]
            for seed in seeds:
                training = run.training_digest(seed, data.train.digest)
                scoring = run.scoring_digest(training, data.val.digest)
                identity = Identity(run, seed, training, scoring)
                self._all[run.key, seed] = identity
                self._first_training.setdefault(training, identity)
                self._first_scoring.setdefault(scoring, identity)

    def of(self, key: str, seed: int) -> Identity:
        """The identity of an experiment and a seed."""
        return self._all[key, seed]

    def training_owner(self, identity: Identity) -> Identity:
        """The first experiment with the same training: it is trained for all that share it."""
        return self._first_training[identity.training]

    def scoring_owner(self, identity: Identity) -> Identity:
        """The first experiment with the same scores."""
        return self._first_scoring[identity.scoring]

    def same_training_as(self, key: str, seed: int) -> str | None:
        """The experiment whose training this one shares; ``None`` if it has its own."""
        owner = self.training_owner(self.of(key, seed)).run.key
        return None if owner == key else owner

    def same_scores_as(self, key: str, seed: int) -> str | None:
        """The experiment whose scores this one shares; ``None`` if it has its own."""
        owner = self.scoring_owner(self.of(key, seed)).run.key
        return None if owner == key else owner


def identities_or_reason(runs: Iterable[Run], seeds: Sequence[int]) -> tuple[Identities | None, str]:
    """The identities, or why there are none, for stages that show what there is."""
    try:
        return Identities(runs, seeds), ""
    except DataError as error:
        return None, str(error)
