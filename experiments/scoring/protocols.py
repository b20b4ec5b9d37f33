"""From a network and an image to class scores, by the protocol that a published number was taken with."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.config.protocol import Protocol

__all__ = ["Protocol", "predict", "predict_each", "window_starts"]


def predict(
    network: Callable[[Tensor], Tensor], image: Tensor, protocol: Protocol, size: tuple[int, int]
) -> Tensor:
    """Class scores of an image, averaged over windows, scales and flips as a protocol says.

    Memory does not grow with the number of windows or scales: each is added to a running sum.

    Args:
        network: images (N, 3, h, w), normalised, to class scores (N, K, any height, any width).
        image: (N, 3, H, W), normalised. The protocols are defined for one image; several of one size are a
            batch, and get what each would get alone.
        protocol: how.
        size: height and width of the result: the labels'.

    Returns:
        (N, K, *size) in float32; the argmax over K is the prediction.

    Raises:
        ValueError: the image is no batch of images, or has no pixels.
    """
    return predict_each(lambda images: (network(images),), image, protocol, size)[0]


@torch.no_grad()
def predict_each(
    network: Callable[[Tensor], Sequence[Tensor]], image: Tensor, protocol: Protocol, size: tuple[int, int]
) -> list[Tensor]:
    """What ``predict`` does, for a network that gives several score maps, such as unguided ones as well."""
    if image.ndim != 4 or 0 in image.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected (N, 3, H, W) with pixels")
    average = _Average(protocol, size)
    # Not a loop over the passes, whose variable would hold the scores of one while the next are computed.
    deque(map(average.add, _passes(network, image, protocol)), maxlen=0)
    return average.result()


class _Average:
    """Mean over the passes of each score map, at the labels' size."""

    def __init__(self, protocol: Protocol, size: tuple[int, int]):
        self.protocol = protocol
        self.size = size
        self.totals: list[Tensor] = []
        self.passes = 0

    def add(self, scores: list[Tensor]) -> None:
        fitted = [_resized(one, self.size, self.protocol.align_corners) for one in scores]
        if self.protocol.average == "softmax":
            fitted = [one.softmax(1) for one in fitted]
        self.passes += 1
        if self.passes == 1:
            self.totals = fitted
        elif self.passes == 2:
            # A new tensor: that of the first pass may be the network's own, which it may keep.
            self.totals = [total + one for total, one in zip(self.totals, fitted, strict=True)]
        else:
            for total, one in zip(self.totals, fitted, strict=True):
                total += one

    def result(self) -> list[Tensor]:
        return self.totals if self.passes == 1 else [total.div_(self.passes) for total in self.totals]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis: a stride apart, the last one moved back to the border.

    Args:
        length: of the axis.
        window: length of a window.
        stride: between two windows.
    """
    count = max(1, math.ceil((length - window) / stride) + 1)
    return [max(0, min(k * stride, length - window)) for k in range(count)]


def _passes(
    network: Callable[[Tensor], Sequence[Tensor]], image: Tensor, protocol: Protocol
) -> Iterator[list[Tensor]]:
    """The scores of each scale and flip, on the grid of the resized image, unflipped."""
    for size in protocol.input_sizes(*image.shape[-2:]):
        resized = _resized(image, size, protocol.align_corners, protocol.antialias)
        yield _slide(network, resized, protocol)
        if protocol.flip:
            yield [scores.flip(-1) for scores in _slide(network, resized.flip(-1), protocol)]


def _slide(network: Callable[[Tensor], Sequence[Tensor]], image: Tensor, protocol: Protocol) -> list[Tensor]:
    """Scores of a resized image on its own grid, each pixel's averaged over the windows that hold it."""
    if protocol.window is None:
        return _padded(network, image, protocol)
    height, width = image.shape[-2:]
    tall, wide = protocol.window
    image = F.pad(image, (0, max(0, wide - width), 0, max(0, tall - height)))
    # One stride, from the window's height, serves both axes: so has the AlignSeg repository's evaluation.
    stride = math.ceil(tall * (1 - protocol.overlap))
    rows = window_starts(image.shape[-2], tall, stride)
    columns = window_starts(image.shape[-1], wide, stride)
    sums: list[Tensor] = []
    for top in rows:
        for left in columns:
            region = (..., slice(top, top + tall), slice(left, left + wide))
            scores = _padded(network, image[region], protocol)
            if not sums:
                sums = [s.new_zeros(*s.shape[:2], *image.shape[-2:]) for s in scores]
            for total, one in zip(sums, scores, strict=True):
                total[region] += one
    covered = _coverage(rows, tall, image.shape[-2])[:, None] * _coverage(columns, wide, image.shape[-1])
    covered = covered.to(image.device)
    return [(total.div_(covered))[..., :height, :width] for total in sums]


def _coverage(starts: Sequence[int], window: int, length: int) -> Tensor:
    """In how many windows each pixel along an axis lies."""
    counts = torch.zeros(length)
    for start in starts:
        counts[start : start + window] += 1
    return counts


def _padded(network: Callable[[Tensor], Sequence[Tensor]], image: Tensor, protocol: Protocol) -> list[Tensor]:
    """Scores of an input that the network sees at once, on the input's own grid, in float32."""
    height, width = image.shape[-2:]
    below, right = -height % protocol.pad_to, -width % protocol.pad_to
    padded = F.pad(image, (0, right, 0, below)) if below or right else image
    return [
        _resized(scores.float(), padded.shape[-2:], protocol.align_corners)[..., :height, :width]
        for scores in network(padded)
    ]


def _resized(images: Tensor, size: Sequence[int], align_corners: bool, antialias: bool = False) -> Tensor:
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(
        images, tuple(size), mode="bilinear", align_corners=align_corners, antialias=antialias
    )
