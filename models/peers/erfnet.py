"""ERFNet: Efficient Residual Factorized ConvNet (Romera et al., IEEE T-ITS 2018).

Residual blocks whose 3x3 convolutions are split into 3x1 and 1x3 ones, with growing dilations, and a
decoder of transposed convolutions. Read in the authors' repository (Eromera/erfnet_pytorch), whose
checkpoints load by renaming (``models.load_released``); theirs have 20 classes, the last of them for what is
not labelled, and images between 0 and 1. 2.06 M parameters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.base import no_imagenet_weights
from models.parts.layers import pad_to_multiple
from models.released import ReleasedFormat
from models.segmenter import Prediction, Segmenter, check_images

DILATIONS = (2, 4, 8, 16)
"""Of the blocks at stride 8, which follow each other twice."""


class Downsampler(nn.Module):
    """Half the size: a strided convolution and a max pooling side by side (as ENet's first block)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, features: Tensor) -> Tensor:
        """(N, in_channels, h, w) to (N, out_channels, h/2, w/2), h and w even."""
        halved = torch.cat((self.conv(features), F.max_pool2d(features, 2)), dim=1)
        return F.relu(self.norm(halved))


class NonBottleneck1D(nn.Module):
    """A residual block of two 3x3 convolutions, each factorised; the second pair is dilated.

    Args:
        channels: of input and output.
        dilation: of the second pair.
        dropout: probability of leaving out a channel of the residual.
    """

    def __init__(self, channels: int, dilation: int = 1, dropout: float = 0.0):
        super().__init__()
        self.residual = nn.Sequential(
            *_factorised(channels, 1),
            nn.BatchNorm2d(channels, eps=1e-3),
            nn.ReLU(inplace=True),
            *_factorised(channels, dilation),
            nn.BatchNorm2d(channels, eps=1e-3),
            nn.Dropout2d(dropout),
        )

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, channels, h, w) to features of the same shape."""
        return F.relu(self.residual(features) + features)


def _factorised(channels: int, dilation: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1)),
        nn.ReLU(inplace=True),
        nn.Conv2d(channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation)),
    ]


class Upsampler(nn.Sequential):
    """Twice the size by a transposed 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1),
            nn.BatchNorm2d(out_channels, eps=1e-3),
            nn.ReLU(inplace=True),
        )


class ERFNet(Segmenter):
    """Efficient Residual Factorized ConvNet, trained from scratch.

    The authors first train the encoder, on ImageNet or on smaller labels, with a classifier of its own that
    is not part of this network; here all is trained at once, as every other system is.

    Args:
        num_classes: K, at least 1.
        pretrained: ``False``; nobody publishes ImageNet weights in a known format.

    Raises:
        ValueError: an option outside its range.
    """

    def __init__(self, num_classes: int, *, pretrained: bool | str = False):
        super().__init__(num_classes)
        if pretrained:
            raise no_imagenet_weights("erfnet")
        self.encoder = nn.Sequential(
            Downsampler(3, 16),
            Downsampler(16, 64),
            *(NonBottleneck1D(64, dropout=0.03) for _ in range(5)),
            Downsampler(64, 128),
            *(NonBottleneck1D(128, dilation, dropout=0.3) for dilation in 2 * DILATIONS),
        )
        self.decoder = nn.Sequential(
            Upsampler(128, 64),
            NonBottleneck1D(64),
            NonBottleneck1D(64),
            Upsampler(64, 16),
            NonBottleneck1D(16),
            NonBottleneck1D(16),
            nn.ConvTranspose2d(16, num_classes, 2, stride=2),
        )

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        height, width = images.shape[-2:]
        scores = self.decoder(self.encoder(pad_to_multiple(images, 8)))
        return Prediction(scores[..., :height, :width])

    def released_format(self) -> ReleasedFormat:
        """See ``Segmenter``. The classifier of the encoder's own training has no use."""
        names: dict[str, str | Sequence[str]] = {"encoder.output_conv": (), **_RELEASED_MODULES}
        return ReleasedFormat({rf"(?:module\.)?{re.escape(theirs)}": ours for theirs, ours in names.items()})


def _released_modules() -> dict[str, str]:
    """The authors' modules, and what they are called here."""
    downsampler = {"conv": "conv", "bn": "norm"}
    upsampler = {"conv": "0", "bn": "1"}
    block = {
        "conv3x1_1": "residual.0",
        "conv1x3_1": "residual.2",
        "bn1": "residual.3",
        "conv3x1_2": "residual.5",
        "conv1x3_2": "residual.7",
        "bn2": "residual.8",
    }
    blocks = [("encoder.initial_block", "encoder.0", downsampler)]
    for number in range(15):
        inside = downsampler if number in (0, 6) else block
        blocks.append((f"encoder.layers.{number}", f"encoder.{number + 1}", inside))
    for number in range(6):
        inside = upsampler if number in (0, 3) else block
        blocks.append((f"decoder.layers.{number}", f"decoder.{number}", inside))
    return {"decoder.output_conv": "decoder.6"} | {
        f"{theirs}.{inner}": f"{ours}.{name}"
        for theirs, ours, inside in blocks
        for inner, name in inside.items()
    }


_RELEASED_MODULES = _released_modules()

MODEL = ERFNet
