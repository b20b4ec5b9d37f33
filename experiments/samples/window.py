"""A window of a resized image, at the cost of the window alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors


def resized_window(image: Tensor, size: Sequence[int], window: Sequence[int]) -> tv_tensors.Image:
    """What resizing a whole image bilinearly and cropping it then would give.

    Pillow's resampling takes a box of fractions of pixels, and of the image no more is read than what the
    filter reaches from the box. The box is of single precision, by which one value in fifty is rounded to the
    next level; none is more than a level from the exact one.

    Args:
        image: (3, H, W) uint8.
        size: height and width to resize to.
        window: top, left, height and width of the crop, in pixels of the resized image, inside it.

    Returns:
        (3, height, width) uint8.
    """
    spans = []
    for have, want, start, length in zip(image.shape[-2:], size, window[:2], window[2:], strict=True):
        step = have / want  # pixels of the image for one of the result
        reach = math.ceil(max(1.0, step)) + 1
        first = max(0, math.floor(start * step) - reach)
        last = min(have, math.ceil((start + length) * step) + reach)
        spans.append((first, last, start * step - first, min((start + length) * step - first, last - first)))
    (top, bottom, from_y, to_y), (left, right, from_x, to_x) = spans
    region = image[:, top:bottom, left:right].permute(1, 2, 0).contiguous()
    resized = Image.fromarray(region.numpy()).resize(
        (window[3], window[2]), Image.Resampling.BILINEAR, box=(from_x, from_y, to_x, to_y)
    )
    pixels = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8)
    return tv_tensors.Image(pixels.view(window[2], window[3], 3).permute(2, 0, 1))
