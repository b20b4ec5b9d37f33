"""Dilated residual networks, variant D (Yu, Koltun and Funkhouser, CVPR 2017).

A residual network that stops shrinking at an eighth of the image: its last two residual stages
dilate instead, and two plain convolutions of falling dilation smooth the gridding that dilation
leaves. The stages of DRN-D-22, and the feature levels that end at them:

======  ========  ======================  ======  ========  =====
stage   channels  made of                 stride  dilation  level
======  ========  ======================  ======  ========  =====
layer0        16  one 7 x 7 convolution        1         1
layer1        16  one convolution              1         1
layer2        32  one convolution              2         1      0
layer3        64  two residual blocks          4         1      1
layer4       128  two residual blocks          8         1      2
layer5       256  two residual blocks          8         2      3
layer6       512  two residual blocks          8         4
layer7       512  one convolution              8         2
layer8       512  one convolution              8         1      4
======  ========  ======================  ======  ========  =====

DRN-D-38 has 3, 4, 6 and 3 residual blocks; DRN-D-54 has as many, which are bottlenecks with four
times the channels. Levels 1 to 4 are where a ResNet of output stride 8 has its own. Stages, widths,
dilations and names are read in the authors' repository (fyu/drn), whose ImageNet weights load here.

``drn_d_14_narrow`` is this suite's own, for runs on a CPU: half of DRN-D-22's blocks, half of its
channels at the image's end and an eighth of them at the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from models.backbones.base import Backbone, no_imagenet_weights, read_weights, unreachable_hub
from models.parts.layers import ConvNormAct


@dataclass(frozen=True)
class _Variant:
    blocks: tuple[int, int, int, int]
    """Residual blocks in layer3 to layer6."""
    block: type[BasicBlock] | type[Bottleneck] = BasicBlock
    channels: tuple[int, ...] = (16, 16, 32, 64, 128, 256, 512, 512, 512)
    """Channels of layer0 to layer8, before a bottleneck's expansion."""
    weights: str | None = None
    """The authors' file of ImageNet weights; the end of its name is the start of its SHA-256."""


_VARIANTS = {
    "drn_d_14_narrow": _Variant((1, 1, 1, 1), channels=(8, 8, 16, 32, 64, 64, 64, 64, 64)),
    "drn_d_22": _Variant((2, 2, 2, 2), weights="drn_d_22-4bd2f8ea.pth"),
    "drn_d_38": _Variant((3, 4, 6, 3), weights="drn_d_38-eebb45f0.pth"),
    "drn_d_54": _Variant((3, 4, 6, 3), Bottleneck, weights="drn_d_54-0e0534ff.pth"),
}
_WEIGHTS_ROOT = "http://dl.yf.io/drn/"

LEVELS = (
    ("layer0", "layer1", "layer2"),
    ("layer3",),
    ("layer4",),
    ("layer5",),
    ("layer6", "layer7", "layer8"),
)
"""Stages that each feature level adds to the one before."""
_LEVEL_STRIDES = (2, 4, 8, 8, 8)
_STAGE_STRIDES = (1, 1, 2, 2, 2, 1, 1, 1, 1)
_STAGE_DILATIONS = (1, 1, 1, 1, 1, 2, 4, 2, 1)

NAMES = tuple(_VARIANTS)
"""Names that ``DRN`` takes."""


