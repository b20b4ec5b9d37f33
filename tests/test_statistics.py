from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from simulated_suites import REGIMES, Chance, Suite

from experiments.scoring import statistics
from experiments.scoring.counts import Counts
from experiments.scoring.statistics import Noise


def some_counts(seeds: int, images: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    unions = generator.integers(0, 50, (seeds, images, classes))
    unions[:, :, -1] = 0  # a class that no image holds
    unions[:, 1:, 0] = 0  # and one that a single image holds
    return (unions * generator.random(unions.shape)).astype(np.int64), unions


class TestTheBootstrap:
    def test_a_resample_is_the_data_sets_score_of_its_images(self) -> None:
        """The oracle draws images by name and sums them as the scores are summed."""
        hits, unions = some_counts(seeds=2, images=5, classes=4)
        weights = statistics.resample(range(5), 20, seed=3)
        found = statistics.resampled_mean_iou(hits, unions, weights)
        for resample, means in zip(weights, found, strict=True):
            drawn = np.repeat(np.arange(5), resample)
            for seed in range(2):
                counts = Counts(
                    [str(i) for i in drawn], [],
                    hits[seed, drawn, None], unions[seed, drawn, None], unions[seed, drawn, None],
                )  # fmt: skip
                assert means[seed] == pytest.approx(counts.mean_iou(), abs=1e-15, nan_ok=True)

    def test_every_resample_has_as_many_images_as_the_data_set(self) -> None:
        assert (statistics.resample(range(7), 50).sum(axis=1) == 7).all()

    def test_images_of_a_sequence_are_drawn_together(self) -> None:
        """As many sequences as there are, whatever the number of their images."""
        weights = statistics.resample(["a", "b", "b", "c", "b"], 200)
        assert (weights[:, [1, 2, 4]] == weights[:, [1]]).all()
        assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
        assert set(weights[:, 1]) == {0, 1, 2, 3}

    def test_no_class_at_all_is_no_score(self) -> None:
        nothing = np.zeros((1, 3, 2), np.int64)
        assert np.isnan(
            statistics.resampled_mean_iou(nothing, nothing, statistics.resample(range(3), 4))
        ).all()

    def test_differences_of_experiments_are_paired_by_image(self) -> None:
        """Where one experiment is better by the same on every image, the choice of images decides nothing."""
        unions = np.full((3, 30, 1), 100)
        easy = np.random.default_rng(0).integers(20, 60, (1, 30, 1)).repeat(3, axis=0)
        weights = statistics.resample(range(30))
        better = statistics.resampled_mean_iou(easy + 10, unions, weights)
        worse = statistics.resampled_mean_iou(easy, unions, weights)
        effect = statistics.compare(np.array([0.1, 0.1, 0.1]), better - worse, range(30))
        assert worse.std() > 0.01
        assert effect.by_image.high - effect.by_image.low == pytest.approx(0, abs=1e-12)


class TestAComparison:
    def test_the_interval_over_seeds_is_students(self) -> None:
        differences = np.array([1.0, 2.5, 0.5, 2.0, 1.5])
        effect = statistics.compare(differences, np.tile(differences, (1000, 1)), range(50))
        expected = stats.ttest_1samp(differences, 0)
        low, high = expected.confidence_interval(0.95)
        assert (effect.by_seed.low, effect.by_seed.high) == pytest.approx((low, high))
        assert effect.p == pytest.approx(expected.pvalue)  # as resampling images changes nothing here

    @settings(deadline=None)
    @given(st.lists(st.floats(-5, 5), min_size=3, max_size=6), st.floats(-2, 2), st.integers(0, 99))
    def test_turning_a_claim_round_turns_its_effect_round(
        self, values: list[float], margin: float, seed: int
    ) -> None:
        differences = np.array(values)
        noise = np.random.default_rng(seed).standard_normal((200, len(values)))
        one = statistics.compare(differences, differences + noise, range(40), margin)
        other = statistics.compare(-differences, -differences - noise, range(40), -margin)
        assert one.p == pytest.approx(other.p)
        assert one.hull.low == pytest.approx(-other.hull.high)
        assert one.hull.low <= one.difference <= one.hull.high

    def test_noise_that_all_seeds_share_is_not_averaged_away(self) -> None:
        generator = np.random.default_rng(0)
        shared = generator.standard_normal((4000, 1))
        own = generator.standard_normal((4000, 5))
        noise = statistics.compare(np.zeros(5), 2 * shared + own, range(100)).noise
        assert noise.shared == pytest.approx(4, rel=0.1)
        assert noise.own == pytest.approx(1, rel=0.1)

    def test_two_kinds_of_chance_make_a_wider_interval_than_either(self) -> None:
        generator = np.random.default_rng(1)
        differences = np.array([0.2, 1.4, 0.8, 1.1, 0.5])
        images = differences + 0.3 * generator.standard_normal((4000, 1))
        effect = statistics.compare(differences, images, range(100))
        assert effect.by_both.low < min(effect.by_seed.low, effect.by_image.low)
        assert effect.hull == effect.by_both


class TestMeasuredOnKnownEffects:
    """A small edition of ``tests/benchmarks/test_claims_coverage.py``, whose figures stand in the README."""

    @pytest.mark.parametrize("regime", REGIMES)
    def test_without_any_effect_a_report_hardly_ever_has_a_verdict(self, regime: str) -> None:
        images = 40 if REGIMES[regime].together == 1 else 120
        suites = [Suite([0.0] * 5, REGIMES[regime], 5, images, number) for number in range(40)]
        with_verdict = sum(any(suite.verdicts()) for suite in suites)
        # At 5 % of the reports, more than 7 of 40 happen once in a thousand times.
        assert with_verdict <= 7

    def test_the_two_tests_alone_would_find_too_much(self) -> None:
        """Why there is a third: with both kinds of chance alike, each of the two sees half of it."""
        two, three = 0, 0
        for number in range(60):
            for effect in Suite([0.0] * 5, REGIMES["both alike"], 5, 40, number).comparisons:
                sides = [(i.low > 0) - (i.high < 0) for i in (effect.by_seed, effect.by_image)]
                two += abs(sum(sides)) == 2
                three += effect.p <= statistics.LEVEL
        assert three < two
        assert two > 0.075 * 300

    def test_frames_of_a_video_taken_for_images_by_themselves_would_find_too_much(self) -> None:
        """Twelve sequences of ten images: of 1 000 such reports of 30 claims 98 % had a verdict."""
        with_verdict = [
            any(Suite([0.0] * 5, REGIMES["videos"], 5, 120, number, as_sequences=False).verdicts())
            for number in range(20)
        ]
        assert sum(with_verdict) > 5

    def test_few_verdicts_are_false_where_some_effects_are_true(self) -> None:
        effects = [4.0, 4.0, 4.0, 0.0, 0.0, 0.0]
        verdicts = [Suite(effects, Chance(0.01, 0.01), 5, 40, n).verdicts() for n in range(30)]
        right = sum(verdict == 1 for suite in verdicts for verdict in suite[:3])
        false = sum(verdict != 0 for suite in verdicts for verdict in suite[3:])
        assert right > 60
        assert false / (right + false) <= 0.05 + 0.05

    def test_the_power_is_what_the_planner_said(self) -> None:
        """A true effect of 2 points, a deviation of 1.4: planned for 80 %, decided so often."""
        noise = Noise(seeds=5, sequences=40, deviation=2.0**0.5, shared=0.0, own=0.0)
        seeds = statistics.seeds_for_power(2.0, noise)
        assert seeds is not None
        chance = Chance(seeds=0.01, images=0.0, cells=0.0)
        found = [Suite([2.0], chance, seeds, 40, number).verdicts() == [1] for number in range(120)]
        assert 0.69 < np.mean(found) < 0.91  # three standard errors


class TestCorrectionAndPlan:
    def test_the_correction_is_benjamini_and_hochbergs(self) -> None:
        assert statistics.adjusted([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])
        assert statistics.adjusted([]) == []

    def test_one_more_finding_has_to_beat_the_next_threshold(self) -> None:
        assert statistics.threshold_of_one_more([0.001, 0.002, 0.9, 0.8]) == pytest.approx(0.05 * 3 / 4)

    def test_a_claim_is_decided_where_students_interval_leaves_the_margin(self) -> None:
        noise = Noise(seeds=3, sequences=100, deviation=1.0, shared=0.0, own=0.0)
        seeds = statistics.seeds_until_decided(1.0, noise)
        assert seeds is not None
        t = [stats.t.isf(0.025, n - 1) / np.sqrt(n) for n in (seeds - 1, seeds)]
        assert t[0] > 1.0 >= t[1]

    def test_no_number_of_seeds_makes_up_for_too_few_images(self) -> None:
        noise = Noise(seeds=5, sequences=100, deviation=1.0, shared=1.0, own=0.1)
        assert statistics.seeds_until_decided(1.5, noise) is None
        assert statistics.seeds_for_power(1.5, noise) is None

    @settings(deadline=None, max_examples=15)
    @given(st.floats(0.5, 3), st.floats(0.2, 2), st.floats(0, 0.02))
    def test_power_needs_at_least_the_seeds_that_the_effect_as_it_stands_does(
        self, difference: float, deviation: float, shared: float
    ) -> None:
        noise = Noise(3, 100, deviation, shared, 0.0)
        planned, as_it_stands = (
            function(difference, noise)
            for function in (statistics.seeds_for_power, statistics.seeds_until_decided)
        )
        assert planned is not None
        assert as_it_stands is not None
        assert planned >= as_it_stands
