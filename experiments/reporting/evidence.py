"""What the report's numbers come from: the references, and the present run beside them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from experiments.config.params import Params
from experiments.reporting import captions, references, verdicts
from experiments.reporting.measurements import Measurements
from experiments.reporting.references import Reference
from experiments.running.errors import ExpectedError
from experiments.scoring.statistics import FEWEST_SEEDS, interval


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds, in per cent or points, and its 95 % interval where there are several seeds."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    @property
    def interval(self) -> str:
        """For people; empty of one seed."""
        return "" if self.low is None else f"[{self.low:.2f}, {self.high:.2f}]"

    @property
    def signed_interval(self) -> str:
        """Of a difference."""
        return "" if self.low is None else f"[{self.low:+.2f}, {self.high:+.2f}]"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value for each seed, with Student's interval at 95 %."""
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(mean, None, None, len(values))
    within = interval(mean, stdev(values) / math.sqrt(len(values)), len(values) - 1)
    return Estimate(mean, within.low, within.high, len(values))


@dataclass(frozen=True)
class Source:
    """One run's measurements."""

    name: str
    """Of the reference, or of the present profile."""
    title: str
    """Short enough for the head of a column."""
    conditions: str
    """What its scores are worth, in sentences."""
    brief: str
    """The same as short as it can be, for below a figure: the page says the rest once."""
    found: Measurements
    claims: list[dict[str, str]]
    """Rows of ``claims.csv``; none if it belongs to other settings."""
    kind: str
    """``reference``, ``run``, or ``check`` for a run whose scores say nothing."""

    @cached_property
    def claims_by_key(self) -> dict[str, dict[str, str]]:
        """The rows by the claim's key."""
        return {row["claim"]: row for row in self.claims}

    @property
    def experiments(self) -> int:
        """How many have scores of their own."""
        return sum(not scores["same_scores_as"] for scores in self.found.scores.values())

    @cached_property
    def seeds(self) -> int:
        """Of most experiments."""
        return max((len(scores["seeds"]) for scores in self.found.scores.values()), default=0)

    def own(self, key: str) -> dict[str, Any] | None:
        """Scores of an experiment that shares them with none before it; ``None`` without."""
        scores = self.found.scores.get(key)
        return None if scores is None or scores["same_scores_as"] else scores

    def missing(self, key: str) -> str:
        """Why an experiment has no score of its own here."""
        if key in self.found.scores:
            shared = self.found.scores[key]["same_scores_as"]
            return (
                f"as {shared}: the same function of the same inputs here"
                if shared
                else "its score is no number"
            )
        reason = self.found.reasons.get(key, f"not in {self.title}")
        return reason.replace(key, "KEY")  # so that equal reasons are one footnote

    def miou(self, key: str) -> Estimate | None:
        """mIoU in per cent."""
        scores = self.own(key)
        values = [seed["miou"] for seed in scores["seeds"]] if scores else []
        known = [100 * value for value in values if _is_number(value)]
        return estimate(known) if known and len(known) == len(values) else None

    def difference(self, key: str, baseline: str) -> Estimate | None:
        """mIoU of an experiment minus another's, paired by seed, in points; ``None`` of one training."""
        sides = [self.found.scores.get(name) for name in (key, baseline)]
        if sides[0] is None or sides[1] is None or self.shared(key, baseline):
            return None
        left, right = ({seed["seed"]: seed["miou"] for seed in side["seeds"]} for side in sides if side)
        if list(left) != list(right) or not all(map(_is_number, [*left.values(), *right.values()])):
            return None
        return estimate([100 * (left[seed] - right[seed]) for seed in left])

    def shared(self, key: str, other: str) -> bool:
        """Whether two experiments are one and the same here."""
        are_scored = {key, other} <= set(self.found.scores)
        return are_scored and self._owner(key) == self._owner(other)

    def repeats(self, pairs: Iterable[tuple[str, str]]) -> dict[tuple[str, str], tuple[str, str]]:
        """Pairs of experiments that compare the same two trainings as an earlier pair, each with that pair.

        Under a profile several experiments can be one, say Swin-S and Swin-B on one small backbone. Their
        comparisons are then one, too.
        """
        first: dict[tuple[str, str], tuple[str, str]] = {}
        found = {}
        for pair in pairs:
            owners = self._owner(pair[0]), self._owner(pair[1])
            earlier = first.setdefault(owners, pair)
            if earlier != pair and owners[0] != owners[1]:
                found[pair] = earlier
        return found

    def verdict(self, key: str, baseline: str) -> dict[str, str] | None:
        """The row of the claim about the mIoU of two experiments, whichever of them it calls better.

        Experiments that share their scores are one. ``None``: no claim compares the two.
        """
        sides = self._owner(key), self._owner(baseline)
        about = [
            row
            for row in self.claims
            if row["metric"] == "miou" and {self._owner(row["better"]), self._owner(row["worse"])} == {*sides}
        ]
        # One that was measured first, then one that says it in this direction.
        about.sort(key=lambda row: (not row["low"], self._owner(row["better"]) != sides[0]))
        return about[0] if about else None

    def _owner(self, key: str) -> str:
        """The experiment whose scores an experiment has."""
        return self.found.owner(key) if key in self.found.scores else key


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Evidence:
    """All sources of a report."""

    references: list[Source]
    run: Source
    """The present one."""
    kept_as: str
    """The reference that the present run's scores are the same as; empty if there is none."""
    problems: list[str]
    """Why a reference is not shown."""

    @property
    def columns(self) -> list[Source]:
        """Sources that a table shows, each number once."""
        return [*self.references, *([] if self.kept_as else [self.run])]

    @property
    def preferred(self) -> list[Source]:
        """Sources in the order in which a figure takes them: whichever has what it draws first.

        Those come first that can have verdicts, and of them those with the most experiments; a check is last.
        """

        def weight(source: Source) -> tuple[bool, bool, int]:
            is_worth = source.kind != "check" and not (source is self.run and self.kept_as)
            return is_worth, source.seeds >= FEWEST_SEEDS, source.experiments

        return sorted([self.run, *self.references], key=weight, reverse=True)

    @property
    def concluding(self) -> Source | None:
        """The source of the conclusions: the first with verdicts that is no check."""
        for source in self.preferred:
            if source.kind != "check" and source.claims:
                return source
        return None


