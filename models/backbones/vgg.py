"""VGG networks (Simonyan and Zisserman, ICLR 2015) as dense predictors take them.

Five stages of 3 x 3 convolutions with a pooling after each, and the two fully connected layers of the
classifier as convolutions, fc6 and fc7. The systems built on VGG-16 differ in which poolings they keep, which
convolutions dilate in exchange, and how wide and how far fc6 sees; this module takes that as arguments.

The fully connected layers have eight times the channels of the last stage, 4096 in VGG-16. That rule is what
scales them with the network. ``vgg8_bn_narrow`` is this suite's own, for runs on a CPU: one convolution a
stage, an eighth of the channels, fc6 of 3 x 3, and batch norm, with which it learns from scratch.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.vgg import make_layers

from models.backbones.base import Backbone, no_imagenet_weights
from models.backbones.timm_models import timm_model


@dataclass(frozen=True)
class _Variant:
    convolutions: tuple[int, ...] = (2, 2, 3, 3, 3)
    """In each stage."""
    channels: tuple[int, ...] = (64, 128, 256, 512, 512)
    norm: bool = False
    kernel_size: int = 7
    """Of fc6: the side of the last pooled map, in the classifier."""
    published: bool = True


_VARIANTS = {
    "vgg16": _Variant(),
    "vgg16_bn": _Variant(norm=True),
    "vgg8_bn_narrow": _Variant((1,) * 5, (8, 16, 32, 64, 64), norm=True, kernel_size=3, published=False),
}
_FULLY_CONNECTED_RATIO = 8

NAMES = tuple(_VARIANTS)
"""Names that ``VGG`` takes."""


@dataclass(frozen=True)
class Pooling:
    """A max pooling: its window and its stride, in pixels."""

    size: int = 2
    stride: int = 2


@dataclass(frozen=True)
class FullyConnected:
    """How fc6 and fc7 become convolutions."""

    kernel_size: int | None = None
    """Of fc6; ``None`` is the classifier's own."""
    narrowing: int = 1
    """Divides the channels of both."""
    dilation: int | None = None
    """Of fc6; ``None`` makes up for the strides that the poolings lack."""


def check_name(name: str) -> None:
    """Raises ``ValueError``, with the nearest valid name, unless ``VGG`` knows the network."""
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES, n=1, cutoff=0)[0]
        raise ValueError(f"unknown backbone {name!r}; did you mean {close!r}?")


