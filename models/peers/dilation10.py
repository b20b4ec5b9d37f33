"""Dilation10 (Yu and Koltun, ICLR 2016, arXiv 1511.07122): a front end and a context module.

Read in the authors' public definition for Cityscapes (fyu/dilation): the front end is VGG-16 without its last
two poolings, dilated by 2 and 4 in exchange, with a fully connected part of 4096 channels; it pads nothing,
and the image is continued by reflection instead, by 186 pixels on every side. The context module is ten
convolutions of K channels on its scores, with dilation 1, 1, 2, 4, 8, 16, 32, 64, 1 and a last one of 1 x 1.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.backbones import vgg
from models.parts.layers import upsample
from models.segmenter import Prediction, Segmenter, check_images

_DILATIONS = (1, 1, 2, 4, 8, 16, 32, 64, 1)
_STRIDE = 8


class Dilation10(Segmenter):
    """VGG-16 front end and the ten-layer context module.

    Args:
        num_classes: K, at least 1.
        backbone: a name of ``vgg.NAMES``. The image is continued by what the front end's convolutions lose:
            186 pixels for VGG-16.
        pretrained: ImageNet weights of the backbone, fc6 and fc7 with it.
        front_weight: of the loss on the front end's scores. The authors train the front end first, then the
            context module, then both; one training of both needs a loss on both (inferred).

    ``Prediction.auxiliary`` has ``front`` (N, K, ~H/8, ~W/8) in training, ``Prediction.maps`` has
    ``front_scores``, the same.
    """

    training_only = frozenset({"front_weight"})

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "vgg16",
        pretrained: bool | str = False,
        front_weight: float = 1.0,
    ):
        super().__init__(num_classes, {"front": front_weight})
        shrinking = vgg.Pooling()
        self.front = vgg.VGG(
            backbone,
            levels=(6,),
            poolings=(shrinking, shrinking, shrinking, None, None),
            padded=False,
            pretrained=pretrained,
        )
        self.classifier = nn.Conv2d(self.front.channels[0], num_classes, 1)
        self.context = ContextModule(num_classes)

    @classmethod
    def check_backbone(cls, name: str) -> None:
        """See ``Segmenter``."""
        vgg.check_name(name)

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        height, width = images.shape[-2:]
        (features,) = self.front(continue_by_reflection(images, self.front.margin, _STRIDE))
        front = self.classifier(features)
        scores = upsample(self.context(front), [side * _STRIDE for side in front.shape[-2:]])
        auxiliary = {"front": front} if self.training else {}
        return Prediction(scores[..., :height, :width], auxiliary, {"front_scores": front.detach()})


class ContextModule(nn.Sequential):
    """Convolutions that see ever further at the same resolution (section 3), zeros around.

    They start as the identity, which is what lets a plain chain of them learn (section 3, equation 4).

    Args:
        channels: K, of the scores and of every layer.
    """

    def __init__(self, channels: int):
        layers: list[nn.Module] = []
        for dilation in _DILATIONS:
            convolution = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
            layers += [convolution, nn.ReLU(inplace=True)]
        layers.append(nn.Conv2d(channels, channels, 1))
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.dirac_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        super().__init__(*layers)


def continue_by_reflection(images: Tensor, margin: int, multiple: int) -> Tensor:
    """Images (N, C, H, W) with ``margin`` reflected pixels around, H and W first rounded up to a multiple.

    A margin larger than the image reflects as often as it takes.
    """
    for axis in (-2, -1):
        side = images.shape[axis]
        rounded = -(-side // multiple) * multiple
        period = max(2 * side - 2, 1)
        places = torch.arange(-margin, rounded + margin, device=images.device) % period
        images = images.index_select(axis, torch.minimum(places, period - places) % side)
    return images


MODEL = Dilation10
