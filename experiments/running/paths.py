"""Where every file stands: the one place that knows.

Paths are relative to the repository's root, where every command is run.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PARAMS = Path("params.yaml")
CHECKED_PARAMS = Path(".cache/params")
"""What the check of a params file found, so that the next command need not import torch for it."""
DECODED = Path(".cache/decoded")
"""Decoded training pairs, in a folder for each split."""
CLUSTER = Path(".cache/cluster")
"""What the jobs of a cluster's queue print, and submitit's own files of them."""

PREPARED = Path("data/prepared")
PUBLISHED = Path("results/published")
REFERENCE = Path("results/reference")
COMPLEXITY = Path("results/complexity.csv")
COMPLEXITY_COUNTS = Path("results/complexity")
"""One file for each network that was counted."""

RELEASED = Path("results/released")
"""Scores of checkpoints that authors released: of no profile, as networks and protocols are the papers'."""
BENCHMARK_BASELINE = Path("results/benchmarks/baseline.json")
LATEST_BENCHMARKS = Path("results/benchmarks/latest.json")
"""What ``make benchmark`` measured, first and last."""

REPORT = Path("reports/index.html")
TABLES = Path("reports/tables")
FIGURES = Path("reports/figures")


def released_scores(experiment: str) -> Path:
    """Scores of an experiment's network with the weights that its authors released."""
    return RELEASED / f"{experiment}.json"


def released_counts(experiment: str) -> Path:
    """The counts by image that they are summed from."""
    return RELEASED / f"{experiment}.npz"


def given(name: str) -> Path:
    """A path that params.yaml names, from the repository's root.

    DVC runs a queued experiment in a copy of the repository below ``.dvc/tmp/exps``, which has no data. There
    a path that the copy lacks is looked for in the repository that it was made of.
    """
    path, here = Path(name), Path.cwd()
    if path.is_absolute() or path.exists():
        return path
    for folder in here.parents:
        if folder.name == ".dvc" and here.is_relative_to(folder / "tmp/exps"):
            return folder.parent / path
    return path


@dataclass(frozen=True)
class ProfilePaths:
    """The files of one profile, which no other profile reads or writes."""

    profile: str

    @property
    def prepared(self) -> Path:
        """Checked data: a folder for each data set."""
        return PREPARED / self.profile

    @property
    def results(self) -> Path:
        """All that was measured under the profile."""
        return Path("results") / self.profile

    @property
    def trainings(self) -> Path:
        """``<experiment>/seed-<n>/`` for each training."""
        return self.results / "train"

    def training(self, experiment: str, seed: int) -> Path:
        """The folder of one training."""
        return self.trainings / experiment / f"seed-{seed}"

    @property
    def evaluations(self) -> Path:
        """Scores: ``<experiment>.json``, and the counts that they are summed from."""
        return self.results / "evaluate"

    def scores(self, experiment: str) -> Path:
        """The scores of an experiment over its seeds."""
        return self.evaluations / f"{experiment}.json"

    def counts(self, experiment: str, seed: int) -> Path:
        """Intersections and unions of every image, from which scores are summed."""
        return self.evaluations / experiment / f"seed-{seed}.npz"

    def predictions(self, experiment: str) -> Path:
        """What the first seed makes of a few images."""
        return self.results / "predictions" / experiment

    def dry_run(self, experiment: str) -> Path:
        """What a training of an experiment would be."""
        return self.results / "dry-run" / experiment

    @property
    def metrics(self) -> Path:
        """The few numbers of each experiment that ``dvc metrics`` shows."""
        return self.results / "metrics"

    @property
    def summary(self) -> Path:
        """One row per experiment, measured and published side by side."""
        return self.results / "summary.csv"

    @property
    def claims(self) -> Path:
        """One row per claim."""
        return self.results / "claims.csv"

    @property
    def claims_digest(self) -> Path:
        """Digest of all that the verdicts on disk were made from."""
        return self.results / "claims.json"

    @property
    def speed(self) -> Path:
        """One row per experiment, precision, mode and batch size."""
        return self.results / "speed.csv"

    @property
    def timings(self) -> Path:
        """One file for each network that was timed."""
        return self.results / "speed"

    @property
    def report_digest(self) -> Path:
        """Digest of all that the report on disk was made from."""
        return self.results / "report.json"

    @property
    def locks(self) -> Path:
        """A file for each job that a process is doing."""
        return self.results / "locks"
