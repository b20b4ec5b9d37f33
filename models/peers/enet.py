"""ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation (Paszke et al., 2016, arXiv
1606.02147).

Residual bottlenecks at a quarter and an eighth of the image, and a small decoder that unpools to where the
encoder's max pooling found its values. Widths and order are the paper's table 1; biases, dropout and the
rectifiers of the decoder are read in the authors' repository (e-lab/ENet-training). They released Torch7
objects, which are code and not tensors, so there is nothing for ``models.load_released``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.base import no_imagenet_weights
from models.parts.layers import pad_to_multiple, unpool
from models.segmenter import Prediction, Segmenter, check_images

STAGE: tuple[tuple[int, bool], ...] = (
    (1, False), (2, False), (1, True), (4, False), (1, False), (8, False), (1, True), (16, False),
)  # fmt: skip
"""Bottlenecks of stages 2 and 3: dilation, and whether the 3x3 is a 5x1 and a 1x5 convolution."""

Activation = Callable[[int], nn.Module]
"""Channels to an activation: ``nn.PReLU`` in the encoder, a plain ReLU in the decoder."""


def _relu(channels: int) -> nn.Module:  # noqa: ARG001
    return nn.ReLU()


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class InitialBlock(nn.Module):
    """Half the size: a strided convolution and a max pooling of the image side by side (figure 2a)."""

    def __init__(self, channels: int = 16):
        super().__init__()
        self.conv = nn.Conv2d(3, channels - 3, 3, stride=2, padding=1)
        self.norm = _norm(channels)
        self.activation = nn.PReLU(channels)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, channels, H/2, W/2), H and W even."""
        halved = torch.cat((self.conv(images), F.max_pool2d(images, 2)), dim=1)
        activated: Tensor = self.activation(self.norm(halved))
        return activated


def _residual(
    enter: nn.Module, middle: list[nn.Module], out_channels: int, activation: Activation
) -> list[nn.Module]:
    """The convolutional branch of figure 2b: in, through a quarter of the channels, and out."""
    inside = out_channels // 4
    return [
        enter, _norm(inside), activation(inside),
        *middle, _norm(inside), activation(inside),
        nn.Conv2d(inside, out_channels, 1, bias=False), _norm(out_channels),
    ]  # fmt: skip


class Bottleneck(nn.Module):
    """A residual block at constant size (figure 2b).

    Args:
        channels: of input and output; a quarter of them inside.
        dilation: of the 3x3 convolution.
        asymmetric: a 5x1 and a 1x5 convolution in place of the 3x3.
        dropout: probability of leaving out a channel of the residual.
        activation: makes the rectifiers.
    """

    def __init__(
        self,
        channels: int,
        dilation: int = 1,
        asymmetric: bool = False,
        dropout: float = 0.0,
        activation: Activation = nn.PReLU,
    ):
        super().__init__()
        inside = channels // 4
        middle: list[nn.Module] = [nn.Conv2d(inside, inside, 3, padding=dilation, dilation=dilation)]
        if asymmetric:
            middle = [
                nn.Conv2d(inside, inside, (1, 5), padding=(0, 2), bias=False),
                nn.Conv2d(inside, inside, (5, 1), padding=(2, 0)),
            ]
        enter = nn.Conv2d(channels, inside, 1, bias=False)
        self.residual = nn.Sequential(*_residual(enter, middle, channels, activation), nn.Dropout2d(dropout))
        self.activation = activation(channels)

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, channels, h, w) to features of the same shape."""
        activated: Tensor = self.activation(self.residual(features) + features)
        return activated


class Downsampling(nn.Module):
    """A residual block to half the size; its shortcut is a max pooling with zeros for the new channels."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float):
        super().__init__()
        inside = out_channels // 4
        enter = nn.Conv2d(in_channels, inside, 2, stride=2, bias=False)
        middle: list[nn.Module] = [nn.Conv2d(inside, inside, 3, padding=1)]
        self.residual = nn.Sequential(
            *_residual(enter, middle, out_channels, nn.PReLU), nn.Dropout2d(dropout)
        )
        self.activation = nn.PReLU(out_channels)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in_channels, h, w), h and w even, to half the size, and where the pooling found its values."""
        residual = self.residual(features)
        pooled, places = F.max_pool2d(features, 2, return_indices=True)
        new = residual.shape[1] - pooled.shape[1]
        return self.activation(residual + F.pad(pooled, (0, 0, 0, 0, 0, new))), places


class Upsampling(nn.Module):
    """A residual block to twice the size; its shortcut unpools to where the values were found."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        inside = out_channels // 4
        enter = nn.Conv2d(in_channels, inside, 1, bias=False)
        middle: list[nn.Module] = [
            nn.ConvTranspose2d(inside, inside, 3, stride=2, padding=1, output_padding=1)
        ]
        self.residual = nn.Sequential(*_residual(enter, middle, out_channels, _relu))
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, bias=False), _norm(out_channels)
        )

    def forward(self, features: Tensor, places: Tensor) -> Tensor:
        """(N, in_channels, h, w) and places (N, out_channels, h, w) to (N, out_channels, 2h, 2w)."""
        return F.relu(self.residual(features) + unpool(self.shortcut(features), places))


class ENet(Segmenter):
    """Efficient neural network, trained from scratch.

    The authors first train the encoder on labels of an eighth of the size; here all is trained at once, as
    every other system is.

    Args:
        num_classes: K, at least 1.
        pretrained: ``False``; there are no ImageNet weights.

    Raises:
        ValueError: an option outside its range.
    """

    def __init__(self, num_classes: int, *, pretrained: bool | str = False):
        super().__init__(num_classes)
        if pretrained:
            raise no_imagenet_weights("enet")
        self.initial = InitialBlock(16)
        self.down1 = Downsampling(16, 64, dropout=0.01)
        self.stage1 = nn.Sequential(*(Bottleneck(64, dropout=0.01) for _ in range(4)))
        self.down2 = Downsampling(64, 128, dropout=0.1)
        self.stages23 = nn.Sequential(
            *(Bottleneck(128, dilation, asymmetric, dropout=0.1) for dilation, asymmetric in 2 * STAGE)
        )
        self.up4 = Upsampling(128, 64)
        self.stage4 = nn.Sequential(*(Bottleneck(64, activation=_relu) for _ in range(2)))
        self.up5 = Upsampling(64, 16)
        self.stage5 = Bottleneck(16, activation=_relu)
        self.classifier = nn.ConvTranspose2d(16, num_classes, 2, stride=2)

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        height, width = images.shape[-2:]
        features, places1 = self.down1(self.initial(pad_to_multiple(images, 8)))
        features, places2 = self.down2(self.stage1(features))
        features = self.stage4(self.up4(self.stages23(features), places2))
        features = self.stage5(self.up5(features, places1))
        return Prediction(self.classifier(features)[..., :height, :width])


MODEL = ENet