class VGG(Backbone):
    """A VGG network without its last, classifying layer.

    A convolution behind a pooling that does not shrink dilates as much as the pooling would have shrunk, so
    that it sees as far as in the classifier.

    Args:
        name: one of ``NAMES``.
        levels: stages whose features to return, ascending, out of 1 to 5, each after its pooling; 6 is
            fc7, after dropout.
        poolings: of the five stages; ``None`` leaves one out.
        fully_connected: what fc6 and fc7 are like; used if ``levels`` has 6.
        padded: whether convolutions keep the size (zeros around) or only return what they see whole
            (no padding at all).
        pretrained: ImageNet weights from timm's hub (``True``) or from a local file (its path). If fc6 is
            smaller than the classifier's, it takes evenly spaced weights of it (Chen et al., ICLR 2015,
            section 3.1).

    Attributes:
        margin: pixels on each side of the input that the features lose without padding.

    Raises:
        ValueError: an unknown name or level, no published weights, or a file that does not fit.
        FileNotFoundError: no weight file at the path.
        ConnectionError: the hub cannot be reached.
    """

    def __init__(
        self,
        name: str,
        *,
        levels: Sequence[int] = (5,),
        poolings: Sequence[Pooling | None] = (Pooling(),) * 5,
        fully_connected: FullyConnected | None = None,
        padded: bool = True,
        pretrained: bool | str = False,
    ):
        check_name(name)
        super().__init__()
        if not set(levels) <= set(range(1, 7)) or any(b <= a for a, b in pairwise((0, *levels))):
            raise ValueError(f"backbone {name!r} has no feature levels {list(levels)}; it has 1 to 6")
        self.levels = tuple(levels)
        self.poolings = tuple(poolings)
        variant = _VARIANTS[name]
        self.stages = nn.ModuleList()
        self.margin = 0
        widths, strides = [], []
        channels, stride = 3, 1
        for index, (count, width) in enumerate(zip(variant.convolutions, variant.channels, strict=True)):
            stage = make_layers([width] * count, batch_norm=variant.norm)
            stage[0] = nn.Conv2d(channels, width, 3)  # torchvision's takes an image
            dilation = 2**index // stride
            for convolution in (layer for layer in stage if isinstance(layer, nn.Conv2d)):
                convolution.dilation = (dilation, dilation)
                convolution.padding = (dilation, dilation) if padded else (0, 0)
                self.margin += 0 if padded else stride * dilation
            self.stages.append(stage)
            pooling = self.poolings[index]
            channels, stride = width, stride * (pooling.stride if pooling else 1)
            widths.append(channels)
            strides.append(stride)
        self.head: nn.Sequential | None = None
        if levels[-1] == 6:
            settings = fully_connected or FullyConnected()
            kernel_size = settings.kernel_size or variant.kernel_size
            dilation = settings.dilation or 32 // stride
            width = _FULLY_CONNECTED_RATIO * channels // settings.narrowing
            padding = dilation * (kernel_size // 2)
            self.margin += 0 if padded else stride * padding
            layers: list[nn.Module] = []
            for convolution in (
                nn.Conv2d(channels, width, kernel_size, padding=padding * padded, dilation=dilation),
                nn.Conv2d(width, width, 1),
            ):
                layers += [*_normed(convolution, variant.norm), nn.Dropout()]
            self.head = nn.Sequential(*layers)
            widths.append(width)
            strides.append(stride)
        self.channels = [widths[level - 1] for level in levels]
        self.strides = [strides[level - 1] for level in levels]
        _initialise(self)
        if pretrained:
            if pretrained is True and not variant.published:
                raise no_imagenet_weights(name)
            self._load_imagenet(name, pretrained)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Features of images (N, 3, H, W); with padding a side becomes ceil(side / stride)."""
        features = []
        x = images
        for level, (stage, pooling) in enumerate(zip(self.stages, self.poolings, strict=True), start=1):
            if level > self.levels[-1]:
                break
            x = stage(x)
            if pooling is not None:
                # Both ways a side becomes ceil(side / stride).
                even = pooling.size % 2 == 0
                x = F.max_pool2d(x, pooling.size, pooling.stride, (pooling.size - 1) // 2, ceil_mode=even)
            if level in self.levels:
                features.append(x)
        if self.head is not None:
            features.append(self.head(x))
        return features

    def _load_imagenet(self, name: str, source: bool | str) -> None:
        if source is not True and not _VARIANTS[name].published:
            raise no_imagenet_weights(name)
        classifier: Any = timm_model(name, source)
        layers = [layer for layer in classifier.features if not isinstance(layer, nn.MaxPool2d)]
        for own, trained in zip((m for stage in self.stages for m in stage.children()), layers, strict=True):
            own.load_state_dict(trained.state_dict())
        if self.head is None:
            return
        convolutions = [module for module in self.head if isinstance(module, nn.Conv2d)]
        trained_layers = (classifier.pre_logits.fc1, classifier.pre_logits.fc2)
        with torch.no_grad():
            for convolution, trained in zip(convolutions, trained_layers, strict=True):
                for parameter, theirs in zip(convolution.parameters(), trained.parameters(), strict=True):
                    parameter.copy_(_decimated(theirs, parameter.shape))


def sixth_block(name: str) -> nn.Sequential:
    """A wide convolution as fc6, and two of 3 x 3 with the channels of the last stage, which is their input.

    Args:
        name: one of ``NAMES``; whether there is batch norm follows from it.
    """
    variant = _VARIANTS[name]
    channels = variant.channels[-1]
    width = _FULLY_CONNECTED_RATIO * channels
    block = nn.Sequential(
        *_normed(nn.Conv2d(channels, width, variant.kernel_size, padding="same"), variant.norm),
        *_normed(nn.Conv2d(width, channels, 3, padding="same"), variant.norm),
        *_normed(nn.Conv2d(channels, channels, 3, padding="same"), variant.norm),
    )
    _initialise(block)
    return block


def _normed(convolution: nn.Conv2d, norm: bool) -> list[nn.Module]:
    between = [nn.BatchNorm2d(convolution.out_channels)] if norm else []
    return [convolution, *between, nn.ReLU(inplace=True)]


def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def _decimated(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """Evenly spaced entries of a tensor along every axis, so many as ``shape`` says."""
    for axis, (found, wanted) in enumerate(zip(tensor.shape, shape, strict=True)):
        # From end to end along a kernel, whose middle has to stay in the middle.
        last = found - 1 if axis >= 2 else found - found // wanted
        places = torch.linspace(0, last, wanted, device=tensor.device).round().long()
        tensor = tensor.index_select(axis, places)
    return tensor
