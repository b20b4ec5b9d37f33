"""A model to start from: copy this file to ``models/<name>.py`` and change it.

Then add an experiment to ``params.yaml`` with ``model: <name>``. The annotations of the constructor are what
its ``options`` are checked against; ``python -m models <name>`` lists them.

As it stands: a backbone, the features of its last level, and a 1x1 convolution to class scores.
"""

from __future__ import annotations

from torch import Tensor, nn

from models import backbones
from models.parts.layers import ConvNormAct, upsample
from models.segmenter import Prediction, Segmenter, check_images


class Template(Segmenter):
    """A fully convolutional network.

    Args:
        num_classes: K, at least 1; it comes from the data set.
        backbone: any that ``models.backbones.create`` knows.
        pretrained: ImageNet weights of the backbone; every model takes it, and it comes from the recipe.
        width: channels before the classifier, at least 1.
        auxiliary_weight: of the loss on the scores of the level before the last; 0 leaves them out.

    Raises:
        ValueError: a value outside these ranges.
    """

    # Options that the network at test does not depend on, and those that training does not.
    training_only = frozenset({"auxiliary_weight"})
    inference_only = frozenset[str]()

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet18",
        pretrained: bool | str = False,
        width: int = 64,
        auxiliary_weight: float = 0.4,
    ):
        # The names of auxiliary scores, and the weights of their losses.
        super().__init__(num_classes, {"early": auxiliary_weight})
        if width < 1:
            raise ValueError(f"width is {width}; expected at least 1 channel")
        self.backbone = backbones.create(backbone, pretrained=pretrained)
        *_, before, last = self.backbone.channels
        self.head = nn.Sequential(ConvNormAct(last, width), nn.Conv2d(width, num_classes, 1))
        self.early = nn.Conv2d(before, num_classes, 1)

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised images (N, 3, H, W) of any height and width."""
        check_images(images)
        *_, before, last = self.backbone(images)
        logits = upsample(self.head(last), images.shape[-2:])
        auxiliary = {"early": self.early(before)} if self.training else {}
        return Prediction(logits, auxiliary, maps={"last_feature_attention": last.detach()})


MODEL = Template
