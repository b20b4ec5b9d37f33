"""Blocks that at least two models share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch norm, activation; keeps the size at stride 1.

    Args:
        in_channels: channels of the input (N, in_channels, H, W).
        out_channels: channels of the output.
        kernel_size: odd, in pixels.
        stride: of the convolution.
        dilation: of the convolution.
        activation: makes the last layer; ``None`` leaves it out.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        dilation: int = 1,
        activation: Callable[[], nn.Module] | None = lambda: nn.ReLU(inplace=True),
    ):
        padding = dilation * (kernel_size // 2)
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False),
            nn.BatchNorm2d(out_channels),
        ]
        if activation is not None:
            layers.append(activation())
        super().__init__(*layers)


def upsample(x: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Bilinear resize of (N, C, h, w) to ``size`` (H, W); the tensor itself if it has that size."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=align_corners)


def unpool(x: Tensor, places: Tensor) -> Tensor:
    """Undoes a 2 x 2 max pooling: puts every value where the maximum was, and zeros elsewhere.

    It is ``F.max_unpool2d``, which neither has a deterministic form on a GPU nor can be traced.

    Args:
        x: (N, C, h, w).
        places: (N, C, h, w), as ``F.max_pool2d`` returns them for sides that are even.

    Returns:
        (N, C, 2h, 2w).
    """
    batch, channels, height, width = x.shape
    zeros = x.new_zeros(batch, channels, 4 * height * width)
    return zeros.scatter(2, places.flatten(2), x.flatten(2)).view(batch, channels, 2 * height, 2 * width)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """(N, C, H, W) with zeros below and to the right, up to the next multiple of so many pixels."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple))
