"""GUN's speed: the guided sampler beside its plain composition, and what guidance costs the network.

Groups put side by side what is to be compared; run with ``--benchmark-group-by=group``.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
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


@pytest.mark.benchmark(group="sampler, forward")
@pytest.mark.parametrize("sampler", [guided_upsample, composition])
def test_sampler_forward(benchmark: BenchmarkFixture, sampler: Sampler) -> None:
    features, offsets = example()
    with torch.inference_mode():
        sampled = benchmark(sampler, features, offsets)
    torch.testing.assert_close(sampled, composition(features, offsets), rtol=0, atol=1e-4)


@pytest.mark.benchmark(group="sampler, forward and backward")
@pytest.mark.parametrize("sampler", [guided_upsample, composition])
def test_sampler_forward_and_backward(benchmark: BenchmarkFixture, sampler: Sampler) -> None:
    features, offsets = example()
    upstream = torch.ones(1, 19, 256, 512)

    def step() -> tuple[Tensor, ...]:
        return torch.autograd.grad(sampler(features, offsets), (features, offsets), upstream)

    assert all(gradient.isfinite().all() for gradient in benchmark(step))


@pytest.mark.benchmark(group="GUN, one image of 128 x 256")
@pytest.mark.parametrize("guidance", ["none", "large-rf", "high-res", "fusion"])
def test_inference(benchmark: BenchmarkFixture, guidance: str) -> None:
    model = models.create("gun", 19, guidance=guidance).eval()
    images = torch.randn(1, 3, 128, 256)
    with torch.inference_mode():
        prediction = benchmark.pedantic(model, (images,), rounds=5, warmup_rounds=1)
    assert prediction.logits.shape == (1, 19, 128, 256)
