"""From a decoded pair to what a network is given: joint augmentation of image and labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from experiments.config.recipes import Augmentation
from experiments.datasets.base import IGNORE_LABEL
from experiments.samples.distortion import Distort
from experiments.samples.network_input import NetworkInput
from experiments.samples.window import resized_window


class Augment:
    """Mirror, resize, crop and colour, in this order, then normalisation and padding.

    Draws from torch's global generator.

    Args:
        settings: what to do; crops alone are always taken.
        crop: height and width of the result. Smaller images are padded at the right and bottom
            with the mean colour, which is 0 once normalised, and with ignored labels.
        network_input: how the network sees an image; its size is what ``settings`` multiplies.
    """

    def __init__(self, settings: Augmentation, crop: tuple[int, int], network_input: NetworkInput):
        self.settings = settings
        self.crop = crop
        self.network_input = network_input
        self.jitter = v2.ColorJitter(**settings.colour.model_dump()) if settings.colour is not None else None
        self.distort = Distort(settings.distortion) if settings.distortion is not None else None

    def __call__(self, image: tv_tensors.Image, labels: tv_tensors.Mask) -> tuple[Tensor, tv_tensors.Mask]:
        """Image (3, H, W) and labels (H, W), uint8, to a normalised crop (3, h, w) and its labels."""
        if self.settings.mirror and torch.rand(()) < 0.5:
            image, labels = TF.horizontal_flip(image), TF.horizontal_flip(labels)
        size = self._size(*labels.shape)
        if size != list(labels.shape):
            labels = TF.resize(labels, size)  # of the image, the crop alone is resized
        image, labels = self._crop(image, labels)
        if self.jitter is not None:
            image = self.jitter(image)
        if self.distort is not None:
            image = self.distort(image)
        return self._pad(self.network_input.normalise(image), labels)

    def _size(self, height: int, width: int) -> list[int]:
        """Height and width that an image of this size is resized to, drawn anew for every one."""
        settings = self.settings
        factor = 1.0
        if settings.short_sides is not None:
            short_side = settings.short_sides[int(torch.randint(len(settings.short_sides), ()))]
            factor = short_side / min(height, width)
            if settings.longest_side is not None:
                factor = min(factor, settings.longest_side / max(height, width))
            return [max(1, round(side * factor)) for side in (height, width)]
        if settings.factors is not None:
            factor = settings.factors[int(torch.randint(len(settings.factors), ()))]
        elif settings.scale is not None:
            low, high = settings.scale
            factor = low + (high - low) * torch.rand(()).item()
        return self.network_input.size(height, width, factor)

    def _pad(self, image: Tensor, labels: tv_tensors.Mask) -> tuple[Tensor, tv_tensors.Mask]:
        missing = [want - have for want, have in zip(self.crop, labels.shape, strict=True)]
        if any(missing):
            padding = [0, 0, missing[1], missing[0]]
            image, labels = TF.pad(image, padding), TF.pad(labels, padding, fill=IGNORE_LABEL)
        return image, labels

    def _crop(
        self, image: tv_tensors.Image, labels: tv_tensors.Mask
    ) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        height, width = (min(want, have) for want, have in zip(self.crop, labels.shape, strict=True))
        for _ in range(10):
            top = int(torch.randint(labels.shape[0] - height + 1, ()))
            left = int(torch.randint(labels.shape[1] - width + 1, ()))
            window = labels[top : top + height, left : left + width]
            if self.settings.max_class_share == 1:
                break
            counts = window.reshape(-1).int().bincount(minlength=IGNORE_LABEL + 1)[:IGNORE_LABEL]
            if counts.max() <= self.settings.max_class_share * counts.sum():
                break
        place = top, left, height, width
        if image.shape[-2:] == labels.shape:
            return TF.crop(image, *place), TF.crop(labels, *place)
        return resized_window(image, labels.shape, place), TF.crop(labels, *place)
