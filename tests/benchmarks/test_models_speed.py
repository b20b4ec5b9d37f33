"""Forward and backward of every main model, and of what a user would pick instead, at one small size.

The others are random weights at an equal or the nearest backbone: they say what the same image costs there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

import models

SIZE = (128, 256)
MAIN: dict[str, dict[str, Any]] = {
    "spgnet": {"backbone": "resnet50"},
    "gun": {"backbone": "drn_d_22"},
    "semask": {"backbone": "swin_tiny_patch4_window7_224"},
    "alignseg": {"backbone": "resnet101s"},
}


@pytest.mark.parametrize("name", MAIN)
def test_forward(benchmark: BenchmarkFixture, name: str) -> None:
    model = models.create(name, 19, **MAIN[name]).eval()
    images = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        logits = benchmark.pedantic(lambda: model(images).logits, rounds=5, warmup_rounds=1)
    assert logits.shape == (1, 19, *SIZE)


@pytest.mark.parametrize("name", MAIN)
def test_training_step(benchmark: BenchmarkFixture, name: str) -> None:
    model = models.create(name, 19, **MAIN[name]).train()
    images, labels = torch.randn(2, 3, *SIZE), torch.randint(19, (2, *SIZE))

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss = torch.stack(list(model.loss(model(images), labels).values())).sum()
        loss.backward()
        return loss

    assert benchmark.pedantic(step, rounds=3, warmup_rounds=1).isfinite()


def deeplab() -> nn.Module:
    smp = pytest.importorskip("segmentation_models_pytorch")
    network: nn.Module = smp.DeepLabV3Plus("resnet50", encoder_weights=None, classes=19)
    return network


def segformer() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"depths": [3, 4, 6, 3], "hidden_sizes": [64, 128, 320, 512]}  # MiT-B2, 25 M like Swin-T
    config = transformers.SegformerConfig(num_labels=19, decoder_hidden_size=768, **sizes)
    network: nn.Module = transformers.SegformerForSemanticSegmentation(config)
    return network


def mask2former() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    swin = transformers.SwinConfig(
        depths=[2, 2, 6, 2], out_features=["stage1", "stage2", "stage3", "stage4"]
    )  # Swin-T
    config = transformers.Mask2FormerConfig(num_labels=19, backbone_config=swin)
    network: nn.Module = transformers.Mask2FormerForUniversalSegmentation(config)
    return network


@pytest.mark.parametrize("create", [deeplab, segformer, mask2former])
def test_forward_of_what_a_user_would_pick_instead(
    benchmark: BenchmarkFixture, create: Callable[[], nn.Module]
) -> None:
    model = create().eval()
    images = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        benchmark.pedantic(lambda: model(images), rounds=5, warmup_rounds=1)
