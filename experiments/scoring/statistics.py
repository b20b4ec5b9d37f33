"""Whether a difference between two networks is more than chance: of their trainings, and of the test images.

Two things would come out differently another time: the seeds of the trainings, and the images that they are
scored on. For each there is a test that holds the other fixed, and one that lets both vary:

- *seeds*: a paired t test over the seeds' differences of the data-set score;
- *images*: a bootstrap over images of the seeds' mean difference, exact for mIoU, as it sums counts. Images
  of one sequence, such as neighbouring frames of a video, are drawn together: they are not independent;
- *both*: the analysis of many readers and many cases in diagnostic imaging (Obuchowski and Rockette 1995,
  with degrees of freedom as Hillis 2007 has them), where seeds are readers and sequences are cases. The
  variance of the mean is the seeds' variance divided by their number, plus the covariance between seeds that
  comes of the images that they share.

The largest p value of the three counts. The first two alone are not enough: where both kinds of chance are
equally large, each sees only its own half of the variance, and together they take more than 5 % of nothing
for something (the simulation in ``tests/benchmarks`` measures it).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEVEL = 0.05
"""One minus the confidence of an interval, and the share of false verdicts that a report may have."""
RESAMPLES = 10_000
FEWEST_SEEDS = 3
FEWEST_SEQUENCES = 10
"""With fewer images, or sequences of images, a bootstrap says nothing of those that were not seen."""
MOST_SEEDS = 1000
"""Where planning gives up."""

_CHUNK = 500
"""Resamples that are summed at a time: their weights and sums take some tens of megabytes."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval at 95 %."""

    low: float
    high: float


@dataclass(frozen=True)
class Noise:
    """What a mean difference would vary by."""

    seeds: int
    sequences: int
    """That the images are of: as many as images where each is its own."""
    deviation: float
    """Standard deviation of the difference between seeds."""
    shared: float
    """Variance that the choice of images gives to every seed's difference alike."""
    own: float
    """Variance that it gives to one seed's difference beyond that."""


@dataclass(frozen=True)
class Effect:
    """A difference, and what is known of it."""

    difference: float
    """Mean over the seeds of the difference of the data-set score."""
    images: int
    """That it is measured on."""
    by_seed: Interval
    by_image: Interval
    by_both: Interval
    p: float
    """The largest of the three tests', two-sided: that the true difference is the margin."""
    noise: Noise

    @property
    def hull(self) -> Interval:
        """From the lowest to the highest end of the three intervals."""
        intervals = (self.by_seed, self.by_image, self.by_both)
        return Interval(min(i.low for i in intervals), max(i.high for i in intervals))


def resample(sequences: Sequence[Hashable], resamples: int = RESAMPLES, seed: int = 0) -> NDArray[np.uint16]:
    """How often each image is drawn in each resample: (resamples, N).

    Args:
        sequences: for each of N images the sequence that it is of. A resample draws as many sequences as
            there are, with replacement, each with all of its images.
        resamples: their number.
        seed: the same one gives the same resamples, so that all scores of a data set are resampled together.
    """
    places = {sequence: place for place, sequence in enumerate(dict.fromkeys(sequences))}
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(len(places), np.full(len(places), 1 / len(places)), resamples)
    return drawn.astype(np.uint16)[:, [places[sequence] for sequence in sequences]]


def resampled_mean_iou(intersections: Integers, unions: Integers, weights: NDArray[np.uint16]) -> Floats:
    """The data set's mean IoU for every resample of its images: (B, S), in [0, 1].

    Exact: sums of pixels stay below 2 ** 53, where every whole number is a float. A class without any pixel
    is left out, as it is from the data set's score; NaN if no class is left.

    Args:
        intersections: (S, N, K) pixels by seed, image and class.
        unions: likewise.
        weights: (B, N) of ``resample``, or ones for the data set as it is.
    """
    seeds, images, classes = intersections.shape
    columns = np.concatenate((intersections, unions)).transpose(1, 0, 2).reshape(images, -1).astype(float)
    means = np.empty((len(weights), seeds))
    for start in range(0, len(weights), _CHUNK):
        sums = weights[start : start + _CHUNK].astype(float) @ columns
        hits, union = sums.reshape(len(sums), 2, seeds, classes).transpose(1, 0, 2, 3)
        present = union > 0
        iou = np.divide(hits, union, out=np.zeros_like(hits), where=present)
        count = present.sum(2)
        total = iou.sum(2)
        means[start : start + _CHUNK] = np.divide(
            total, count, out=np.full_like(total, np.nan), where=count > 0
        )
    return means


def compare(
    differences: Floats, resampled: Floats, sequences: Sequence[Hashable], margin: float = 0.0
) -> Effect:
    """Tests a paired difference.

    Args:
        differences: (S,) of the data-set score, by seed; at least two.
        resampled: (B, S) the same for every resample of the images; a resample with NaN is left out.
        sequences: of the images, as they were resampled; at least two.
        margin: what the difference is compared with.
    """
    seeds, drawn = len(differences), len(set(sequences))
    mean = float(differences.mean())
    deviation = float(differences.std(ddof=1))
    known = resampled[np.isfinite(resampled).all(axis=1)]
    # Resamples vary as much as a sample does about its own mean, which is less than about the true one.
    covariance = np.atleast_2d(np.cov(known.T)) * drawn / (drawn - 1)
    diagonal = float(np.diag(covariance).mean())
    shared = float((covariance.sum() - np.trace(covariance)) / (seeds * (seeds - 1)))
    noise = Noise(seeds, drawn, deviation, max(shared, 0.0), max(diagonal - max(shared, 0.0), 0.0))

    t_error = deviation / math.sqrt(seeds)
    error, freedom = _both(noise)
    means = known.mean(axis=1)
    low, high = np.quantile(means, [LEVEL / 2, 1 - LEVEL / 2])
    beyond = 1 + min((means <= margin).sum(), (means >= margin).sum())
    p_images = min(1.0, 2 * float(beyond) / (len(means) + 1))
    return Effect(
        difference=mean,
        images=len(sequences),
        by_seed=interval(mean, t_error, seeds - 1),
        by_image=Interval(float(low), float(high)),
        by_both=interval(mean, error, freedom),
        p=max(p_images, _p(mean - margin, t_error, seeds - 1), _p(mean - margin, error, freedom)),
        noise=noise,
    )


