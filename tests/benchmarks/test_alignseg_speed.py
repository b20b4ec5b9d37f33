"""Speed of AlignSeg's alignment and of online hard example mining, each beside what it replaces.

AlignFA should cost at most 1.25 times plain bilinear upsampling in its place, at 1024 x 2048.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from experiments.losses import LOSSES
from models.alignseg import AlignSeg, Shifted
from models.segmenter import IGNORE_LABEL


@pytest.mark.parametrize("align_fa", ["none", "both"])
def test_inference_with_and_without_alignment(benchmark: BenchmarkFixture, align_fa: Shifted) -> None:
    model = AlignSeg(19, align_fa=align_fa).eval()
    images = torch.randn(1, 3, 256, 512)
    with torch.inference_mode():
        benchmark.pedantic(model, (images,), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("align_fa", ["none", "both"])
def test_a_training_step_with_and_without_alignment(benchmark: BenchmarkFixture, align_fa: Shifted) -> None:
    model = AlignSeg(19, backbone="resnet18s", align_fa=align_fa).train()
    images, labels = torch.randn(4, 3, 64, 128), torch.randint(19, (4, 64, 128))

    def step() -> None:
        terms = model.loss(model(images), labels)
        torch.stack(list(terms.values())).sum().backward()

    benchmark.pedantic(step, rounds=10, warmup_rounds=2)


@pytest.mark.parametrize("name", ["cross-entropy", "ohem"])
def test_loss_with_and_without_hard_example_mining(benchmark: BenchmarkFixture, name: str) -> None:
    criterion = LOSSES[name]()
    logits, labels = torch.randn(2, 19, 256, 512), torch.randint(19, (2, 256, 512))
    labels[:, :32] = IGNORE_LABEL
    benchmark.pedantic(criterion, (logits, labels), rounds=5, warmup_rounds=1)
