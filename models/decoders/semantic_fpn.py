"""Semantic FPN: every level is brought to 1/4 by convolutions and bilinear steps, and summed."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.parts.layers import ConvNormAct, upsample
from models.parts.sampling import GuidedUpsampling
from models.segmenter import OFFSETS, SCORES, Prediction


class SemanticFPN(nn.Module):
    """Decoder of Kirillov et al. (Panoptic Feature Pyramid Networks), as SeMask's authors use it.

    Level i takes max(1, i) times: 3x3 convolution, batch norm, ReLU, and then, for i > 0, bilinear
    upsampling by 2. The sum is dropped out by channel at 0.1 and classified by a 1x1 convolution.
    Read in the authors' repository.

    Args:
        channels: of each level, shallow to deep; each level has half the resolution of the one before.
        num_classes: K.
        width: channels of the convolutions.
        guided: brings the scores to full size by GUN's guided upsampling, which the sum guides, rather
            than bilinearly.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, width: int = 256, guided: bool = False):
        super().__init__()
        self.scale_heads = nn.ModuleList(scale_head(i, c, width) for i, c in enumerate(channels))
        self.dropout = nn.Dropout2d(0.1)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.upsampling = GuidedUpsampling(width) if guided else None
        for module in self.scale_heads.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        assert self.classifier.bias is not None
        nn.init.zeros_(self.classifier.bias)

    def forward(self, features: Sequence[Tensor], size: Sequence[int]) -> Prediction:
        """Features (N, channels[i], ~H / 2^i, ~W / 2^i) to class scores (N, K, *size).

        With guided upsampling ``maps`` holds its ``OFFSETS`` (N, 2, *size) in pixels and the ``SCORES`` that
        it sampled.
        """
        shallowest = features[0].shape[-2:]
        levels = [upsample(head(x), shallowest) for head, x in zip(self.scale_heads, features, strict=True)]
        merged = self.dropout(functools.reduce(torch.add, levels))
        scores = self.classifier(merged)
        if self.upsampling is None:
            return Prediction(upsample(scores, size))
        logits, offsets = self.upsampling(scores, merged, size)
        return Prediction(logits, maps={OFFSETS: offsets.detach(), SCORES: scores.detach()})

    def released_names(self) -> dict[str, str | Sequence[str]]:
        """See ``ReleasedFormat.names``; ours are those of this module's tensors."""
        return {
            r"decode_head\.scale_heads\.(\d)\.(\d)\.conv": "scale_heads.{0}.{1}.0",
            r"decode_head\.scale_heads\.(\d)\.(\d)\.bn": "scale_heads.{0}.{1}.1",
            r"decode_head\.conv_seg": "classifier",
        }


def scale_head(level: int, in_channels: int, width: int) -> nn.Sequential:
    """The branch that brings one level up by 2^level."""
    if level == 0:
        return nn.Sequential(ConvNormAct(in_channels, width))
    layers: list[nn.Module] = []
    for i in range(level):
        layers += [
            ConvNormAct(width if i else in_channels, width),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        ]
    return nn.Sequential(*layers)
