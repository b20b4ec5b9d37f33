from __future__ import annotations

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from experiments.datasets.scenes import draw_scene
from experiments.scoring import metrics

WIDTHS = [1, 2, 3, 4, 6, 8, 12, 16]


@pytest.fixture(scope="module")
def street() -> tuple[np.ndarray, np.ndarray]:
    """Labels of 1024 x 2048 and a prediction that is wrong near their boundaries."""
    _, labels = draw_scene(0, 0, 1024, 2048)
    shifted = np.roll(labels, (2, 3), (0, 1))
    return labels, np.where(shifted == 255, 0, shifted).astype(np.uint8)


def test_trimap_matrices_of_a_cityscapes_sized_image(
    benchmark: BenchmarkFixture, street: tuple[np.ndarray, np.ndarray]
) -> None:
    benchmark(metrics.trimap_matrices, *street, WIDTHS, 19)


def test_boundary_distance_of_a_cityscapes_sized_image(
    benchmark: BenchmarkFixture, street: tuple[np.ndarray, np.ndarray]
) -> None:
    benchmark(metrics.squared_boundary_distance, street[0], WIDTHS[-1])
