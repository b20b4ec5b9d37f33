"""Timing one thing beside another, for the benchmarks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from pytest_benchmark.fixture import BenchmarkFixture


def time_beside(
    benchmark: BenchmarkFixture,
    step: Callable[[], Any],
    other: Callable[[], Any],
    *,
    than: str,
    rounds: int = 6,
) -> Any:
    """Times ``step``, each round after one of ``other``, so that both see the same machine.

    The ratio of their median times goes to the report's ``extra_info`` (``--benchmark-json``), under
    "times " and ``than``.

    Returns:
        What the last ``step`` returned.
    """
    others: list[float] = []

    def time_other() -> None:
        start = time.perf_counter()
        other()
        others.append(time.perf_counter() - start)

    result = benchmark.pedantic(step, setup=time_other, rounds=rounds, warmup_rounds=1)
    if benchmark.enabled:
        ratio = benchmark.stats.stats.median / statistics.median(others[1:])
        benchmark.extra_info[f"times {than}"] = round(ratio, 3)
    return result
