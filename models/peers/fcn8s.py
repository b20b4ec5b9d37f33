"""FCN-8s (Long, Shelhamer and Darrell, CVPR 2015, arXiv 1411.4038).

VGG-16 with its fully connected layers as convolutions of 4096 channels scores classes at 1/32 of the image.
Two steps of learned upsampling by two add the scores of the fourth and the third pooling, and the sum at 1/8
goes up to the image in one bilinear step. The paper gives 134 M parameters (its table 1, for FCN-VGG16).

The released network pads the image by 100 pixels so that unpadded fc6 has something to see, and crops its
scores. Here fc6 pads by itself, and the scores are aligned to the image without cropping.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.backbones import vgg
from models.parts.layers import upsample
from models.segmenter import Prediction, Segmenter, check_images


class FCN8s(Segmenter):
    """Fully convolutional network with skips down to stride 8.

    Args:
        num_classes: K, at least 1.
        backbone: a name of ``vgg.NAMES``.
        pretrained: ImageNet weights of the backbone, fc6 and fc7 with it.

    ``Prediction.maps`` has ``coarse_scores`` (N, K, ~H/32, ~W/32), before the skips.
    """

    def __init__(self, num_classes: int, *, backbone: str = "vgg16", pretrained: bool | str = False):
        super().__init__(num_classes)
        self.scores = SkipScores(num_classes, backbone, pretrained)

    @classmethod
    def check_backbone(cls, name: str) -> None:
        """See ``Segmenter``."""
        vgg.check_name(name)

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        scores, coarse = self.scores(images)
        return Prediction(upsample(scores, images.shape[-2:]), maps={"coarse_scores": coarse.detach()})


class SkipScores(nn.Module):
    """Class scores at stride 8: fc7's, with those of the fourth and the third pooling added on the way up.

    The classifiers start at zero and the upsampling at bilinear, as in the paper (sections 4.2 and 4.3).

    Args:
        num_classes: K.
        backbone: a name of ``vgg.NAMES``.
        pretrained: as for ``vgg.VGG``.
    """

    def __init__(self, num_classes: int, backbone: str, pretrained: bool | str):
        super().__init__()
        self.backbone = vgg.VGG(backbone, levels=(3, 4, 6), pretrained=pretrained)
        self.classifiers = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in self.backbone.channels)
        self.doublings = nn.ModuleList(_bilinear_doubling(num_classes) for _ in range(2))
        for classifier in self.classifiers:
            nn.init.zeros_(classifier.weight)  # type: ignore[arg-type]
            nn.init.zeros_(classifier.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) to scores (N, K, ceil(H/8), ceil(W/8)) and fc7's own, at stride 32."""
        features = self.backbone(images)
        pool3, pool4, fc7 = (
            classify(feature) for classify, feature in zip(self.classifiers, features, strict=True)
        )
        scores = fc7
        for double, skip in zip(self.doublings, (pool4, pool3), strict=True):
            height, width = skip.shape[-2:]
            # An odd side was rounded up on its way down, so the doubled map reaches beyond the image.
            scores = double(scores)[..., :height, :width] + skip
        return scores, fc7


def _bilinear_doubling(channels: int) -> nn.ConvTranspose2d:
    """A transposed convolution that starts as bilinear upsampling by two of each channel."""
    double = nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1, bias=False)
    tent = torch.tensor([0.25, 0.75, 0.75, 0.25])
    nn.init.zeros_(double.weight)
    with torch.no_grad():
        double.weight[range(channels), range(channels)] = torch.outer(tent, tent)
    return double


MODEL = FCN8s
