"""Feature alignment: sampling feature maps at grids that predicted offsets have shifted (AlignFA).

Every offset map is (N, 2, H, W), x before y, positive to the right and down: the output at a
position is read from the map at that position plus the offset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts.layers import upsample
from models.parts.sampling import sample_shifted

Alignment = Literal["corrected", "released"]
"""What an offset of one means. ``corrected`` (the authors' fix, their issue 7): one pixel of the
output, on a grid that keeps corner pixels on corner pixels. ``released`` (the code of their
checkpoints): the inverse width and height of the sampled map in normalised coordinates, on a grid
that runs from outer edge to outer edge, so that even zero offsets stretch the map a little."""


def align(features: Tensor, offsets: Tensor, alignment: Alignment = "corrected") -> Tensor:
    """Samples features at the positions of the output plus the offsets.

    Positions outside the map read zero. With ``corrected`` and zero offsets this is bilinear
    upsampling with ``align_corners`` true.

    Args:
        features: (N, C, h, w).
        offsets: (N, 2, H, W), in the unit of the alignment.
        alignment: see ``Alignment``; both forms were read in the authors' repository.

    Returns:
        (N, C, H, W) in the type of ``features``.
    """
    batch, channels, *map_size = features.shape
    output_size = offsets.shape[-2:]
    # On a CPU grid_sample gives every image to one core. Groups of channels as images of their own
    # use all cores, and fit a cache.
    groups = math.gcd(channels, 4)
    sampled = sample_shifted(
        features.reshape(batch * groups, channels // groups, *map_size),
        offsets[:, None].expand(-1, groups, -1, -1, -1).flatten(0, 1),
        unit=_offset_unit(alignment, map_size, output_size),
        align_corners=alignment == "corrected",
        span=True,
    )
    return sampled.reshape(batch, channels, *output_size)


def in_output_pixels(offsets: Tensor, map_size: Sequence[int], alignment: Alignment = "corrected") -> Tensor:
    """Offsets as distances in pixels of the output, whatever the alignment's own unit.

    Args:
        offsets: (N, 2, H, W), in the unit of the alignment.
        map_size: (h, w) of the map that they sample.
        alignment: see ``Alignment``.
    """
    if alignment == "corrected":
        return offsets
    size = offsets.shape[-2:]
    unit = _offset_unit(alignment, map_size, size)
    pixel = _offset_unit("corrected", map_size, size)
    return torch.stack((offsets[:, 0] * (unit[0] / pixel[0]), offsets[:, 1] * (unit[1] / pixel[1])), dim=1)


def _offset_unit(
    alignment: Alignment, map_size: Sequence[int], output_size: Sequence[int]
) -> tuple[float, float]:
    """One unit of offset in x and y, where the sampled map spans [-1, 1]."""
    if alignment == "released":
        return 1 / map_size[1], 1 / map_size[0]
    return 2 / max(output_size[1] - 1, 1), 2 / max(output_size[0] - 1, 1)


class OffsetBranch(nn.Module):
    """Predicts an offset map from a fine feature and a coarse one, side by side.

    On the concatenation of the fine feature and the upsampled coarse one: 1x1 convolution, norm,
    leaky ReLU, 3x3 convolution to (x, y) whose weights start at zero (read in the authors'
    repository).

    Args:
        channels: C, of either feature and of the hidden layer.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.reduce = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.activation = nn.LeakyReLU(0.01, inplace=True)
        self.predict = nn.Conv2d(channels, 2, 3, padding=1, bias=False)
        nn.init.zeros_(self.predict.weight)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """Features (N, C, H, W) and (N, C, h, w) to offsets (N, 2, H, W)."""
        size = fine.shape[-2:]
        weight: Tensor = self.reduce.weight
        bias: Tensor | None = None
        if not self.norm.training:
            weight, bias = self._weight_with_norm()
        # A 1x1 convolution commutes with interpolation and acts on each half of a concatenation
        # by itself. So the coarse half is convolved before it is upsampled, at a fraction of the
        # cost, and the concatenation is never made.
        of_fine, of_coarse = weight.chunk(2, dim=1)
        hidden = F.conv2d(fine, of_fine, bias)
        hidden += upsample(F.conv2d(coarse, of_coarse), size, align_corners=True)
        if self.norm.training:
            hidden = self.norm(hidden)
        hidden = self.activation(hidden)
        # A convolution to two channels leaves most of a vector unit or matrix core idle. Its 3 x 3
        # taps as 18 channels of one matrix product, summed where they land, take a third of the time.
        taps = self.predict.weight.flip(2, 3).permute(0, 2, 3, 1).reshape(18, -1, 1, 1)
        return F.fold(F.conv2d(hidden, taps).flatten(2), size, kernel_size=3, padding=1)

    def _weight_with_norm(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the 1x1 convolution with the evaluation-mode norm folded in."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None
        assert variance is not None
        scale = self.norm.weight * torch.rsqrt(variance + self.norm.eps)
        return self.reduce.weight * scale[:, None, None, None], self.norm.bias - mean * scale


class FeatureAlignment(nn.Module):
    """Adds a deep feature to a shallow one after shifting them onto each other.

    Each shifted feature has an offset branch of its own. With no feature shifted this is plain
    bilinear upsampling and a sum.

    Args:
        channels: C, of both features.
        shifted: which features are shifted, of ``deep`` and ``shallow``.
        alignment: unit and grid of the offsets.
    """

    def __init__(
        self,
        channels: int,
        shifted: Sequence[Literal["deep", "shallow"]] = ("deep", "shallow"),
        alignment: Alignment = "corrected",
    ):
        super().__init__()
        self.alignment = alignment
        self.branches = nn.ModuleDict({feature: OffsetBranch(channels) for feature in shifted})

    def forward(self, shallow: Tensor, deep: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Aggregates shallow (N, C, H, W) and deep (N, C, h, w).

        Returns:
            The sum (N, C, H, W), and the offset map of each shifted feature in output pixels.
        """
        size = shallow.shape[-2:]
        offsets = {feature: branch(shallow, deep) for feature, branch in self.branches.items()}
        # The deep feature is upsampled first and the result is sampled, as the authors do.
        deep = upsample(deep, size, align_corners=True)
        if "shallow" in offsets:
            shallow = align(shallow, offsets["shallow"], self.alignment)
        if "deep" in offsets:
            total = align(deep, offsets["deep"], self.alignment)
            total += shallow  # in place: at 1024 x 2048 a fresh 135 MB costs more than the sum
        else:
            total = deep + shallow
        pixels = {
            feature: in_output_pixels(shift, size, self.alignment) for feature, shift in offsets.items()
        }
        return total, pixels
