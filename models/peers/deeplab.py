"""DeepLab-LargeFOV with a fully connected CRF (Chen et al., ICLR 2015, arXiv 1412.7062).

VGG-16 whose last two poolings keep the size, so that it scores classes at 1/8 of the image; its fifth stage
dilates by 2, and fc6 is a 3 x 3 convolution of 1024 channels that dilates by 12, the paper's large field of
view with 20.5 M parameters (its table 2). A CRF over the pixels of the upsampled scores follows at test; it
takes no part in training.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.backbones import vgg
from models.parts.dense_crf import Bandwidths, DenseCRF
from models.parts.layers import upsample
from models.segmenter import Prediction, Segmenter, check_images


class DeepLab(Segmenter):
    """DeepLab-LargeFOV.

    The paper searches the CRF's parameters on held-out images of its data set. Nobody states the result for
    Cityscapes: the defaults are those of the authors' public script for Pascal VOC.

    Args:
        num_classes: K, at least 1.
        backbone: a name of ``vgg.NAMES``.
        pretrained: ImageNet weights of the backbone; fc6 and fc7 take a part of the classifier's.
        iterations: mean field updates in evaluation mode; 0 leaves the upsampled scores.
        appearance_weight: of the CRF's appearance kernel, at least 0; smoothness has the weight 3.
        position_bandwidth: of the appearance kernel, in pixels of the network's input.
        colour_bandwidth: of that kernel, in levels of 0 to 255 (see ``dense_crf.Bandwidths``).
        smoothness_bandwidth: of the smoothness kernel, in pixels of the network's input.

    Raises:
        ValueError: a value outside these ranges.

    ``Prediction.maps`` has ``unary_scores`` (N, K, ~H/8, ~W/8), before the CRF.
    """

    inference_only = frozenset(
        {"iterations", "appearance_weight", "position_bandwidth", "colour_bandwidth", "smoothness_bandwidth"}
    )

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "vgg16",
        pretrained: bool | str = False,
        iterations: int = 10,
        appearance_weight: float = 4.0,
        position_bandwidth: float = 49.0,
        colour_bandwidth: float = 5.0,
        smoothness_bandwidth: float = 3.0,
    ):
        if iterations < 0:
            raise ValueError(f"iterations is {iterations}; expected at least 0")
        super().__init__(num_classes)
        self.iterations = iterations
        shrinking, keeping = vgg.Pooling(3, 2), vgg.Pooling(3, 1)
        self.backbone = vgg.VGG(
            backbone,
            levels=(6,),
            poolings=(shrinking, shrinking, shrinking, keeping, keeping),
            fully_connected=vgg.FullyConnected(kernel_size=3, narrowing=4, dilation=12),
            pretrained=pretrained,
        )
        self.classifier = nn.Conv2d(self.backbone.channels[0], num_classes, 1)
        self.crf = DenseCRF(
            num_classes,
            Bandwidths(position_bandwidth, colour_bandwidth, smoothness_bandwidth),
            appearance_weight=appearance_weight,
            smoothness_weight=3,
        )

    @classmethod
    def check_backbone(cls, name: str) -> None:
        """See ``Segmenter``."""
        vgg.check_name(name)

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        (features,) = self.backbone(images)
        scores = self.classifier(features)
        logits = upsample(scores, images.shape[-2:])
        if not self.training:
            logits = self.crf(logits, images, self.iterations)
        return Prediction(logits, maps={"unary_scores": scores.detach()})


MODEL = DeepLab