def adjusted(p_values: Sequence[float]) -> list[float]:
    """p values by Benjamini and Hochberg's procedure: of those up to 5 %, at most 5 % are so by chance."""
    if not p_values:
        return []
    return [float(p) for p in scipy.stats.false_discovery_control(p_values, method="bh")]


def threshold_of_one_more(p_values: Sequence[float]) -> float:
    """The p value that one more claim of the same report would have to reach to be found.

    Args:
        p_values: of all claims of the report, with the one in question.
    """
    found = sum(p <= LEVEL for p in adjusted(p_values))
    return LEVEL * min(found + 1, len(p_values)) / len(p_values)


def seeds_until_decided(difference: float, noise: Noise, threshold: float = LEVEL) -> int | None:
    """The number of seeds at which a claim would be decided if effect and spread stayed exactly as they are.

    Args:
        difference: from the margin.
        noise: of it.
        threshold: the p value to reach.

    Returns:
        ``None`` if no number up to ``MOST_SEEDS`` suffices: then the images are too few.
    """
    seeds = np.arange(noise.seeds, MOST_SEEDS + 1)
    p = _expected_p(np.full(len(seeds), difference), np.full(len(seeds), noise.deviation), seeds, noise)
    return int(seeds[np.argmax(p <= threshold)]) if (p <= threshold).any() else None


def seeds_for_power(
    difference: float, noise: Noise, threshold: float = LEVEL, power: float = 0.8
) -> int | None:
    """The smallest number of seeds that decides a claim with a probability of ``power``.

    Args:
        difference: from the margin; taken for the true one.
        noise: of it, likewise.
        threshold: the p value to reach.
        power: the probability.

    Returns:
        ``None`` if no number up to ``MOST_SEEDS`` suffices.
    """
    low, high = FEWEST_SEEDS - 1, MOST_SEEDS
    if decided(difference, noise, high, threshold) < power:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if decided(difference, noise, middle, threshold) >= power:
            high = middle
        else:
            low = middle
    return high


def decided(difference: float, noise: Noise, seeds: int, threshold: float, draws: int = 2000) -> float:
    """The probability that so many fresh seeds, scored on the same images, decide a claim.

    Args:
        difference: the true one, from the margin.
        noise: the true one; its own number of seeds does not matter.
        seeds: of the measurement that is planned.
        threshold: the p value to reach.
        draws: measurements that are simulated.
    """
    generator = np.random.default_rng(0)
    means = difference + noise.deviation / np.sqrt(seeds) * generator.standard_normal(draws)
    deviations = noise.deviation * np.sqrt(generator.chisquare(seeds - 1, draws) / (seeds - 1))
    found = _expected_p(means, deviations, np.full(draws, seeds), noise) <= threshold
    return float((found & (np.sign(means) == np.sign(difference))).mean())


def _expected_p(means: Floats, deviations: Floats, seeds: Integers, noise: Noise) -> Floats:
    """p values of differences (from the margin) with these numbers of seeds and this noise of the images."""
    by_seed = deviations**2 / seeds
    by_image = noise.shared + noise.own / seeds
    both = by_seed + noise.shared
    freedom = both**2 / _positive(by_seed**2 / (seeds - 1) + noise.shared**2 / (noise.sequences - 1))
    sizes = np.abs(means)
    p_seeds = 2 * scipy.special.stdtr(seeds - 1, -sizes / np.sqrt(_positive(by_seed)))
    p_images = 2 * scipy.special.ndtr(-sizes / np.sqrt(_positive(by_image)))
    p_both = 2 * scipy.special.stdtr(freedom, -sizes / np.sqrt(_positive(both)))
    largest: Floats = np.maximum(np.maximum(p_seeds, p_images), p_both)
    return largest


def _positive(values: Floats) -> Floats:
    positive: Floats = np.maximum(values, np.finfo(float).tiny)
    return positive


def _both(noise: Noise) -> tuple[float, float]:
    """Standard error of the mean difference over seeds and images, and its degrees of freedom."""
    by_seed = noise.deviation**2 / noise.seeds
    variance = by_seed + noise.shared
    spread = by_seed**2 / (noise.seeds - 1) + noise.shared**2 / max(noise.sequences - 1, 1)
    return math.sqrt(variance), variance**2 / spread if spread else float(noise.seeds - 1)


def interval(mean: float, error: float, freedom: float) -> Interval:
    """Student's interval at 95 % of a mean, from its standard error and its degrees of freedom."""
    half = -float(scipy.special.stdtrit(freedom, LEVEL / 2)) * error
    return Interval(mean - half, mean + half)


def _p(difference: float, error: float, freedom: float) -> float:
    if error == 0:
        return 0.0 if difference else 1.0
    return float(2 * scipy.special.stdtr(freedom, -abs(difference) / error))
