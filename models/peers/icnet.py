"""ICNet for Real-Time Semantic Segmentation on High-Resolution Images (Zhao et al., ECCV 2018, arXiv
1704.08545).

PSPNet-50 sees the image at a quarter of its size, its early stages at half, and three convolutions at full
size; cascade feature fusion joins them from coarse to fine, and every resolution is supervised by itself
(cascade label guidance). Layers, widths and dilations are read in the authors' repository (hszhao/ICNet).

The network that the authors tested has half the kernels of PSPNet-50: they removed the others step by step
from a trained one. At test its convolutions have 6,671,424 weights here, as in their description of it for
Caffe; GUN's table gives neither parameters nor multiply-accumulates. What differs is where a bottleneck
strides: here in its 3x3 convolution, as in all of timm's, there in the 1x1 before it. Their files hold
tensors only for Caffe, so there is nothing for ``models.load_released``.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import backbones
from models.backbones.base import no_imagenet_weights
from models.parts.layers import ConvNormAct, upsample
from models.segmenter import Prediction, Segmenter, check_images

BINS = (1, 2, 3, 6)
"""Rows and columns that pyramid pooling averages to."""
FUSED_CHANNELS = 128
GUIDANCE_WEIGHT = 0.4
"""Of the losses at a sixteenth and at an eighth of the image; the loss of the output weighs 1."""
HALF_THE_KERNELS: dict[str, Any] = {
    "stem_type": "deep", "stem_width": 32, "channels": (32, 64, 128, 256),
}  # fmt: skip


class CascadeFeatureFusion(nn.Module):
    """Brings a coarse feature to a fine one's size and adds the two (figure 3).

    Args:
        coarse_channels: of the coarse feature.
        fine_channels: of the fine feature.
        num_classes: K; the upsampled coarse feature is classified in training.
    """

    def __init__(self, coarse_channels: int, fine_channels: int, num_classes: int):
        super().__init__()
        self.coarse = ConvNormAct(coarse_channels, FUSED_CHANNELS, 3, dilation=2, activation=None)
        self.fine = ConvNormAct(fine_channels, FUSED_CHANNELS, 1, activation=None)
        self.guidance = nn.Conv2d(coarse_channels, num_classes, 1)

    def forward(self, coarse: Tensor, fine: Tensor) -> tuple[Tensor, Tensor | None]:
        """Coarse (N, coarse_channels, h, w) and fine (N, fine_channels, H, W) features to their sum
        (N, 128, H, W) and, in training, class scores (N, K, H, W) of the coarse one."""
        coarse = upsample(coarse, fine.shape[-2:])
        fused = F.relu(self.coarse(coarse) + self.fine(fine))
        return fused, self.guidance(coarse) if self.training else None


class ICNet(Segmenter):
    """Image cascade network.

    ``Prediction.auxiliary`` has ``sixteenth`` (N, K, H/16, W/16) and ``eighth`` (N, K, H/8, W/8) in training.

    Args:
        num_classes: K, at least 1.
        backbone: a ResNet of timm's.
        pretrained: ImageNet weights of the backbone: from the hub, or from the file at a path. There are
            none for half of the kernels.
        kernels: ``half`` is the tested network; ``all`` the one that its authors start from.
        auxiliary_weight: of the two losses of label guidance; 0 leaves them out.

    Raises:
        ValueError: an option outside its range, or a backbone that does not fit.
    """

    training_only = frozenset({"auxiliary_weight"})

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet50",
        pretrained: bool | str = False,
        kernels: Literal["half", "all"] = "half",
        auxiliary_weight: float = GUIDANCE_WEIGHT,
    ):
        if auxiliary_weight < 0:
            raise ValueError(f"auxiliary_weight is {auxiliary_weight}; expected 0 or more")
        if kernels not in ("half", "all"):
            raise ValueError(f"kernels is {kernels!r}; expected one of half, all")
        self.check_backbone(backbone)
        if kernels == "half" and pretrained:
            raise no_imagenet_weights(f"{backbone} with half of its kernels")
        super().__init__(num_classes, dict.fromkeys(("sixteenth", "eighth"), auxiliary_weight))
        options = HALF_THE_KERNELS if kernels == "half" else {}
        features = backbones.create(backbone, pretrained=pretrained, output_stride=8, **options)
        trunk: Any = features.get_submodule("trunk")
        first, *others = trunk.layer2
        self.stem = nn.Sequential(trunk.conv1, trunk.bn1, trunk.act1, trunk.maxpool, trunk.layer1, first)
        self.body = nn.Sequential(*others, trunk.layer3, trunk.layer4)
        _, middle, _, deep = features.channels
        self.reduce = ConvNormAct(deep, deep // 4, 1)
        self.detail = nn.Sequential(
            ConvNormAct(3, 32, 3, stride=2),
            ConvNormAct(32, 32, 3, stride=2),
            ConvNormAct(32, 64, 3, stride=2),
        )
        self.fuse_half = CascadeFeatureFusion(deep // 4, middle, num_classes)
        self.fuse_full = CascadeFeatureFusion(FUSED_CHANNELS, 64, num_classes)
        self.classifier = nn.Conv2d(FUSED_CHANNELS, num_classes, 1)

    @classmethod
    def check_backbone(cls, name: str) -> None:
        """Raises ``ValueError`` unless the backbone is a ResNet."""
        super().check_backbone(name)
        if not name.startswith("resnet"):
            raise ValueError(f"backbone is {name!r}; expected a ResNet, such as 'resnet50'")

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        half = self.stem(_half(images))  # at 1/16 of the image
        quarter = self.body(_half(half))  # at 1/32
        pooled = [upsample(F.adaptive_avg_pool2d(quarter, bins), quarter.shape[-2:]) for bins in BINS]
        context = self.reduce(torch.stack([quarter, *pooled]).sum(dim=0))
        fused, sixteenth = self.fuse_half(context, half)
        fused, eighth = self.fuse_full(fused, self.detail(images))
        scores = self.classifier(upsample(fused, [2 * side for side in fused.shape[-2:]]))
        auxiliary = {} if sixteenth is None else {"sixteenth": sixteenth, "eighth": eighth}
        return Prediction(upsample(scores, images.shape[-2:]), auxiliary)


def _half(x: Tensor) -> Tensor:
    """(N, C, H, W) to half the size, rounded up."""
    return upsample(x, [(side + 1) // 2 for side in x.shape[-2:]])


MODEL = ICNet
