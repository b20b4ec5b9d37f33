"""What repeated timings say: median, an interval for it, and no more digits than it allows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

TIMING_COLUMNS = ("latency_ms_median", "latency_ms_p95", "fps", "latency_ms_low", "latency_ms_high")
"""What ``describe`` gives."""


def describe(seconds: Sequence[float], batch: int) -> dict[str, Any]:
    """Latency in milliseconds and images a second.

    Args:
        seconds: of single forward passes, at least one.
        batch: images of a pass.

    Returns:
        ``latency_ms_median``, ``latency_ms_p95`` and ``fps``, rounded to the digits that the interval
        allows; ``latency_ms_low`` and ``latency_ms_high``, a 95 % interval for the median.
    """
    ordered = sorted(1000 * value for value in seconds)
    median = statistics.median(ordered)
    low, high = interval(ordered)
    digits = significant_digits(median, low, high)
    return {
        "latency_ms_median": rounded(median, digits),
        "latency_ms_p95": rounded(ordered[math.ceil(0.95 * len(ordered)) - 1], digits),
        "fps": rounded(1000 * batch / median, digits),
        "latency_ms_low": rounded(low, digits),
        "latency_ms_high": rounded(high, digits),
    }


def interval(ordered: Sequence[float]) -> tuple[float, float]:
    """An interval that holds the median with 95 %, whatever the distribution: two order statistics.

    Of fewer than six values no two are that far apart, and the interval is their whole range.

    Args:
        ordered: ascending.
    """
    count = len(ordered)
    below, rank = 0.5**count, 0
    # The chance that the median lies below the value of a rank is a binomial tail.
    while below <= 0.025:
        rank += 1
        below += math.comb(count, rank) * 0.5**count
    rank = max(rank - 1, 0)
    return ordered[rank], ordered[count - 1 - rank]


def significant_digits(value: float, low: float, high: float) -> int:
    """Digits of a value that are known, from 2 to 4: one beyond those that its interval's ends share."""
    if high <= low:
        return 4
    known = math.log10(value / ((high - low) / 2))
    return min(4, max(2, math.floor(known) + 1))


def rounded(value: float, digits: int) -> float:
    """A number with some significant digits; 0 stays 0."""
    return float(f"{value:.{digits}g}")
