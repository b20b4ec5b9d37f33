"""The networks beside the published formulation written plainly: results equal to 1e-5, times beside it.

The plain side is ``experiments.measuring.formulations``; AlignSeg's counts exactly the multiply-accumulates
of the authors' code. AlignSeg R101 is to be 1.4 times as fast in inference; SeMask-T 1.2 times, and 1.15
times in a training step.

What was tried on a CPU, with CPU seconds of one thread at 192 x 384 and the published formulation as 1:

- 1x1 convolutions before the upsampling, no auxiliary head: 1.07, kept;
- batch norms folded besides, expected to give 1.1 as they took 10 % of a profile: 1.09, kept;
- weights channels last besides, which spares oneDNN the reordering: 1.33, kept;
- weights packed in oneDNN's own order besides, expected to give 1.1, as each of a hundred calls reordered
  them. At 384 x 768 on a later processor 1.33 before and 1.47 with it, kept; packed without saying for which
  input size 1.03, dropped.

And for SeMask-T at 512 x 512 with 150 classes:

- maps that stay channels last between transformer and decoder, and the loss over rows of classes: as before;
- windows by one gather in place of padding, rolling and cutting: 0.35 to 0.45 of their time, of which a
  forward pass at 512 x 512 has 50 ms in 1.7 s, kept;
- PyTorch's fused attention in inference: 0.7 to 0.9 of the plain formula's time, kept; in training 1.0 to
  1.2, dropped there; scores and bias in one product (``baddbmm``): 1.0 to 1.2, dropped;
- linear layers packed, with the GELU behind them: 0.67 of a wide layer's time and its GELU's, kept.

Together 1.56 in inference and 1.23 in a training step with one thread, 1.29 and 1.27 with two.
"""

from __future__ import annotations

import copy

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from side_by_side import time_beside
from torch import Tensor, nn
from torch.nn import functional as F

import models
from experiments.measuring.formulations import write_as_published
from models.segmenter import IGNORE_LABEL, LabelCounts


def pair(name: str, num_classes: int) -> tuple[models.Segmenter, models.Segmenter]:
    """The network and its published formulation with the same weights and running statistics."""
    torch.manual_seed(0)
    ours = models.create(name, num_classes)
    for norm in ours.modules():
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
    plain = copy.deepcopy(ours)
    write_as_published(plain)
    plain.criterion = plain.auxiliary_criterion = as_written
    return ours, plain


def as_written(logits: Tensor, labels: Tensor, whole: LabelCounts | None = None) -> Tensor:
    """Cross-entropy as the authors of all four call it, which are never given a part of a batch."""
    assert whole is None
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL)


@pytest.mark.parametrize(
    ("name", "num_classes", "size"),
    [("alignseg", 19, (384, 768)), ("gun", 19, (512, 1024)), ("semask", 150, (512, 512))],
)
def test_inference(benchmark: BenchmarkFixture, name: str, num_classes: int, size: tuple[int, int]) -> None:
    ours, plain = (model.eval() for model in pair(name, num_classes))
    ours.for_inference()  # as evaluation and timing do
    images = torch.randn(1, 3, *size)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images).logits, plain(images).logits, rtol=1e-5, atol=1e-5)
        time_beside(
            benchmark, lambda: ours(images), lambda: plain(images), than="the published formulation", rounds=5
        )


@pytest.mark.parametrize(
    ("name", "num_classes", "size"),
    [("alignseg", 19, (192, 384)), ("gun", 19, (256, 512)), ("semask", 150, (512, 512))],
)
def test_training_step(
    benchmark: BenchmarkFixture, name: str, num_classes: int, size: tuple[int, int]
) -> None:
    ours, plain = (model.train() for model in pair(name, num_classes))
    images, labels = torch.randn(2, 3, *size), torch.randint(num_classes, (2, *size))

    def step(model: models.Segmenter) -> None:
        model.zero_grad(set_to_none=True)
        torch.stack(list(model.loss(model(images), labels).values())).sum().backward()

    time_beside(
        benchmark, lambda: step(ours), lambda: step(plain), than="the published formulation", rounds=3
    )
