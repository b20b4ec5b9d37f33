"""Random numbers that are the same in every version of NumPy and on every platform."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


class Dice:
    """Draws in one fixed order from the seed sequence of ``entropy``.

    Only the raw 64-bit words of PCG64 are used: NumPy promises that they stay as they are, which it does
    not promise of what ``Generator`` makes of them. Single numbers come from blocks, which is far cheaper
    than a call of ``Generator`` each.
    """

    _BLOCK = 2048

    def __init__(self, entropy: Sequence[int]):
        self._bits = np.random.PCG64(np.random.SeedSequence(entropy))
        self._unit = self._units().__next__

    def _units(self) -> Iterator[float]:
        while True:
            yield from ((self._bits.random_raw(self._BLOCK) >> np.uint64(11)) * 2.0**-53).tolist()

    def between(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * self._unit()

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._unit() < probability

    def below(self, stop: int) -> int:
        """A whole number in [0, stop)."""
        return int(stop * self._unit())

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``, each as likely as the others."""
        return items[int(len(items) * self._unit())]

    def pick_weighted(self, weights: dict[T, float]) -> T:
        """A key, as likely as its weight is large."""
        reach = self._unit() * sum(weights.values())
        for item, edge in zip(weights, accumulate(weights.values()), strict=True):
            if reach < edge:
                return item
        return item  # only rounding leads here

    def octets(self, *shape: int) -> NDArray[np.uint8]:
        """An array of whole numbers in [0, 256)."""
        count = int(np.prod(shape))
        words = self._bits.random_raw(count // 8 + 1)
        return words.astype("<u8", copy=False).view(np.uint8)[:count].reshape(shape)
