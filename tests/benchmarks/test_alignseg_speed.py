"""Speed of AlignSeg's alignment and of online hard example mining, each beside what it replaces.

AlignFA should cost at most 1.25 times plain bilinear upsampling in its place, at 1024 x 2048.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from side_by_side import time_beside

from experiments.training.losses import LOSSES
from models.alignseg import AlignSeg, Shifted
from models.segmenter import IGNORE_LABEL

ALIGN_FA: tuple[Shifted, Shifted] = ("both", "none")


def test_inference_beside_bilinear_upsampling(benchmark: BenchmarkFixture) -> None:
    model, plain = AlignSeg(19).eval(), AlignSeg(19, align_fa="none").eval()
    images = torch.randn(1, 3, 1024, 2048)
    with torch.inference_mode():
        time_beside(
            benchmark, lambda: model(images), lambda: plain(images), than="bilinear upsampling", rounds=3
        )


def test_a_training_step_beside_bilinear_upsampling(benchmark: BenchmarkFixture) -> None:
    images, labels = torch.randn(4, 3, 64, 128), torch.randint(19, (4, 64, 128))

    def step(model: AlignSeg) -> None:
        terms = model.loss(model(images), labels)
        torch.stack(list(terms.values())).sum().backward()

    model, plain = (AlignSeg(19, backbone="resnet18s", align_fa=fa).train() for fa in ALIGN_FA)
    time_beside(benchmark, lambda: step(model), lambda: step(plain), than="bilinear upsampling", rounds=10)


@pytest.mark.parametrize("name", ["cross-entropy", "ohem"])
def test_loss_with_and_without_hard_example_mining(benchmark: BenchmarkFixture, name: str) -> None:
    criterion = LOSSES[name]()
    logits, labels = torch.randn(2, 19, 256, 512), torch.randint(19, (2, 256, 512))
    labels[:, :32] = IGNORE_LABEL
    benchmark.pedantic(criterion, (logits, labels), rounds=5, warmup_rounds=1)
