"""Context modules: from the deepest feature to a context feature that the decoder aggregates last.

AlignCM is AlignSeg's own; the others are the ones it is compared with. Each maps features
(N, in_channels, h, w) to a context (N, channels, h, w), or (N, channels, 1, 1) where it is one
vector for the whole image, and the offset maps it predicted, by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.parts.alignment import Alignment, OffsetBranch, align, in_output_pixels
from models.parts.layers import ConvNormAct, upsample

ContextKind = Literal["aligned", "ppm", "aspp", "gap", "none"]
"""AlignCM, pyramid pooling, atrous spatial pyramid pooling, global average pooling, or nothing."""


def leaky_relu() -> nn.Module:
    """The activation behind every norm of AlignSeg outside the backbone (slope 0.01)."""
    return nn.LeakyReLU(0.01, inplace=True)


class AlignCM(nn.Module):
    """Aligned Context Modeling: every position picks its own place in a coarse context map.

    The context is the feature pooled to a few cells; an offset map predicted from the local
    feature and the upsampled context says where in those cells each position reads (read in the
    authors' repository).

    Args:
        in_channels: of the deepest feature.
        channels: C, of the context.
        pool_size: rows and columns of the pooled context.
        alignment: unit and grid of the offsets.
    """

    def __init__(
        self, in_channels: int, channels: int, pool_size: int = 3, alignment: Alignment = "corrected"
    ):
        super().__init__()
        self.alignment = alignment
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(pool_size), *self._embedding(in_channels, channels))
        self.local = nn.Sequential(*self._embedding(in_channels, channels))
        self.offset = OffsetBranch(channels)

    @staticmethod
    def _embedding(in_channels: int, channels: int) -> Sequence[nn.Module]:
        return (
            ConvNormAct(in_channels, in_channels, 1, activation=leaky_relu),
            ConvNormAct(in_channels, channels, 3, activation=leaky_relu),
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Features (N, in_channels, h, w) to the context (N, C, h, w) and its offset map."""
        context = self.context(features)  # (N, C, pool_size, pool_size)
        local = self.local(features)  # (N, C, h, w)
        offsets = self.offset(local, context)
        aligned = align(context, offsets, self.alignment)
        return aligned + local, {"aligncm": in_output_pixels(offsets, context.shape[-2:], self.alignment)}


class PyramidPooling(nn.Module):
    """Pyramid pooling (Zhao et al., CVPR 2017): averages over grids of several sizes.

    The bins, the quarter-width branches and the 3x3 convolution after the concatenation are that
    paper's; AlignSeg's sources do not say what its comparison used.
    """

    def __init__(self, in_channels: int, channels: int, bins: Sequence[int] = (1, 2, 3, 6)):
        super().__init__()
        width = in_channels // len(bins)
        self.pools = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(size), ConvNormAct(in_channels, width, 1, activation=leaky_relu)
            )
            for size in bins
        )
        self.project = ConvNormAct(in_channels + len(bins) * width, channels, 3, activation=leaky_relu)

    def forward(self, features: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Features (N, in_channels, h, w) to the context (N, C, h, w)."""
        size = features.shape[-2:]
        pooled = [upsample(pool(features), size, align_corners=True) for pool in self.pools]
        return self.project(torch.cat((features, *pooled), dim=1)), {}


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al., 2017) with its image-level branch.

    That paper's rates of 6, 12 and 18 are for output stride 16; at stride 32 half of them cover
    the same part of the image (inferred: AlignSeg's sources do not say).
    """

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int] = (3, 6, 9)):
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvNormAct(in_channels, channels, 1, activation=leaky_relu),
                *(
                    ConvNormAct(in_channels, channels, 3, dilation=rate, activation=leaky_relu)
                    for rate in rates
                ),
            ]
        )
        self.image = GlobalPooling(in_channels, channels)
        self.project = ConvNormAct((len(rates) + 2) * channels, channels, 1, activation=leaky_relu)

    def forward(self, features: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Features (N, in_channels, h, w) to the context (N, C, h, w)."""
        size = features.shape[-2:]
        image, _ = self.image(features)
        branches = [
            *(branch(features) for branch in self.branches),
            upsample(image, size, align_corners=True),
        ]
        return self.project(torch.cat(branches, dim=1)), {}


class GlobalPooling(nn.Module):
    """Global average pooling and a 1x1 convolution: one context vector for the whole image.

    The form that the authors' repository keeps, disabled, in AlignCM's place.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.project = ConvNormAct(in_channels, channels, 1, activation=leaky_relu)

    def forward(self, features: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Features (N, in_channels, h, w) to the context (N, C, 1, 1)."""
        return self.project(self.pool(features)), {}


def create_context(
    context: ContextKind,
    in_channels: int,
    channels: int,
    pool_size: int = 3,
    alignment: Alignment = "corrected",
) -> nn.Module | None:
    """Builds a context module by name, or ``None`` for ``none``.

    Args:
        context: which one.
        in_channels: of the deepest feature.
        channels: of the context.
        pool_size: of AlignCM; the others have none.
        alignment: of AlignCM.
    """
    if context == "none":
        return None
    if context == "aligned":
        return AlignCM(in_channels, channels, pool_size, alignment)
    plain: dict[str, Callable[[int, int], nn.Module]] = {
        "ppm": PyramidPooling,
        "aspp": ASPP,
        "gap": GlobalPooling,
    }
    return plain[context](in_channels, channels)
