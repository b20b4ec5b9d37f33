"""What Semantic Layers and their supervision cost in a training step, and which attention is faster.

At 512 x 512 with 150 classes a step is to take at most 1.25 times as long as the plain transformer's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from side_by_side import time_beside
from torch import Tensor
from torch.nn import functional as F

from models.semask import SeMaskSegmenter


def training_step(**options: Any) -> Callable[[], Tensor]:
    """Forward and backward of one 512 x 512 image with 150 classes."""
    torch.manual_seed(0)
    model = SeMaskSegmenter(150, **options).train()
    images, labels = torch.randn(1, 3, 512, 512), torch.randint(150, (1, 512, 512))

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = torch.stack(list(model.loss(model(images), labels).values())).sum()
        loss.backward()
        return loss

    return step


def test_training_step_beside_the_plain_transformer(benchmark: BenchmarkFixture) -> None:
    step, plain_step = training_step(), training_step(semantic_stages=[])
    assert time_beside(benchmark, step, plain_step, than="the plain transformer", rounds=5).isfinite()


def plain_formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return (query @ key.transpose(-2, -1)).softmax(dim=-1) @ value


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, scale=1.0)


@pytest.mark.parametrize("attention", [plain_formula, fused])
@pytest.mark.parametrize("num_classes", [19, 150])
@pytest.mark.parametrize(
    ("windows", "tokens", "channels"), [(100, 49, 192), (1, 1024, 384)], ids=["windows", "whole-map"]
)
def test_semantic_attention_forward_and_backward(
    benchmark: BenchmarkFixture,
    attention: Callable[[Tensor, Tensor, Tensor], Tensor],
    num_classes: int,
    windows: int,
    tokens: int,
    channels: int,
) -> None:
    torch.manual_seed(0)
    widths = (num_classes, num_classes, channels)
    inputs = [torch.randn(windows, tokens, width, requires_grad=True) for width in widths]

    def step() -> Tensor:
        result = attention(*inputs)
        result.sum().backward()
        return result

    result = benchmark.pedantic(step, rounds=5, warmup_rounds=1)
    torch.testing.assert_close(result, plain_formula(*inputs), rtol=0, atol=1e-5)
