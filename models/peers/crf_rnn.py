"""CRF-RNN (Zheng et al., ICCV 2015, arXiv 1502.03240): FCN-8s and mean field as a recurrent network.

The scores of FCN-8s are the unary potentials of a fully connected CRF over the pixels. Its mean field runs as
layers that are trained with the network: five updates in training, ten at test (section 5), with kernel
weights for each class and a compatibility for each pair of classes that are learned. The bandwidths stand;
they are, and the weights start, as in the authors' public code: 160 pixels, 3 levels of colour and 3 pixels,
5 for appearance and 3 for smoothness.
"""

from __future__ import annotations

from torch import Tensor

from models.backbones import vgg
from models.parts.dense_crf import Bandwidths, DenseCRF
from models.parts.layers import upsample
from models.peers.fcn8s import SkipScores
from models.segmenter import Prediction, Segmenter, check_images


class CRFRNN(Segmenter):
    """FCN-8s with a fully connected CRF that is trained with it.

    Args:
        num_classes: K, at least 1.
        backbone: a name of ``vgg.NAMES``.
        pretrained: ImageNet weights of the backbone.
        training_iterations: mean field updates in training, at least 1.
        iterations: mean field updates in evaluation mode; 0 leaves the scores of FCN-8s.
        unary_weight: of the loss on the scores of FCN-8s. The paper trains these alone first; one training
            of both needs a loss on both (inferred).
        position_bandwidth: of the CRF's appearance kernel, in pixels of the network's input.
        smoothness_bandwidth: of its smoothness kernel, likewise.

    Raises:
        ValueError: a value outside these ranges.

    ``Prediction.auxiliary`` has ``unary`` (N, K, ~H/8, ~W/8) in training, ``Prediction.maps`` has
    ``unary_scores``, the same.
    """

    training_only = frozenset({"training_iterations", "unary_weight"})
    inference_only = frozenset({"iterations"})

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "vgg16",
        pretrained: bool | str = False,
        training_iterations: int = 5,
        iterations: int = 10,
        unary_weight: float = 1.0,
        position_bandwidth: float = 160.0,
        smoothness_bandwidth: float = 3.0,
    ):
        if training_iterations < 1 or iterations < 0:
            raise ValueError(
                f"training_iterations is {training_iterations} and iterations is {iterations}; "
                "expected at least 1 and at least 0"
            )
        super().__init__(num_classes, {"unary": unary_weight})
        self.training_iterations, self.iterations = training_iterations, iterations
        self.scores = SkipScores(num_classes, backbone, pretrained)
        self.crf = DenseCRF(
            num_classes,
            Bandwidths(position_bandwidth, 3, smoothness_bandwidth),
            appearance_weight=5,
            smoothness_weight=3,
            learned=True,
        )

    @classmethod
    def check_backbone(cls, name: str) -> None:
        """See ``Segmenter``."""
        vgg.check_name(name)

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        scores, _ = self.scores(images)
        iterations = self.training_iterations if self.training else self.iterations
        logits = self.crf(upsample(scores, images.shape[-2:]), images, iterations)
        auxiliary = {"unary": scores} if self.training else {}
        return Prediction(logits, auxiliary, {"unary_scores": scores.detach()})


MODEL = CRFRNN