def gather(params: Params, found: Measurements) -> Evidence:
    """The sources of a report. A reference that cannot be read is left out, and the report says why.

    Args:
        params: of the run.
        found: what it measured.
    """
    kept, problems = [], []
    for name in references.names():
        try:
            reference = references.load(name, params)
            kept.append((reference, reference.claims()))
        except ExpectedError as error:
            problems.append(str(error))
    run = Source(
        params.profile,
        "this run",
        captions.worth(params),
        captions.worth(params),
        found,
        verdicts.present_rows(params, found),
        "check" if params.active.scores == "check" else "run",
    )
    shown = [
        Source(
            each.name,
            f"reference {each.name}",
            f"{_brief(each)} {captions.joined(each.about['device'])}, {each.about['date']}. "
            f"{each.about['description']}",
            _brief(each),
            each.found,
            claims,
            "reference",
        )
        for each, claims in kept
    ]
    same = (each.name for each, _ in kept if _same_scores(found.scores, each.found.scores))
    return Evidence(shown, run, next(same, ""), problems)


def _brief(reference: Reference) -> str:
    """Which data and seeds a reference's numbers are of."""
    about = reference.about
    seeds = captions.counted(len(about["seeds"]), "seed")
    return f"Reference {reference.name}: {about['dataset']} {about['split']}, {seeds}."


def _same_scores(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether all that one run scored is in the other, scored alike."""

    def digests(scores: Mapping[str, Any]) -> list[Any]:
        return [seed.get("digest") for seed in scores["seeds"]]

    return bool(ours) and all(
        key in theirs and digests(scores) == digests(theirs[key]) for key, scores in ours.items()
    )
