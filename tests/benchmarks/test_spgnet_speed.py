"""What the guidance and the activation checkpointing cost in a training step of two stages.

In the profile ``quick`` (64 x 128, four images, ResNet-18) the guidance may cost 10 %; recomputing
activations costs about one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from side_by_side import time_beside

from models.spgnet import SPGNet


def training_step(height: int, width: int, **options: Any) -> Callable[[], torch.Tensor]:
    """Forward and backward of four images through two ResNet-18 stages."""
    torch.manual_seed(0)
    model = SPGNet(11, backbone="resnet18", **options)
    images, labels = torch.randn(4, 3, height, width), torch.randint(11, (4, height, width))

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        loss = torch.stack(list(model.loss(model(images), labels).values())).sum()
        loss.backward()
        return loss

    return step


@pytest.mark.parametrize("size", [(64, 128), (128, 256)], ids=["64x128", "128x256"])
@pytest.mark.parametrize("options", [{}, {"checkpoint": True}], ids=["spg", "spg-checkpoint"])
def test_training_step_beside_two_stages_without_guidance(
    benchmark: BenchmarkFixture, size: tuple[int, int], options: dict[str, Any]
) -> None:
    step, plain_step = training_step(*size, **options), training_step(*size, reweighting="none")
    loss = time_beside(benchmark, step, plain_step, than="two stages without guidance", rounds=10)
    assert loss.isfinite()
