"""DANet: Dual Attention Network for Scene Segmentation (Fu et al., CVPR 2019, arXiv 1809.02983).

Two attentions side by side on the features of a dilated ResNet: every position looks at all positions,
and every channel at all channels. Read in the authors' repository (junfu1115/DANet), whose checkpoints load
by renaming (``models.load_released``).

With ResNet-101 it has 66.5 M parameters, and at 1024 x 2048 we count 2837 G multiply-accumulates where
SPGNet's table says 2878.9 G: 1.4 % fewer. A deep stem, which the authors' command leaves out, would make it
2895 G.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from models import backbones
from models.parts.layers import ConvNormAct, upsample
from models.released import ReleasedFormat
from models.segmenter import Prediction, Segmenter, check_images

MULTI_GRID = (4, 8, 16)
"""Dilations of the three blocks of a ResNet's last stage, with which the authors train on Cityscapes."""
ATTENTION_ENTRIES = 2**26
"""Similarities that the position attention holds at a time: 256 MiB in float32."""


class PositionAttention(nn.Module):
    """Adds to every position a sum over all positions, weighted by their similarity (section 3.2).

    The matrix of similarities has a row for each position: 32768 x 32768 at 1024 x 2048, which is 4 GiB in
    float32 and needed twice. A softmax concerns one row, so the rows are computed some at a time.

    Args:
        channels: C, of the features; at least 8.
        entries: similarities to hold at a time.
    """

    def __init__(self, channels: int, entries: int = ATTENTION_ENTRIES):
        super().__init__()
        self.entries = entries
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, h, w) to features of the same shape."""
        query = self.query(features).flatten(2).transpose(1, 2)  # (N, hw, C/8)
        key = self.key(features).flatten(2)  # (N, C/8, hw)
        value = self.value(features).flatten(2).transpose(1, 2)  # (N, hw, C)
        rows = max(1, self.entries // (key.shape[0] * key.shape[2]))
        attended = torch.cat([(part @ key).softmax(dim=-1) @ value for part in query.split(rows, 1)], dim=1)
        summed: Tensor = self.gamma * attended.transpose(1, 2).reshape_as(features) + features
        return summed


class ChannelAttention(nn.Module):
    """Adds to every channel a sum over all channels, weighted by their similarity (section 3.3).

    The authors' code turns the similarities around before the softmax, so that unlike channels weigh most. A
    similarity is a sum over all positions, too large for half precision to tell from its neighbours; so all
    of this is in float32, whatever the rest is in.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, h, w) to features of the same shape."""
        with _without_autocast(features.device.type):
            flat = features.to(torch.promote_types(features.dtype, torch.float32)).flatten(2)  # (N, C, hw)
            similarity = flat @ flat.transpose(1, 2)  # (N, C, C)
            weights = (similarity.amax(dim=-1, keepdim=True) - similarity).softmax(dim=-1)
            attended = (weights @ flat).view_as(features)
        summed: Tensor = self.gamma * attended + features
        return summed


def _without_autocast(device: str) -> AbstractContextManager[None]:
    """No mixed precision on a type of device; the meta device has none to begin with."""
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else nullcontext()


class DANet(Segmenter):
    """Dual Attention Network.

    The scores of each attention alone are supervised beside those of their sum, as the authors do: they are
    ``Prediction.auxiliary``'s ``position`` and ``channel`` (N, K, H/8, W/8).

    Args:
        num_classes: K, at least 1.
        backbone: any that can stop at stride 8, with at least 32 channels at its end. The last stage of a
            ResNet of bottlenecks gets the dilations ``MULTI_GRID``.
        pretrained: ImageNet weights of the backbone: from the hub, or from the file at a path.
        auxiliary_weight: of the loss on the scores of each attention (the authors: 1); 0 leaves them out.

    Raises:
        ValueError: an option outside its range, or a backbone that does not fit.
    """

    training_only = frozenset({"auxiliary_weight"})

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet101",
        pretrained: bool | str = False,
        auxiliary_weight: float = 1.0,
    ):
        if auxiliary_weight < 0:
            raise ValueError(f"auxiliary_weight is {auxiliary_weight}; expected 0 or more")
        super().__init__(num_classes, {"position": auxiliary_weight, "channel": auxiliary_weight})
        self.backbone = backbones.create(backbone, levels=(4,), pretrained=pretrained, output_stride=8)
        (in_channels,) = self.backbone.channels
        if in_channels < 32:
            raise ValueError(f"backbone is {backbone!r} with {in_channels} channels; expected at least 32")
        _dilate_last_stage(self.backbone, MULTI_GRID)
        channels = in_channels // 4
        self.position = nn.Sequential(
            ConvNormAct(in_channels, channels), PositionAttention(channels), ConvNormAct(channels, channels)
        )
        self.channel = nn.Sequential(
            ConvNormAct(in_channels, channels), ChannelAttention(), ConvNormAct(channels, channels)
        )
        self.classifiers = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))
                for name in ("position", "channel", "sum")
            }
        )

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        (features,) = self.backbone(images)
        attended = {"position": self.position(features), "channel": self.channel(features)}
        scores = self.classifiers["sum"](attended["position"] + attended["channel"])
        auxiliary = {}
        if self.training:
            auxiliary = {name: self.classifiers[name](values) for name, values in attended.items()}
        return Prediction(upsample(scores, images.shape[-2:], align_corners=True), auxiliary)

    def released_format(self) -> ReleasedFormat:
        """See ``Segmenter``. The ImageNet classifier, which the authors' files hold, has no use."""
        names: dict[str, str | Sequence[str]] = {"pretrained.fc": (), "pretrained": "backbone.trunk"}
        names |= _RELEASED_MODULES
        return ReleasedFormat({rf"(?:module\.)?{re.escape(theirs)}": ours for theirs, ours in names.items()})


def _dilate_last_stage(backbone: nn.Module, dilations: Sequence[int]) -> None:
    """Gives the bottlenecks of a ResNet's last stage a dilation each; leaves other backbones alone."""
    stage = getattr(getattr(backbone, "trunk", None), "layer4", ())
    for block, dilation in zip(stage, dilations, strict=False):
        if hasattr(block, "conv3"):
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)


_RELEASED_MODULES = {
    "head.conv5a.0": "position.0.0",
    "head.conv5a.1": "position.0.1",
    "head.sa.query_conv": "position.1.query",
    "head.sa.key_conv": "position.1.key",
    "head.sa.value_conv": "position.1.value",
    "head.sa": "position.1",
    "head.conv51.0": "position.2.0",
    "head.conv51.1": "position.2.1",
    "head.conv5c.0": "channel.0.0",
    "head.conv5c.1": "channel.0.1",
    "head.sc": "channel.1",
    "head.conv52.0": "channel.2.0",
    "head.conv52.1": "channel.2.1",
    "head.conv6.1": "classifiers.position.1",
    "head.conv7.1": "classifiers.channel.1",
    "head.conv8.1": "classifiers.sum.1",
}
"""The authors' modules outside the backbone, and what they are called here."""

MODEL = DANet
