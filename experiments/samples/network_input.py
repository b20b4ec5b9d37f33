"""How a network sees an image: its normalisation, and in training its size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from experiments.config.recipes import Recipe
from experiments.datasets.base import Pixels
from experiments.samples.prepared import PreparedDataset

BGR_MEAN = (104.00698793 / 255, 116.66876762 / 255, 122.67891434 / 255)
"""Of ImageNet's images, blue, green and red, as Caffe's models and their descendants take it off."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's images, red, green and blue: what timm's weights were trained with."""


@dataclass(frozen=True)
class NetworkInput:
    """Size and normalisation of a network's input."""

    mean: Sequence[float]
    """Of the channels in their order, in [0, 1], which becomes 0."""
    std: Sequence[float]
    """Likewise, which becomes 1."""
    subsampling: int = 1
    """Shrinks a training image by this factor."""
    short_side: int = 0
    """Resizes a training image so that its shorter side has this many pixels and the longer one at most four
    times as many, mmsegmentation's ``img_scale=(4 n, n)``; 0 leaves it."""
    bgr: bool = False
    """Whether the channels are given as blue, green and red."""

    @classmethod
    def of(cls, data: PreparedDataset, recipe: Recipe) -> NetworkInput:
        """How a network that is trained by the recipe sees the data set's images.

        By the recipe's ``normalisation``: with ``standard``, ImageNet weights get images as they were trained
        on; without them, the training images have zero mean and unit variance.
        """
        if recipe.normalisation == "standard" and not recipe.pretrained:
            return cls(data.mean, data.std, recipe.subsampling, recipe.short_side)
        return cls.of_pretrained(recipe)

    @classmethod
    def of_pretrained(cls, recipe: Recipe) -> NetworkInput:
        """How a network sees images whose weights stem from ImageNet's, as all have that authors released."""
        if recipe.normalisation == "bgr-mean":
            # Not divided: 1 / 255 takes [0, 1] back to [0, 255].
            return cls(BGR_MEAN, [1 / 255] * 3, recipe.subsampling, recipe.short_side, bgr=True)
        return cls(IMAGENET_MEAN, IMAGENET_STD, recipe.subsampling, recipe.short_side)

    def size(self, height: int, width: int, factor: float = 1.0) -> list[int]:
        """Height and width of a training image of this size before it is cropped, scaled by ``factor``."""
        factor /= self.subsampling
        if self.short_side:
            factor *= min(self.short_side / min(height, width), 4 * self.short_side / max(height, width))
        return [max(1, round(side * factor)) for side in (height, width)]

    def normalise(self, image: Tensor) -> Tensor:
        """A uint8 image (3, H, W) as the network takes it."""
        scaled = TF.to_dtype(image.flip(0) if self.bgr else image, torch.float32, scale=True)
        normalised: Tensor = TF.normalize(scaled, list(self.mean), list(self.std))
        return normalised.as_subclass(Tensor)

    def picture(self, image: Tensor) -> Pixels:
        """What ``normalise`` was given, as RGB (H, W, 3), to be looked at."""
        colours = image * torch.tensor(self.std).view(3, 1, 1) + torch.tensor(self.mean).view(3, 1, 1)
        colours = colours.flip(0) if self.bgr else colours
        picture: Pixels = (255 * colours.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return picture
