"""DeepLabv3+: Encoder-Decoder with Atrous Separable Convolution (Chen et al., ECCV 2018, arXiv 1802.02611).

Atrous spatial pyramid pooling on the features of a dilated backbone, and a small decoder that joins them with
features at a quarter of the image. Of the paper's two backbones this is the modified aligned Xception-65,
with separable convolutions in the pyramid and in the decoder (section 3). GUN's table gives neither
parameters nor multiply-accumulates; here it has 41.1 M parameters. The authors released TensorFlow
checkpoints, which nobody has as tensors without TensorFlow, so there is nothing for
``models.load_released``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import backbones
from models.parts.layers import ConvNormAct, upsample
from models.segmenter import Prediction, Segmenter, check_images

RATES = (6, 12, 18)
"""Dilations of the pyramid for features at stride 16; at stride 8 the paper doubles them."""
LOW_LEVEL_CHANNELS = 48
"""What the features at a quarter of the image are reduced to (table 1)."""


class SeparableConvolution(nn.Sequential):
    """A 3x3 convolution of every channel by itself, then a 1x1 convolution; each with norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1):
        super().__init__(
            nn.Conv2d(
                in_channels, in_channels, 3,
                padding=dilation, dilation=dilation, groups=in_channels, bias=False,
            ),
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            ConvNormAct(in_channels, out_channels, 1),
        )  # fmt: skip


class SeparableASPP(nn.Module):
    """Atrous spatial pyramid pooling with an image-level branch and separable convolutions.

    Args:
        in_channels: of the backbone's features.
        channels: C, of every branch and of the output.
        rates: dilations of the separable convolutions.
    """

    def __init__(self, in_channels: int, channels: int, rates: tuple[int, ...]):
        super().__init__()
        self.image = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(in_channels, channels, 1))
        self.branches = nn.ModuleList(
            [
                ConvNormAct(in_channels, channels, 1),
                *(SeparableConvolution(in_channels, channels, rate) for rate in rates),
            ]
        )
        self.project = nn.Sequential(ConvNormAct((len(rates) + 2) * channels, channels, 1), nn.Dropout(0.1))

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, in_channels, h, w) to (N, C, h, w)."""
        image = self.image(features).expand(-1, -1, *features.shape[-2:])
        joined: Tensor = self.project(torch.cat([image, *(b(features) for b in self.branches)], dim=1))
        return joined


class DeepLabv3Plus(Segmenter):
    """A dilated backbone, atrous spatial pyramid pooling and a decoder at a quarter of the image.

    In training, batch norm needs more than one value for each channel of the image-level branch: batches of
    two images or more.

    Args:
        num_classes: K, at least 1.
        backbone: any with features at stride 4 that can stop at stride 16 (the paper: ``xception65``, or
            ``resnet101``); a DRN stops at 8.
        pretrained: ImageNet weights of the backbone: from the hub, or from the file at a path.
        channels: of the pyramid and of the decoder (the paper: 256), at least 1.

    Raises:
        ValueError: an option outside its range, or a backbone that does not fit.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "xception65",
        pretrained: bool | str = False,
        channels: int = 256,
    ):
        super().__init__(num_classes)
        if channels < 1:
            raise ValueError(f"channels is {channels}; expected at least 1")
        self.backbone = backbones.create(backbone, levels=(1, 4), pretrained=pretrained, output_stride=16)
        (low, deep), (low_stride, stride) = self.backbone.channels, self.backbone.strides
        if low_stride != 4:
            raise ValueError(f"backbone is {backbone!r}, whose level 1 has stride {low_stride}; expected 4")
        rates = tuple(rate * 16 // stride for rate in RATES)
        self.pyramid = SeparableASPP(deep, channels, rates)
        self.low_level = ConvNormAct(low, LOW_LEVEL_CHANNELS, 1)
        self.decoder = nn.Sequential(
            SeparableConvolution(channels + LOW_LEVEL_CHANNELS, channels),
            SeparableConvolution(channels, channels),
        )
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        low, deep = self.backbone(images)
        context = upsample(self.pyramid(deep), low.shape[-2:])
        decoded = self.decoder(torch.cat((context, self.low_level(low)), dim=1))
        return Prediction(upsample(self.classifier(decoded), images.shape[-2:]))


MODEL = DeepLabv3Plus
