"""From a decoded pair to what a network is given: joint augmentation of image and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from experiments.config.recipes import Augmentation, ColourJitter
from experiments.datasets.base import IGNORE_LABEL


@dataclass(frozen=True)
class NetworkInput:
    """How the network sees an image, in training and at test: its size and its normalisation."""

    mean: Sequence[float]
    """Of the channels, in [0, 1], which becomes 0."""
    std: Sequence[float]
    """Of the channels, in [0, 1], which becomes 1."""
    subsampling: int = 1
    """Shrinks the image by this factor."""
    short_side: int = 0
    """Resizes the image so that its shorter side has this many pixels and the longer one at most four
    times as many, mmsegmentation's ``img_scale=(4 n, n)``; 0 leaves it."""

    def size(self, height: int, width: int, factor: float = 1.0) -> list[int]:
        """Height and width of an image of this size as the network sees it, times ``factor``."""
        factor /= self.subsampling
        if self.short_side:
            factor *= min(self.short_side / min(height, width), 4 * self.short_side / max(height, width))
        return [max(1, round(side * factor)) for side in (height, width)]

    def normalise(self, image: Tensor) -> Tensor:
        """A uint8 image (3, H, W) as the network takes it."""
        scaled = TF.to_dtype(image, torch.float32, scale=True)
        normalised: Tensor = TF.normalize(scaled, list(self.mean), list(self.std))
        return normalised.as_subclass(Tensor)

    def whole(self, image: tv_tensors.Image) -> Tensor:
        """The whole image (3, H, W) uint8 as the network sees it at test."""
        size = self.size(*image.shape[-2:])
        return self.normalise(TF.resize(image, size) if size != list(image.shape[-2:]) else image)


class Augment:
    """Mirror, scale, crop and colour, in this order, then normalisation.

    Draws from torch's global generator.

    Args:
        settings: what to do; crops alone are always taken.
        crop: height and width of the result. Smaller images are padded at the right and bottom
            with the mean colour and ignored labels.
        view: how the network sees an image; ``settings.scale`` multiplies its size.
    """

    def __init__(self, settings: Augmentation, crop: tuple[int, int], view: NetworkInput):
        self.settings = settings
        self.crop = crop
        self.view = view
        self.jitter = _jitter(settings.colour) if settings.colour is not None else None

    def __call__(self, image: tv_tensors.Image, labels: tv_tensors.Mask) -> tuple[Tensor, tv_tensors.Mask]:
        """Image (3, H, W) and labels (H, W), uint8, to a normalised crop (3, h, w) and its labels."""
        if self.settings.mirror and torch.rand(()) < 0.5:
            image, labels = TF.horizontal_flip(image), TF.horizontal_flip(labels)
        height, width = labels.shape
        size = self.view.size(height, width, self._scale())
        if size != [height, width]:
            image, labels = TF.resize(image, size), TF.resize(labels, size)
        image, labels = self._pad(image, labels)
        image, labels = self._crop(image, labels)
        if self.jitter is not None:
            image = self.jitter(image)
        return self.view.normalise(image), labels

    def _scale(self) -> float:
        if self.settings.scale is None:
            return 1.0
        low, high = self.settings.scale
        return low + (high - low) * torch.rand(()).item()

    def _pad(
        self, image: tv_tensors.Image, labels: tv_tensors.Mask
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        missing = [max(0, want - have) for want, have in zip(self.crop, labels.shape, strict=True)]
        if any(missing):
            padding = [0, 0, missing[1], missing[0]]
            image = TF.pad(image, padding, fill=[round(255 * channel) for channel in self.view.mean])
            labels = TF.pad(labels, padding, fill=IGNORE_LABEL)
        return image, labels

    def _crop(
        self, image: tv_tensors.Image, labels: tv_tensors.Mask
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        height, width = self.crop
        for _ in range(10):
            top = int(torch.randint(labels.shape[0] - height + 1, ()))
            left = int(torch.randint(labels.shape[1] - width + 1, ()))
            window = labels[top : top + height, left : left + width]
            if self.settings.max_class_share == 1:
                break
            counts = window.reshape(-1).int().bincount(minlength=IGNORE_LABEL + 1)[:IGNORE_LABEL]
            if counts.max() <= self.settings.max_class_share * counts.sum():
                break
        return TF.crop(image, top, left, height, width), TF.crop(labels, top, left, height, width)


def _jitter(colour: ColourJitter) -> v2.Transform:
    """All properties in a random order, or each with its probability in the order of their names there."""
    strengths = colour.model_dump(exclude={"probability"})
    if colour.probability == 1:
        return v2.ColorJitter(**strengths)
    return v2.Compose(
        [
            v2.RandomApply([v2.ColorJitter(**{name: strength})], colour.probability)
            for name, strength in strengths.items()
        ]
    )