class DRN(Backbone):
    """A dilated residual network without its classifier.

    Args:
        name: one of ``NAMES``.
        levels: feature levels to return, ascending, out of 0 to 4. Stages beyond the last of them
            are not built.
        pretrained: ImageNet weights from the authors' site (``True``) or from a local file in their
            names, layer0 to layer8 and fc (its path). The classifier fc is left out.

    Raises:
        ValueError: no such level, no published weights, or a file that does not fit.
        FileNotFoundError: no weight file at the path.
        ConnectionError: the authors' site cannot be reached.
    """

    def __init__(self, name: str, levels: Sequence[int] = (1, 2, 3, 4), pretrained: bool | str = False):
        super().__init__()
        if not levels or not set(levels) <= set(range(len(LEVELS))):
            raise ValueError(f"backbone {name!r} has no feature levels {list(levels)}; it has 0 to 4")
        if any(after <= before for before, after in pairwise(levels)):
            raise ValueError(f"feature levels are {list(levels)}; expected them in ascending order")
        self.levels = tuple(levels)
        self.strides = [_LEVEL_STRIDES[level] for level in levels]
        self.channels = []
        width = 3
        for level, stages in enumerate(LEVELS[: levels[-1] + 1]):
            for stage in stages:
                module, width = _stage(_VARIANTS[name], int(stage[-1]), width)
                self.add_module(stage, module)
            if level in levels:
                self.channels.append(width)
        for module in self.modules():  # as the authors draw them
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if pretrained:
            self._load_imagenet(name, _imagenet_weights(name, pretrained))

    def forward(self, images: Tensor, levels: Sequence[int] | None = None) -> list[Tensor]:
        """Features of images (N, 3, H, W).

        Args:
            images: normalised RGB.
            levels: levels to return from this call; stages beyond the last of them do not run.
                Defaults to the constructor's.

        Returns:
            The feature (N, C, ceil(H / stride), ceil(W / stride)) of each level, shallow to deep.
        """
        levels = self.levels if levels is None else levels
        features = []
        x = images
        for level, stages in enumerate(LEVELS[: max(levels) + 1]):
            for stage in stages:
                x = self.get_submodule(stage)(x)
            if level in levels:
                features.append(x)
        return features

    def _load_imagenet(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        own = self.state_dict()
        # The authors' files have no batch counters, and reach beyond the stages that are built here.
        counters = {key: count for key, count in own.items() if key.endswith("num_batches_tracked")}
        stages = {key.partition(".")[0] for key in own}
        tensors = counters | {key: t for key, t in tensors.items() if key.partition(".")[0] in stages}
        for key in sorted(own.keys() | tensors.keys()):
            found = tuple(tensors[key].shape) if key in tensors else "nothing"
            expected = tuple(own[key].shape) if key in own else "nothing"
            if found != expected:
                raise ValueError(
                    f"ImageNet weights of {name!r}: found {found} under {key!r}, expected {expected}"
                )
        self.load_state_dict(tensors)


def _stage(variant: _Variant, index: int, in_channels: int) -> tuple[nn.Module, int]:
    """Stage ``layer<index>`` for an input of so many channels, and the channels of its output."""
    channels, stride, dilation = variant.channels[index], _STAGE_STRIDES[index], _STAGE_DILATIONS[index]
    if not 3 <= index <= 6:
        kernel_size = 7 if index == 0 else 3
        return ConvNormAct(in_channels, channels, kernel_size, stride, dilation), channels
    out_channels = channels * variant.block.expansion
    blocks: list[nn.Module] = []
    for _ in range(variant.blocks[index - 3]):
        shortcut = None
        if stride != 1 or in_channels != out_channels:
            shortcut = ConvNormAct(in_channels, out_channels, 1, stride, activation=None)
        blocks.append(variant.block(in_channels, channels, stride, shortcut, dilation=dilation))
        in_channels, stride = out_channels, 1
    return nn.Sequential(*blocks), out_channels


def _imagenet_weights(name: str, source: bool | str) -> Mapping[str, Tensor]:
    """The tensors of a local file (its path) or of the authors' (``True``)."""
    if isinstance(source, str):
        return read_weights(source)
    file_name = _VARIANTS[name].weights
    if file_name is None:
        raise no_imagenet_weights(name)
    try:
        tensors: Mapping[str, Tensor] = torch.hub.load_state_dict_from_url(
            _WEIGHTS_ROOT + file_name, map_location="cpu", check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise unreachable_hub(name, error) from error
    return tensors
