"""What claims are judged from: scores, counts by image, costs and timings, of this run or of a reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.config.params import Params
from experiments.measuring.jobs import counted_rows, timed_rows
from experiments.reporting.summary import valid_scores
from experiments.scoring.counts import REMEDY, Evaluation
from experiments.training.folder import Trainings


@dataclass(frozen=True)
class Measurements:
    """Everything that was measured in one run."""

    name: str
    """Of the profile or of the reference, for messages."""
    folder: Path
    """``<experiment>.json``, and the counts that they are summed from."""
    scores: Mapping[str, dict[str, Any]]
    """By experiment, as ``evaluate`` wrote them."""
    reasons: Mapping[str, str]
    """Why an experiment has no scores."""
    costs: Mapping[str, Mapping[str, float]]
    """``parameters`` and ``macs`` of the paper's own network, by experiment."""
    timings: Sequence[Mapping[str, Any]]
    """Rows of ``speed.csv``."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """That one training took, by experiment."""
    exceptions: Mapping[str, str] = field(default_factory=dict)
    """How the profile has an experiment trained unlike all others, in words, by experiment."""
    remedy: str = REMEDY
    """What mends a file of counts."""

    def scores_path(self, key: str) -> Path:
        """Where the scores of an experiment stand."""
        return self.folder / f"{key}.json"

    def owner(self, key: str) -> str:
        """Whose counts a scored experiment has: its own, or those of the one that it shares scores with."""
        return self.scores[key]["same_scores_as"] or key

    def counts_path(self, key: str, seed: int) -> Path:
        """Where the counts of a scored experiment stand."""
        return self.folder / self.owner(key) / f"seed-{seed}.npz"

    def evaluation(self, key: str, seed: int) -> Evaluation:
        """What one training of an experiment scored.

        Raises:
            StorageError: its counts are missing or broken.
        """
        return Evaluation.load(self.counts_path(key, seed), self.remedy)


def present(params: Params) -> Measurements:
    """What this run measured, as far as it belongs to the present settings.

    Raises:
        StorageError: a file of counts or timings is broken.
    """
    scores, reasons = valid_scores(params)
    trainings = Trainings(params.paths.trainings)
    seconds = {}
    for key, found in scores.items():
        abouts = [trainings.find(seed["training"]) for seed in found["seeds"]]
        took = [seconds_of(about.read_about()) for about in abouts if about is not None]
        if took:
            seconds[key] = sum(took) / len(took)
    return Measurements(
        name=params.profile,
        folder=params.paths.evaluations,
        scores=scores,
        reasons=reasons,
        costs={row["experiment"]: row for row in counted_rows(params)},
        timings=timed_rows(params),
        seconds=seconds,
        exceptions={
            run.key: ", ".join(f"{name} {value}" for name, value in sorted(run.exceptions.items()))
            for run in params.runs()
            if run.exceptions
        },
    )


def seconds_of(about: Mapping[str, Any]) -> float:
    """How long a training took, from what its ``run.json`` says."""
    return float(about["seconds_per_step"]) * int(about["recipe"]["steps"])
