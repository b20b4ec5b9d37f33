"""DenseASPP for Semantic Segmentation in Street Scenes (Yang et al., CVPR 2018).

Five dilated convolutions on the features of a dilated DenseNet, each of which also sees what the ones before
it found. Read in the authors' repository (DeepMotionAIResearch/DenseASPP), whose checkpoints load by
renaming (``models.load_released``); their images have the mean (0.290, 0.328, 0.287) and the deviation
(0.183, 0.187, 0.184) of Cityscapes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import backbones
from models.parts.layers import upsample
from models.released import ReleasedFormat
from models.segmenter import Prediction, Segmenter, check_images

DILATIONS = (3, 6, 12, 18, 24)
"""Of the five layers, for features at stride 8."""


class DenseASPPLayer(nn.Sequential):
    """1x1 convolution to ``width`` channels, then a dilated 3x3 convolution to ``growth`` channels.

    Args:
        in_channels: of all that it sees.
        width: channels between the two convolutions.
        growth: channels of its output.
        dilation: of the second convolution.
        first: whether it sees the backbone's features alone, which come normalised already.
    """

    def __init__(self, in_channels: int, width: int, growth: int, dilation: int, first: bool):
        # The authors' momentum: running statistics change slowly there.
        super().__init__(
            nn.Identity() if first else nn.BatchNorm2d(in_channels, momentum=0.0003),
            nn.ReLU(),
            nn.Conv2d(in_channels, width, 1),
            nn.BatchNorm2d(width, momentum=0.0003),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, growth, 3, padding=dilation, dilation=dilation),
            nn.Dropout2d(0.1),
        )


class DenseASPP(Segmenter):
    """A dilated backbone and densely connected atrous spatial pyramid pooling.

    The numbers of SPGNet's table are met by the features of the authors' code: those of the last dense block
    at half their channels. Without that 1x1 convolution the layers would see twice as many.

    Args:
        num_classes: K, at least 1.
        backbone: any that can stop at stride 8.
        pretrained: ImageNet weights of the backbone: from the hub, or from the file at a path.
        width: channels inside a layer (the authors: 512 on a DenseNet-161), at least 1.
        growth: channels that a layer adds (the authors: 128), at least 1.

    Raises:
        ValueError: an option outside its range, or a backbone that does not fit.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "densenet161",
        pretrained: bool | str = False,
        width: int = 512,
        growth: int = 128,
    ):
        super().__init__(num_classes)
        for option, value in (("width", width), ("growth", growth)):
            if value < 1:
                raise ValueError(f"{option} is {value}; expected at least 1 channel")
        self.backbone = backbones.create(backbone, levels=(4,), pretrained=pretrained, output_stride=8)
        channels = self.backbone.channels[0] // 2
        self.reduce = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        self.layers = nn.ModuleList()
        for number, dilation in enumerate(DILATIONS):
            seen = channels + number * growth
            self.layers.append(DenseASPPLayer(seen, width, growth, dilation, first=number == 0))
        channels += len(DILATIONS) * growth
        self.classifier = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, num_classes, 1))

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        (features,) = self.backbone(images)
        features = self.reduce(features)
        for layer in self.layers:
            # New before old, which is the order of the channels in the authors' checkpoints.
            features = torch.cat((layer(features), features), dim=1)
        scores = self.classifier(features)
        # Aligned corners are what bilinear meant in the PyTorch of the authors' code.
        return Prediction(upsample(scores, images.shape[-2:], align_corners=True))

    def released_format(self) -> ReleasedFormat:
        """See ``Segmenter``."""
        return ReleasedFormat({rf"(?:module\.)?{theirs}": ours for theirs, ours in _RELEASED_MODULES.items()})


_RELEASED_MODULES = {
    # timm's last norm is that of the fourth transition, which its DenseNets do not have.
    r"features\.transition4\.norm": "backbone.trunk.features_norm5",
    r"features\.transition4\.conv": "reduce.0",
    r"features\.norm5": "reduce.1",
    r"features\.(denseblock\d\.denselayer\d+\.(?:norm|conv))\.(\d)": "backbone.trunk.features_{0}{1}",
    r"features\.(\w+)": "backbone.trunk.features_{0}",
    r"classification\.1": "classifier.1",
} | {
    rf"ASPP_{dilation}\.{theirs}": f"layers.{number}.{ours}"
    for number, dilation in enumerate(DILATIONS)
    for theirs, ours in ((r"norm\.1", 0), (r"conv\.1", 2), (r"norm\.2", 3), (r"conv\.2", 5))
}
"""Patterns of how the authors' names begin, and what they are called here; the first that fits counts."""

MODEL = DenseASPP
