"""Pictures of what a model computes on the way: offsets, attention, predictions of inner stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.colors import hsv_to_rgb
from numpy.typing import NDArray

from experiments.datasets.base import IGNORE_LABEL, LabelClass, Pixels

_CLASSES_SHOWN = 3
"""Attention has a map for each class; the image's most frequent ones are drawn."""


def pictures(
    maps: Mapping[str, NDArray[np.float16]], labels: Pixels, classes: Sequence[LabelClass]
) -> dict[str, Pixels]:
    """Each map as RGB pictures of its own size, by title.

    Args:
        maps: of one image, as ``Prediction.maps`` names them. Offsets (2, h, w) in pixels, class
            scores (K, h, w), attention by channel (C, h, w) or by class (K, h, w).
        labels: of the image (H, W), which say which classes are worth a picture.
        classes: of the data set, K.
    """
    drawn: dict[str, Pixels] = {}
    counts = np.bincount(labels[labels != IGNORE_LABEL], minlength=len(classes))
    frequent = np.argsort(-counts, kind="stable")[:_CLASSES_SHOWN]
    for name, half in sorted(maps.items(), key=_by_number):
        values, title = half.astype(np.float32), name.replace("_", " ")
        if name.startswith("offset"):
            longest = float(np.hypot(*values).max())
            drawn[f"{title}\n(longest {longest:.1f} px)"] = offset_colours(values)
        elif name.endswith("attention_per_class"):
            for i in frequent:
                drawn[f"{title.removesuffix(' per class')}\n{classes[i].name}"] = heat(values[i])
        elif "attention" in name:
            drawn[f"{title}\n(mean of channels)"] = heat(values.mean(0))
        else:
            drawn[title] = colourise(values.argmax(0).astype(np.uint8), classes)
    return drawn


def _by_number(item: tuple[str, object]) -> list[tuple[int, str]]:
    """Sorts ``offset_8`` before ``offset_16``: numbers by value, before words."""
    return [(int(part), "") if part.isdigit() else (10**9, part) for part in item[0].split("_")]


def offset_colours(offsets: NDArray[np.float32]) -> Pixels:
    """A field (2, h, w), x before y, as colours (h, w, 3): hue is direction, saturation length.

    Right is red, down is yellow-green, left is cyan, up is violet; white is no offset, and full
    colour the field's longest one.
    """
    x, y = offsets
    length = np.hypot(x, y)
    hue = np.arctan2(y, x) / (2 * np.pi) % 1
    saturation = length / max(float(length.max()), 1e-6)
    return _to_pixels(hsv_to_rgb(np.stack([hue, saturation, np.ones_like(hue)], axis=-1)))


def heat(values: NDArray[np.float32]) -> Pixels:
    """Values (h, w) as colours from dark (the smallest) to bright (the largest)."""
    low, high = float(values.min()), float(values.max())
    return _to_pixels(mpl.colormaps["magma"]((values - low) / max(high - low, 1e-6))[..., :3])


def colourise(labels: Pixels, classes: Sequence[LabelClass]) -> Pixels:
    """Label map (H, W) as an RGB picture in the classes' colours; ignored pixels are black."""
    palette = np.zeros((IGNORE_LABEL + 1, 3), np.uint8)
    palette[: len(classes)] = [c.colour for c in classes]
    return palette[labels]


def _to_pixels(rgb: NDArray[np.floating]) -> Pixels:
    return (255 * rgb).round().astype(np.uint8)
