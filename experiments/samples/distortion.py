"""SSD's colour augmentation, as mmsegmentation and detectron2 have it."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from experiments.config.recipes import PhotometricDistortion


class Distort:
    """Brightness, contrast, saturation and hue, each half of the time (Liu et al., SSD, ECCV 2016).

    Contrast comes before saturation and hue or after them, half of the time each. Unlike torchvision's
    ``ColorJitter``, brightness is added, contrast multiplies the channels and not their distance from the
    mean grey, and saturation is that of HSV. The two libraries round to 8 bits after every change; this keeps
    the fractions and rounds at the end.

    Draws from torch's global generator.

    Args:
        settings: how far each property changes.
    """

    def __init__(self, settings: PhotometricDistortion):
        self.settings = settings

    def __call__(self, image: tv_tensors.Image) -> tv_tensors.Image:
        """An image (3, H, W) uint8 to its distorted form."""
        settings = self.settings
        x = image.as_subclass(Tensor).float()
        if _chance():
            x = (x + _between(-settings.brightness, settings.brightness)).clamp(0, 255)
        contrast_first = _chance()
        if contrast_first:
            x = self._contrast(x)
        if _chance():
            x = saturate(x, _between(1 - settings.saturation, 1 + settings.saturation))
        if _chance():
            turn = _between(-settings.hue, settings.hue) / 360
            x = 255 * TF.adjust_hue(x / 255, turn)
        if not contrast_first:
            x = self._contrast(x)
        return tv_tensors.Image(x.round().to(torch.uint8))

    def _contrast(self, x: Tensor) -> Tensor:
        if not _chance():
            return x
        return (x * _between(1 - self.settings.contrast, 1 + self.settings.contrast)).clamp(0, 255)


def saturate(image: Tensor, factor: float) -> Tensor:
    """An image (3, H, W) in [0, 255] with its saturation in HSV multiplied, 1 at most.

    Hue and value stay: every channel keeps its share of the distance from the largest one.
    """
    value = image.amax(dim=0)
    spread = value - image.amin(dim=0)
    most = value / spread.clamp(min=1e-6)  # more would take the smallest channel below 0
    return value - (value - image) * most.clamp(max=factor)


def _between(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _chance() -> bool:
    return bool(torch.rand(()) < 0.5)
