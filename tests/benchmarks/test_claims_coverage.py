"""What the statistics of the claims promise, measured on suites whose effects are known, and what they cost.

A benchmark, as 1 000 suites take minutes: the figures are in ``extra_info`` of ``--benchmark-json``.
"""

from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture
from simulated_suites import REGIMES, Suite

from experiments.scoring import statistics

SUITES, CLAIMS, SEEDS = 1000, 30, 5
IMAGES = {regime: 60 if chance.together == 1 else 120 for regime, chance in REGIMES.items()}


@pytest.mark.parametrize("regime", REGIMES)
def test_reports_without_any_effect(benchmark: BenchmarkFixture, regime: str) -> None:
    """Share of reports with any verdict, also if images of one sequence were drawn each by itself; of claims
    found at 5 %, by all three tests and by two."""

    def measure() -> dict[str, float]:
        reports, apart, three, two = 0, 0, 0, 0
        for number in range(SUITES):
            settings = [0.0] * CLAIMS, REGIMES[regime], SEEDS, IMAGES[regime], number
            suite = Suite(*settings)
            reports += any(suite.verdicts())
            if REGIMES[regime].together > 1:
                apart += any(Suite(*settings, as_sequences=False).verdicts())
            for effect in suite.comparisons:
                three += effect.p <= statistics.LEVEL
                sides = [(i.low > 0) - (i.high < 0) for i in (effect.by_seed, effect.by_image)]
                two += abs(sum(sides)) == 2
        claims = SUITES * CLAIMS
        return {
            "reports with a verdict": reports / SUITES,
            "reports, images by themselves": apart / SUITES,
            "claims": three / claims,
            "by two": two / claims,
        }

    benchmark.extra_info.update(benchmark.pedantic(measure, rounds=1))


@pytest.mark.parametrize("regime", REGIMES)
def test_verdicts_where_some_effects_are_true(benchmark: BenchmarkFixture, regime: str) -> None:
    """A third of the claims have an effect of 2 to 4 points: share of false verdicts, of effects found."""
    effects = [*np.linspace(2, 4, CLAIMS // 3), *[0.0] * (CLAIMS - CLAIMS // 3)]

    def measure() -> dict[str, float]:
        shares, found = [], 0
        for number in range(SUITES // 5):
            verdicts = Suite(effects, REGIMES[regime], SEEDS, IMAGES[regime], number).verdicts()
            right = sum(verdict == 1 for verdict in verdicts[: CLAIMS // 3])
            decided = sum(verdict != 0 for verdict in verdicts)
            shares.append((decided - right) / max(decided, 1))
            found += right
        return {"false verdicts": float(np.mean(shares)), "found": found / (SUITES // 5) / (CLAIMS // 3)}

    benchmark.extra_info.update(benchmark.pedantic(measure, rounds=1))


def test_bootstrap_of_forty_claims(benchmark: BenchmarkFixture) -> None:
    """40 claims, 5 seeds, 500 images, 19 classes, 10 000 resamples; no side is used twice."""
    generator = np.random.default_rng(0)
    unions = generator.integers(0, 100_000, (SEEDS, 500, 19))
    sides = [(unions * generator.random(unions.shape)).astype(np.int64) for _ in range(80)]

    def judge() -> None:
        weights = statistics.resample(range(500))
        once = np.ones((1, 500), np.uint16)
        for better, worse in zip(sides[::2], sides[1::2], strict=True):
            point, resampled = (
                statistics.resampled_mean_iou(better, unions, each)
                - statistics.resampled_mean_iou(worse, unions, each)
                for each in (once, weights)
            )
            statistics.compare(point[0], resampled, range(500))

    benchmark.pedantic(judge, rounds=1)
