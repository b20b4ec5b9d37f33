"""How many street scenes a second; at 64 x 128 at least 100 are wanted on one core.

``extra_info`` of the report (``--benchmark-json``) holds images a second.
"""

from __future__ import annotations

from itertools import count

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from experiments.datasets.scenes import draw_scene


@pytest.mark.parametrize(("height", "width", "scenes"), [(64, 128, 50), (512, 1024, 2)])
def test_scenes_a_second(benchmark: BenchmarkFixture, height: int, width: int, scenes: int) -> None:
    """Each round draws other scenes: they cost unequally much."""
    index = count()

    def draw() -> None:
        for _ in range(scenes):
            draw_scene(0, next(index), height, width)

    benchmark.pedantic(draw, rounds=5, warmup_rounds=1)
    benchmark.extra_info["images_per_second"] = scenes / benchmark.stats.stats.median
