"""Class indices as files that people can look at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from experiments.datasets.base import IGNORE_LABEL, LabelClass, Pixels


def label_picture(labels: Pixels, classes: Sequence[LabelClass]) -> Image.Image:
    """Class indices (H, W) as a picture of indices, whose palette shows them in the classes' colours."""
    picture = Image.fromarray(labels)
    picture.putpalette(_palette(classes).ravel().tolist())
    return picture


def coloured(labels: Pixels, classes: Sequence[LabelClass]) -> Pixels:
    """Class indices (H, W) as colours (H, W, 3); pixels of no class are black."""
    colours: Pixels = _palette(classes)[labels]
    return colours


def overlay(image: Pixels, labels: Pixels, classes: Sequence[LabelClass], share: float = 0.5) -> Pixels:
    """The classes' colours over an image (H, W, 3), with the given share of the colours."""
    mixed = (1 - share) * image + share * coloured(labels, classes)
    return (mixed + 0.5).astype(np.uint8)


def _palette(classes: Sequence[LabelClass]) -> Pixels:
    palette = np.zeros((IGNORE_LABEL + 1, 3), np.uint8)
    palette[: len(classes)] = [c.colour for c in classes]
    return palette
