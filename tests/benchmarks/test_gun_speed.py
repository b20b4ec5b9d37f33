"""GUN's speed: the guided sampler beside its plain composition, and what guidance costs the network.

The sampler is to take no longer than the composition, and ``gun-fusion`` at most 1.15 times as long as
``gun-multi-shared`` at 512 x 1024.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from side_by_side import time_beside
from torch import Tensor
from torch.nn import functional as F

import models
from models.parts.sampling import guided_upsample

Sampler = Callable[[Tensor, Tensor], Tensor]


def composition(features: Tensor, offsets: Tensor) -> Tensor:
    """Guided upsampling as one writes it down: the whole grid, plus offsets, into ``grid_sample``."""
    height, width = offsets.shape[-2:]
    y, x = torch.meshgrid(
        torch.linspace(1 / height - 1, 1 - 1 / height, height, device=offsets.device),
        torch.linspace(1 / width - 1, 1 - 1 / width, width, device=offsets.device),
        indexing="ij",
    )
    unit = torch.tensor([2 / width, 2 / height], device=offsets.device)
    grid = torch.stack((x, y), dim=-1) + offsets.permute(0, 2, 3, 1) * unit
    return F.grid_sample(features, grid, mode="bilinear", padding_mode="border", align_corners=False)


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(1, 19, 32, 64, generator=generator).requires_grad_()
    return features, torch.randn(1, 2, 256, 512, generator=generator).requires_grad_()


def test_sampler_forward_beside_its_composition(benchmark: BenchmarkFixture) -> None:
    features, offsets = example()
    with torch.inference_mode():
        sampled = time_beside(
            benchmark,
            lambda: guided_upsample(features, offsets),
            lambda: composition(features, offsets),
            than="the composition",
            rounds=30,
        )
    torch.testing.assert_close(sampled, composition(features, offsets), rtol=0, atol=1e-4)


def test_sampler_forward_and_backward_beside_its_composition(benchmark: BenchmarkFixture) -> None:
    features, offsets = example()
    upstream = torch.ones(1, 19, 256, 512)

    def step(sampler: Sampler) -> tuple[Tensor, ...]:
        return torch.autograd.grad(sampler(features, offsets), (features, offsets), upstream)

    gradients = time_beside(
        benchmark, lambda: step(guided_upsample), lambda: step(composition), than="the composition", rounds=30
    )
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("guidance", ["large-rf", "high-res", "fusion"])
def test_inference_beside_bilinear_upsampling(benchmark: BenchmarkFixture, guidance: str) -> None:
    model, plain = (models.create("gun", 19, guidance=kind).eval() for kind in (guidance, "none"))
    images = torch.randn(1, 3, 512, 1024)
    with torch.inference_mode():
        prediction = time_beside(
            benchmark, lambda: model(images), lambda: plain(images), than="gun-multi-shared"
        )
    assert prediction.logits.shape == (1, 19, 512, 1024)
