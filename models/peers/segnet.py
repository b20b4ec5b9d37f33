"""SegNet: A Deep Convolutional Encoder-Decoder Architecture (Badrinarayanan et al., TPAMI 2017, arXiv
1511.00561).

The thirteen convolutions of VGG-16, and as many in the opposite order. A stage of the decoder starts by
putting every value back to where the encoder's max pooling found it, with zeros elsewhere. 29.4 M parameters
with VGG-16 and batch norm. The authors' files hold tensors only for Caffe, so there is nothing for
``models.load_released``.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones import vgg
from models.parts.layers import ConvNormAct, pad_to_multiple, unpool
from models.segmenter import Prediction, Segmenter, check_images


class SegNet(Segmenter):
    """Encoder and decoder of the same shape, joined by the places of the maxima.

    Args:
        num_classes: K, at least 1.
        backbone: one of ``vgg.NAMES``; its convolutions are the encoder's.
        pretrained: ImageNet weights of the encoder: from the hub, or from the file at a path.

    Raises:
        ValueError: another backbone.
    """

    def __init__(self, num_classes: int, *, backbone: str = "vgg16_bn", pretrained: bool | str = False):
        super().__init__(num_classes)
        self.check_backbone(backbone)
        self.encoder = vgg.VGG(backbone, pretrained=pretrained).stages
        widths = [
            [c.out_channels for c in stage.children() if isinstance(c, nn.Conv2d)] for stage in self.encoder
        ]
        # A stage leaves with the channels that the encoder's stage entered with: what comes next is
        # unpooled to the places of that many channels.
        entered = [widths[0][0], *(stage[-1] for stage in widths[:-1])]
        self.decoder = nn.ModuleList()
        for number, (stage, last) in enumerate(zip(widths, entered, strict=True)):
            layers: list[nn.Module] = [ConvNormAct(a, b) for a, b in pairwise([*stage[::-1], last])]
            if number == 0:  # the last convolution of all predicts the classes instead
                layers[-1] = nn.Conv2d(last, num_classes, 3, padding=1)
            self.decoder.append(nn.Sequential(*layers))

    @classmethod
    def check_backbone(cls, name: str) -> None:
        """Raises ``ValueError`` unless the backbone is one of ``vgg.NAMES``."""
        vgg.check_name(name)

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        height, width = images.shape[-2:]
        # With sides that five poolings halve, every place belongs to exactly one window.
        features, places = pad_to_multiple(images, 32), []
        for stage in self.encoder:
            features, found = F.max_pool2d(stage(features), 2, return_indices=True)
            places.append(found)
        for stage in reversed(self.decoder):
            features = stage(unpool(features, places.pop()))
        return Prediction(features[..., :height, :width])


MODEL = SegNet
