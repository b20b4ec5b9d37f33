"""What the guidance and the activation checkpointing cost in a training step of two stages.

Each step is timed in turn with one of two stages that have no guidance, so that both see the same machine;
``extra_info`` of the report (``--benchmark-json``) holds the ratio of their median times. The guidance may
cost 10 %; recomputing activations costs about one more forward pass.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from models.spgnet import SPGNet


def training_step(**options: Any) -> Callable[[], torch.Tensor]:
    """Forward and backward of four 128 x 256 images through two ResNet-18 stages."""
    torch.manual_seed(0)
    model = SPGNet(19, backbone="resnet18", **options)
    images, labels = torch.randn(4, 3, 128, 256), torch.randint(19, (4, 128, 256))

    def step() -> torch.Tensor:
        model.zero_grad(set_to_none=True)
        loss = torch.stack(list(model.loss(model(images), labels).values())).sum()
        loss.backward()
        return loss

    return step


@pytest.mark.parametrize("options", [{}, {"checkpoint": True}], ids=["spg", "spg-checkpoint"])
def test_training_step_beside_two_stages_without_guidance(
    benchmark: BenchmarkFixture, options: dict[str, Any]
) -> None:
    step, plain_step = training_step(**options), training_step(reweighting="none")
    plain_times = []

    def time_plain_step() -> None:
        start = time.perf_counter()
        plain_step()
        plain_times.append(time.perf_counter() - start)

    loss = benchmark.pedantic(step, setup=time_plain_step, rounds=6, warmup_rounds=1)
    assert loss.isfinite()
    if benchmark.enabled:
        ratio = benchmark.stats.stats.median / statistics.median(plain_times[1:])
        benchmark.extra_info["ratio to two stages without guidance"] = round(ratio, 3)
