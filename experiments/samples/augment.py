"""From a decoded pair to what a network is given: joint augmentation of image and labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from experiments.config.recipes import Augmentation, ColourJitter
from experiments.datasets.base import IGNORE_LABEL
from experiments.samples.network_input import NetworkInput
from experiments.samples.window import resized_window


class Augment:
    """Mirror, scale, crop and colour, in this order, then normalisation.

    Draws from torch's global generator.

    Args:
        settings: what to do; crops alone are always taken.
        crop: height and width of the result. Smaller images are padded at the right and bottom
            with the mean colour and ignored labels.
        network_input: how the network sees an image; ``settings.scale`` multiplies its size.
    """

    def __init__(self, settings: Augmentation, crop: tuple[int, int], network_input: NetworkInput):
        self.settings = settings
        self.crop = crop
        self.network_input = network_input
        self.jitter = _jitter(settings.colour) if settings.colour is not None else None

    def __call__(self, image: tv_tensors.Image, labels: tv_tensors.Mask) -> tuple[Tensor, tv_tensors.Mask]:
        """Image (3, H, W) and labels (H, W), uint8, to a normalised crop (3, h, w) and its labels."""
        if self.settings.mirror and torch.rand(()) < 0.5:
            image, labels = TF.horizontal_flip(image), TF.horizontal_flip(labels)
        height, width = labels.shape
        size = self.network_input.size(height, width, self._scale())
        if size != [height, width]:
            labels = TF.resize(labels, size)  # of the image, the crop alone is resized
        image, labels = self._crop(image, labels)
        if self.jitter is not None:
            image = self.jitter(image)
        image, labels = self._pad(image, labels)
        return self.network_input.normalise(image), labels

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
            image = TF.pad(image, padding, fill=[round(255 * channel) for channel in self.network_input.mean])
            labels = TF.pad(labels, padding, fill=IGNORE_LABEL)
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
