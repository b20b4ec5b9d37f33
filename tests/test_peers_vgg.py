"""The systems on VGG-16: sizes of the references, and what each adds to the trunk."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import models
from models.backbones import vgg

NARROW = "vgg8_bn_narrow"
SYSTEMS = ["fcn8s", "crf_rnn", "deeplab", "dilation10"]


def parameters(name: str, num_classes: int, **options: Any) -> int:
    with torch.device("meta"):
        model = models.create(name, num_classes, **options)
    return sum(parameter.numel() for parameter in model.parameters())


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("fcn8s", 134),  # Long et al., table 1
        ("crf_rnn", 134),  # FCN-8s, and a few hundred of the CRF
        ("deeplab", 20.5),  # Chen et al., table 2
        ("dilation10", 134),  # the front end is as wide as FCN-8s
    ],
)
def test_parameters_are_the_references(name: str, millions: float) -> None:
    """With Pascal's 21 classes, as the references count."""
    assert parameters(name, 21) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("size", [(64, 96), (37, 51), (1, 9)])
def test_every_system_segments_at_the_inputs_own_resolution(name: str, size: tuple[int, int]) -> None:
    model = models.create(name, 3, backbone=NARROW).eval()
    prediction = model(images(2, 3, *size))
    assert prediction.logits.shape == (2, 3, *size)
    assert prediction.logits.isfinite().all()
    assert not prediction.auxiliary


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_parameter_of_a_system_learns(name: str) -> None:
    torch.manual_seed(0)
    model = models.create(name, 3, backbone=NARROW).train()
    labels = torch.randint(0, 3, (2, 40, 56))
    for _ in range(2):  # classifiers that start at zero pass nothing on at first
        terms = model.loss(model(images(2, 3, 40, 56)), labels)
        model.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter -= 0.1 * parameter.grad
    assert all(bool(p.grad.any()) for p in model.parameters() if p.grad is not None and p.ndim > 1)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_backbone_that_is_no_vgg_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="unknown backbone 'vgg19'; did you mean 'vgg16'"):
        models.create(name, 3, backbone="vgg19")


def test_a_pooling_that_does_not_shrink_makes_later_convolutions_dilate() -> None:
    poolings = (*(vgg.Pooling(),) * 3, None, None)
    with torch.device("meta"):
        trunk = vgg.VGG("vgg16", levels=(3, 6), poolings=poolings)
        features = trunk(torch.empty(1, 3, 64, 96))
    dilations = [m.dilation[0] for m in trunk.modules() if isinstance(m, torch.nn.Conv2d)]
    assert dilations == [1] * 10 + [2] * 3 + [4, 1]
    assert [tuple(feature.shape) for feature in features] == [(1, 256, 8, 12), (1, 4096, 8, 12)]
    assert trunk.strides == [8, 8]


def test_fc6_takes_evenly_spaced_weights_of_a_larger_one() -> None:
    weight = torch.arange(8.0)[:, None, None, None] + 100 * torch.arange(7.0).expand(1, 1, 7, 7)
    taken = vgg._decimated(weight.expand(8, 3, 7, 7), (2, 3, 3, 3))
    assert taken[:, 0, 0, 0].tolist() == [0, 4]
    assert taken[0, 0, 0].tolist() == [0, 300, 600]


def test_fcn8s_starts_from_bilinear_upsampling() -> None:
    model = models.create("fcn8s", 3, backbone=NARROW)
    coarse = torch.zeros(1, 3, 6, 6)
    coarse[0, 1, 2:4, 2:4] = 1.0
    doubled = model.scores.doublings[0](coarse)
    expected = torch.nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(doubled[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1])
