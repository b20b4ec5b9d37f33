"""Feature-aligned pyramids: FaPN, and the alignment that MSFaPN adds to Mask2Former.

As read in SeMask's authors' repository, which took it from FaPN (Huang et al., ICCV 2021) without its
feature selection. There one group norm serves two convolutions of a level, the one whose output predicts the
offsets and the level's last one, and so it does here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d


def conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, norm: nn.GroupNorm | None = None
) -> nn.Sequential:
    """Convolution without bias and group norm of 32 groups, a given one or its own."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, norm or nn.GroupNorm(32, out_channels))


def mask_projection(in_channels: int, out_channels: int, kernel_size: int) -> nn.Conv2d:
    """The convolution to the mask feature, started as the authors start it."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class DeformableAlignment(nn.Module):
    """Aligns a feature from above with a lateral one before it is added.

    A 1x1 convolution of the lateral feature and twice the other one predicts, by a 3x3 convolution that
    starts at zero, the offsets and weights of a modulated 3x3 deformable convolution of the other one in 8
    groups. Its ReLU is added to the lateral feature.

    Args:
        channels: of both features, a multiple of 32.
        norm: of the 1x1 convolution, where something else shares it.
    """

    groups = 8
    taps = 9

    def __init__(self, channels: int, norm: nn.GroupNorm | None = None):
        super().__init__()
        self.difference = conv_norm(2 * channels, channels, 1, norm)
        self.sampling = nn.Conv2d(channels, 3 * self.groups * self.taps, 3, padding=1)
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        for parameter in self.sampling.parameters():
            nn.init.zeros_(parameter)

    def forward(self, lateral: Tensor, other: Tensor) -> Tensor:
        """Two features (N, C, H, W) to their aligned sum."""
        difference = self.difference(torch.cat((lateral, 2 * other), dim=1))
        offsets, weights = self.sampling(difference).split(
            (2 * self.groups * self.taps, self.groups * self.taps), dim=1
        )
        # In float32, like the authors': the kernels do not know every half precision.
        offsets = offsets.float()
        # On a CPU the kernel reads outside its memory where an offset is NaN. The tap's weight takes
        # the NaN instead, so that the loss shows it.
        not_finite = 0 * offsets.detach().unflatten(1, (-1, 2)).sum(dim=2)
        aligned: Tensor = deform_conv2d(
            other.float(),
            offsets.nan_to_num(),
            self.weight.float(),
            self.bias.float(),
            padding=1,
            mask=weights.float().sigmoid() + not_finite,
        )
        return aligned.relu().to(lateral.dtype) + lateral


class PyramidLevel(nn.Module):
    """One step down a pyramid: the feature from above is upsampled, added to the lateral one and refined.

    Args:
        in_channels: of the backbone's feature.
        channels: of the pyramid.
        align: whether the sum is aligned with the lateral feature, and added to it, before it is refined.
        mode: of the upsampling.
    """

    def __init__(self, in_channels: int, channels: int, align: bool, mode: str = "bilinear"):
        super().__init__()
        self.lateral = conv_norm(in_channels, channels, 1)
        norm = nn.GroupNorm(32, channels)
        self.alignment = DeformableAlignment(channels, norm) if align else None
        self.output = nn.Sequential(*conv_norm(channels, channels, 3, norm), nn.ReLU(inplace=True))
        self.mode = mode

    def forward(self, feature: Tensor, above: Tensor) -> Tensor:
        """The backbone's feature (N, in_channels, H, W) and the level above to (N, channels, H, W)."""
        lateral = self.lateral(feature)
        # interpolate takes no align_corners, not even false, for nearest neighbours.
        x = lateral + F.interpolate(above, lateral.shape[-2:], mode=self.mode)
        if self.alignment is not None:
            x = self.alignment(lateral, x)
        refined: Tensor = self.output(x)
        return refined


RELEASED_LEVEL_NAMES = {
    r"adapter_(\d)\.norm": "lateral.1",
    r"adapter_(\d)": "lateral.0",
    r"align_(\d)\.offset\.norm": "alignment.difference.1",
    r"align_(\d)\.offset": "alignment.difference.0",
    r"align_(\d)\.dcpack_L2\.conv_offset_mask": "alignment.sampling",
    r"align_(\d)\.dcpack_L2": "alignment",
    r"layer_(\d)\.norm": "output.1",
    r"layer_(\d)": "output.0",
}
"""The authors' names of what a ``PyramidLevel`` holds, as ``ReleasedFormat.names`` has them; the number is
the level's, counted from 1 at 1/4."""


class FeatureAlignedPyramid(nn.Module):
    """FaPN as a pixel decoder: a pyramid with alignment at every level but the topmost.

    Args:
        in_channels: of the backbone's features, shallow to deep.
        channels: of the pyramid and of the mask feature.
    """

    def __init__(self, in_channels: Sequence[int], channels: int):
        super().__init__()
        self.top = nn.Sequential(*conv_norm(in_channels[-1], channels, 3), nn.ReLU(inplace=True))
        self.levels = nn.ModuleList(
            PyramidLevel(c, channels, align=True, mode="nearest") for c in reversed(in_channels[:-1])
        )
        self.mask_feature = mask_projection(channels, channels, 3)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Features, shallow to deep, to the pyramid's three deepest levels, deepest first, and the mask
        feature at the resolution of the shallowest."""
        pyramid = [self.top(features[-1])]
        for level, feature in zip(self.levels, reversed(features[:-1]), strict=True):
            pyramid.append(level(feature, pyramid[-1]))
        return pyramid[:3], self.mask_feature(pyramid[-1])

    def released_names(self) -> dict[str, str | Sequence[str]]:
        """See ``MaskDecoder``. Their level 4 is the top, levels 3 to 1 are ours from the first on."""
        return {
            r"layer_4\.norm": "top.1",
            "layer_4": "top.0",
            **{theirs: "levels.{from_3_0}." + ours for theirs, ours in RELEASED_LEVEL_NAMES.items()},
            "mask_features": "mask_feature",
        }
