"""How a network sees an image: its normalisation, and in training its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from experiments.config.recipes import Recipe
from experiments.samples.prepared import PreparedDataset

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's images, red, green and blue: what timm's weights were trained with."""


@dataclass(frozen=True)
class NetworkInput:
    """Size and normalisation of a network's input."""

    mean: Sequence[float]
    """Of the channels, in [0, 1], which becomes 0."""
    std: Sequence[float]
    """Of the channels, in [0, 1], which becomes 1."""
    subsampling: int = 1
    """Shrinks a training image by this factor."""
    short_side: int = 0
    """Resizes a training image so that its shorter side has this many pixels and the longer one at most four
    times as many, mmsegmentation's ``img_scale=(4 n, n)``; 0 leaves it."""

    @classmethod
    def of(cls, data: PreparedDataset, recipe: Recipe) -> NetworkInput:
        """How a network that is trained by the recipe sees the data set's images.

        ImageNet weights get images as they were trained on; without them, the training images have
        zero mean and unit variance.
        """
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if recipe.pretrained else (data.mean, data.std)
        return cls(mean, std, recipe.subsampling, recipe.short_side)

    @classmethod
    def of_released(cls, recipe: Recipe) -> NetworkInput:
        """How a network with weights that the authors released sees images: as ImageNet's."""
        return cls(IMAGENET_MEAN, IMAGENET_STD, recipe.subsampling, recipe.short_side)

    def size(self, height: int, width: int, factor: float = 1.0) -> list[int]:
        """Height and width of a training image of this size before it is cropped, scaled by ``factor``."""
        factor /= self.subsampling
        if self.short_side:
            factor *= min(self.short_side / min(height, width), 4 * self.short_side / max(height, width))
        return [max(1, round(side * factor)) for side in (height, width)]

    def normalise(self, image: Tensor) -> Tensor:
        """A uint8 image (3, H, W) as the network takes it."""
        scaled = TF.to_dtype(image, torch.float32, scale=True)
        normalised: Tensor = TF.normalize(scaled, list(self.mean), list(self.std))
        return normalised.as_subclass(Tensor)
