"""Suites of experiments whose true effects are known, as counts by image: they judge the statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.scoring import statistics
from experiments.scoring.statistics import Effect, Integers

BASE = (0.3, 0.5, 0.7)
"""IoU of the classes."""


@dataclass(frozen=True)
class Chance:
    """Standard deviations of IoU, as shares."""

    seeds: float
    """Between trainings of one experiment."""
    images: float
    """Of one experiment on one image from what it does on all; images of one sequence share it."""
    cells: float = 0.03
    """Of one training on one class of one image."""
    together: int = 1
    """Images of a sequence."""


REGIMES = {
    "training noise": Chance(seeds=0.01, images=0.0),
    "both alike": Chance(seeds=0.01, images=0.04),
    "image noise": Chance(seeds=0.001, images=0.06),
    "videos": Chance(seeds=0.003, images=0.04, together=10),
}


class Suite:
    """A baseline and further experiments, trained with some seeds and scored on the same images.

    Args:
        effects: true difference of each further experiment from the baseline, in points of mIoU.
        chance: what else decides a score.
        seeds: S.
        images: N; of which as many sequences as ``chance`` says.
        number: of the suite.
        as_sequences: whether they are resampled as such, or each image by itself.
    """

    def __init__(
        self,
        effects: Sequence[float],
        chance: Chance,
        seeds: int,
        images: int,
        number: int,
        *,
        as_sequences: bool = True,
    ):
        self.generator = np.random.default_rng((1, number))
        self.chance, self.seeds, self.images = chance, seeds, images
        sizes = self.generator.lognormal(8, 0.7, (images, len(BASE)))
        # A class is missing from a fifth of the images, as in photographs.
        self.unions = np.rint(sizes * (self.generator.random(sizes.shape) > 0.2)).astype(np.int64)
        self.sequences = np.arange(images) // chance.together
        self.drawn = self.sequences.tolist() if as_sequences else range(images)
        self.weights = statistics.resample(self.drawn, 2500, number)
        self.baseline = self._score(0.0)
        self.comparisons: list[Effect] = [self._compare(effect) for effect in effects]

    def verdicts(self) -> list[int]:
        """1 for supported, -1 for contradicted, 0 for open, of the claims that each beats the baseline."""
        found = statistics.adjusted([effect.p for effect in self.comparisons])
        return [
            int(np.sign(effect.difference)) * (p <= statistics.LEVEL)
            for effect, p in zip(self.comparisons, found, strict=True)
        ]

    def _compare(self, effect: float) -> Effect:
        point, resampled = (100 * (x - y) for x, y in zip(self._score(effect), self.baseline, strict=True))
        return statistics.compare(point[0], resampled, self.drawn)

    def _score(self, effect: float) -> tuple[np.ndarray, np.ndarray]:
        draw = self.generator.standard_normal
        unions = np.broadcast_to(self.unions, (self.seeds, *self.unions.shape))
        iou = (
            np.array(BASE)
            + effect / 100
            + self.chance.seeds * draw((self.seeds, 1, 1))
            + self.chance.images * draw((self.images, 1))[self.sequences]
            + self.chance.cells * draw(unions.shape)
        )
        hits: Integers = np.rint(unions * iou.clip(0, 1)).astype(np.int64)
        once = np.ones((1, self.images), np.uint16)
        return tuple(statistics.resampled_mean_iou(hits, unions, w) for w in (once, self.weights))  # type: ignore[return-value]
