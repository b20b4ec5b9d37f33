"""The interface of every data set: options, classes, and pairs of image and labels by index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiments.config.strict import Strictly

IGNORE_LABEL = 255
"""Label of pixels that belong to no class."""

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

Pixels = NDArray[np.uint8]


class DataError(Exception):
    """Data that cannot be used; the message names the file and how to mend it, in one line."""


class Options(Strictly):
    """What ``params.yaml`` may say of a data set, besides its name."""


@dataclass(frozen=True)
class LabelClass:
    """A class: its index is its place in ``Dataset.classes``."""

    name: str
    colour: tuple[int, int, int]


class Dataset(ABC):
    """Pairs of image and labels in two splits.

    A data set is one file of this package that defines ``DATASET``, a subclass.
    """

    options_type: ClassVar[type[Options]]
    classes: ClassVar[tuple[LabelClass, ...]]

    @abstractmethod
    def __init__(self, options: Any):
        """Takes an object of ``options_type``."""

    @abstractmethod
    def names(self, split: Split) -> list[str]:
        """Names of the split's samples in a fixed order; they are unique and safe as file names.

        Raises:
            DataError: the folder is missing, or an image has no labels.
        """

    @abstractmethod
    def read(self, split: Split, name: str) -> tuple[Pixels, Pixels]:
        """Image (H, W, 3) RGB and labels (H, W) in [0, K) or ``IGNORE_LABEL``.

        Raises:
            DataError: a file does not decode, sizes differ or a label value is not legal.
        """

    def image_path(self, split: Split, name: str) -> Path | None:  # noqa: ARG002 (for those with files)
        """The image's own file, or ``None`` for generated data."""
        return None


def read_image(path: Path) -> Pixels:
    """An image file as RGB (H, W, 3).

    Raises:
        DataError: no such file, or it does not decode.
    """
    return np.asarray(_open(path).convert("RGB"))


def read_labels(path: Path) -> Pixels:
    """A single-channel 8-bit label file as (H, W).

    Raises:
        DataError: no such file, it does not decode, or it has several channels.
    """
    picture = _open(path)
    if picture.mode not in ("L", "P"):
        raise DataError(
            f"{path}: labels are a {picture.mode} image; expected one 8-bit channel of class indices"
        )
    return np.asarray(picture)


def check_size(image: Pixels, labels: Pixels, image_path: Path, labels_path: Path) -> None:
    """Raises ``DataError`` unless image and labels have the same height and width."""
    if image.shape[:2] != labels.shape:
        found, expected = (f"{size[0]} x {size[1]}" for size in (labels.shape, image.shape))
        raise DataError(
            f"{labels_path}: labels are {found} (height x width); expected {expected}, as {image_path.name}"
        )


def check_values(labels: Pixels, legal: Iterable[int], path: Path) -> None:
    """Raises ``DataError`` if labels hold a value that is not among the legal ones."""
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
    illegal = sorted(set(present.tolist()) - set(legal))
    if illegal:
        raise DataError(f"{path}: holds the label value {illegal[0]}; expected {_ranges(legal)}")


def _ranges(values: Iterable[int]) -> str:
    """Sorted numbers with runs shortened: ``0 to 11, 255``."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _open(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: does not decode as an image ({error}); fetch it again") from None
    return picture
