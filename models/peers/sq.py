"""SQ: Speeding up Semantic Segmentation for Autonomous Driving (Treml et al., NIPS workshop MLITS 2016).

SqueezeNet 1.1 with ELU in place of ReLU, four convolutions of different dilation side by side on its
features, and a decoder that takes every resolution of the encoder in by a refinement module.

Stated by the paper's abstract: these four parts. Inferred, because the authors released no code and GUN's
table gives neither parameters nor multiply-accumulates to check against: dilations of 1 to 4, as the public
reimplementations have them, a sum of the four, and a decoder with the channels of the encoder (16.0 M
parameters).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.backbones import squeezenet
from models.parts.layers import pad_to_multiple
from models.segmenter import Prediction, Segmenter, check_images

DILATIONS = (1, 2, 3, 4)
"""Of the convolutions side by side at the end of the encoder."""


def _elu() -> nn.Module:
    return nn.ELU(inplace=True)


class ParallelDilatedConvolutions(nn.Module):
    """The sum of 3x3 convolutions of different dilations, each behind an ELU; keeps the channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation), _elu())
            for dilation in DILATIONS
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, C, h, w) to features of the same shape."""
        return torch.stack([branch(features) for branch in self.branches]).sum(dim=0)


class Refinement(nn.Module):
    """Twice the size: a transposed convolution, joined with the encoder's features there.

    Args:
        deep_channels: of what comes from below.
        channels: C, of the encoder's features at twice the size.
    """

    def __init__(self, deep_channels: int, channels: int):
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(deep_channels, channels, 3, stride=2, padding=1, output_padding=1), _elu()
        )
        self.bypass = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), _elu())
        self.join = nn.Sequential(nn.Conv2d(2 * channels, 2 * channels, 3, padding=1), _elu())

    def forward(self, deep: Tensor, features: Tensor) -> Tensor:
        """(N, deep_channels, h, w) and (N, C, 2h, 2w) to (N, 2C, 2h, 2w)."""
        joined: Tensor = self.join(torch.cat((self.bypass(features), self.up(deep)), dim=1))
        return joined


class SQ(Segmenter):
    """SqueezeNet with ELU, parallel dilated convolutions and bypass refinement.

    Args:
        num_classes: K, at least 1.
        backbone: a name of ``squeezenet.NAMES``.
        pretrained: ImageNet weights of the encoder: from torchvision's site, or from the file at a path.

    Raises:
        ValueError: another backbone.
    """

    def __init__(self, num_classes: int, *, backbone: str = "squeezenet1_1", pretrained: bool | str = False):
        super().__init__(num_classes)
        self.check_backbone(backbone)
        self.backbone = squeezenet.SqueezeNet(backbone, pretrained, activation=_elu)
        *shallower, deepest = self.backbone.channels
        self.context = ParallelDilatedConvolutions(deepest)
        self.refinements = nn.ModuleList()
        deep = deepest
        for channels in reversed(shallower):
            self.refinements.append(Refinement(deep, channels))
            deep = 2 * channels
        self.classifier = nn.ConvTranspose2d(deep, num_classes, 3, stride=2, padding=1, output_padding=1)
        for module in (*self.context.modules(), *self.refinements.modules()):
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                # Nothing here is normalised, so the size of the features depends on that of the weights.
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @classmethod
    def check_backbone(cls, name: str) -> None:
        """Raises ``ValueError`` unless the backbone is a SqueezeNet."""
        if name not in squeezenet.NAMES:
            raise ValueError(f"backbone is {name!r}; expected one of {', '.join(squeezenet.NAMES)}")

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        height, width = images.shape[-2:]
        *shallower, deepest = self.backbone(pad_to_multiple(images, 16))
        running = self.context(deepest)
        for refine, features in zip(self.refinements, reversed(shallower), strict=True):
            running = refine(running, features)
        return Prediction(self.classifier(running)[..., :height, :width])


MODEL = SQ
