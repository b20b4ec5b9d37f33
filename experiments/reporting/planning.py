"""What would settle the open claims: how many seeds, and how long they take to train."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from experiments.reporting.measurements import Measurements
from experiments.reporting.verdicts import OPEN, Judgement
from experiments.scoring import statistics

POWER = 0.8
"""The probability with which the planned seeds decide a claim whose measured effect is the true one."""


@dataclass(frozen=True)
class Step:
    """What one claim needs."""

    judgement: Judgement
    seeds: int | None
    """In all; ``None`` if no number would do."""
    trainings: int
    """That are missing."""
    hours: float | None
    """To train them one after another; ``None`` if a side was never trained."""


def plan(judgements: Sequence[Judgement], found: Measurements) -> list[Step]:
    """The claims that seeds can settle, the cheapest first, and those that nothing settles last.

    Args:
        judgements: of all claims.
        found: with the durations of the trainings.
    """
    steps = [
        _step(judgement, found)
        for judgement in judgements
        if judgement.verdict == OPEN or judgement.too_few_seeds
    ]
    return sorted(steps, key=lambda step: math.inf if step.hours is None else step.hours)


def _step(judgement: Judgement, found: Measurements) -> Step:
    if judgement.effect is None:
        wanted: int | None = statistics.FEWEST_SEEDS
    else:
        distance = judgement.effect.difference - judgement.claim.threshold
        wanted = statistics.seeds_for_power(distance, judgement.effect.noise, judgement.threshold, POWER)
    keys = {side.experiment for side in judgement.claim.sides().values()}
    if wanted is None:
        return Step(judgement, None, 0, None)
    more = max(wanted - _seeds(judgement, found), 0)
    seconds = [found.seconds.get(key, math.nan) for key in keys]
    hours = more * sum(seconds) / 3600
    return Step(judgement, wanted, more * len(keys), None if math.isnan(hours) else hours)


def _seeds(judgement: Judgement, found: Measurements) -> int:
    """Seeds that are there."""
    key = next(iter(judgement.claim.sides().values())).experiment
    return len(found.scores[key]["seeds"]) if key in found.scores else 0


def lines(steps: Sequence[Step], total: int) -> list[str]:
    """The plan for people, one claim a line.

    Args:
        steps: in their order.
        total: number of all claims.
    """
    if not steps:
        return [f"none of {total} claims is open"]
    said = [
        f"{len(steps)} of {total} claims are open. So many seeds settle each with a probability of "
        f"{POWER:.0%}, if the measured effect is the true one:",
        f"{'hours':>8} {'seeds':>6} {'more trainings':>15}  {'difference':>10}  claim",
    ]
    for step in steps:
        effect = step.judgement.effect
        difference = "" if effect is None else f"{effect.difference:+.2f}"
        hours = "?" if step.hours is None else f"{step.hours:.2f}"
        if step.seeds is None:
            said.append(
                f"{'-':>8} {'-':>6} {'-':>15}  {difference:>10}  {step.judgement.key}: not with up to "
                f"{statistics.MOST_SEEDS} seeds on these images"
            )
        else:
            said.append(
                f"{hours:>8} {step.seeds:>6} {step.trainings:>15}  {difference:>10}  {step.judgement.key}"
            )
    return said
