"""The dense CRF's speed: ten updates on 512 x 1024 with 19 classes are to take at most 6 s on two cores."""

from __future__ import annotations

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn import functional as F

from models.parts.dense_crf import Bandwidths, DenseCRF


def test_ten_updates_of_a_street_sized_image(benchmark: BenchmarkFixture) -> None:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 16, 32, generator=generator)
    images = F.interpolate(coarse, (512, 1024), mode="bicubic")
    images += 0.07 * torch.randn(1, 3, 512, 1024, generator=generator)  # noise of four levels
    scores = torch.randn(1, 19, 512, 1024, generator=generator)
    crf = DenseCRF(19, Bandwidths(50, 10, 3), appearance_weight=5, smoothness_weight=3)
    with torch.inference_mode():
        marginals = benchmark.pedantic(crf, (scores, images, 10), rounds=3, warmup_rounds=1)
    assert marginals.isfinite().all()
