"""The interface of every data set: options, classes, and pairs of image and labels by index."""

from __future__ import annotations

import colorsys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from experiments.config.strict import StrictModel
from experiments.running import paths
from experiments.running.errors import ExpectedError

IGNORE_LABEL = 255
"""Label of pixels that belong to no class."""

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

Pixels = NDArray[np.uint8]

MOST_PIXELS = 32_000_000
"""More than any photograph of a data set has: a larger one may mean harm, and would take gigabytes."""

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")
"""Formats of images that are read. Pillow knows others, one of which has another program run the file."""


class DataError(ExpectedError):
    """Data that cannot be used; the message names the file and how to mend it, in one line."""


class Options(StrictModel):
    """What ``params.yaml`` may say of a data set, besides its name."""


@dataclass(frozen=True)
class LabelClass:
    """A class: its index is its place in ``Dataset.classes``."""

    name: str
    colour: tuple[int, int, int]


def spread_colour(index: int) -> tuple[int, int, int]:
    """A colour for the class of this index, for data sets with too many classes to choose by hand.

    Colours of neighbouring classes lie far apart on the colour wheel.
    """
    rgb = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.5 + 0.5 * (index % 3) / 2, 1 - 0.3 * (index % 2))
    red, green, blue = (round(255 * channel) for channel in rgb)
    return red, green, blue


class Dataset(ABC):
    """Pairs of image and labels in two splits, ``train`` and ``val``.

    A data set is one file of this package that defines ``DATASET``, a subclass. ``_template.py`` is one to
    start from.
    """

    options_type: ClassVar[type[Options]]
    classes: tuple[LabelClass, ...]
    """Of the class where they are always the same, of the object where ``params.yaml`` lists them."""

    @abstractmethod
    def __init__(self, options: Any):
        """Takes an object of ``options_type``. Looks at no file: that is for ``names``."""

    @abstractmethod
    def names(self, split: Split) -> list[str]:
        """Names of the split's samples in a fixed order; they are unique and safe as file names.

        Raises:
            DataError: the folder is missing, or an image has no labels.
        """

    @abstractmethod
    def read(self, split: Split, name: str) -> tuple[Pixels, Pixels]:
        """Image (H, W, 3) RGB and labels (H, W) in [0, K) or ``IGNORE_LABEL``.

        ``prepare`` checks sizes and values of what comes out. A data set whose files say more, such as
        values that it translates, checks these itself.

        Raises:
            DataError: a file does not decode, or holds a value that has no meaning.
        """

    def files(self, split: Split, name: str) -> tuple[Path, ...]:  # noqa: ARG002 (for those with files)
        """The files that a sample is read from, its image's own first; none for generated data.

        ``prepare`` leaves an image that needs no change where it is, and later stages notice when any of
        these files has changed.
        """
        return ()

    @classmethod
    def sequences(cls, names: Sequence[str]) -> list[str]:
        """For each of a split's images, by name, what it was taken of.

        A verdict draws images of one sequence together: neighbouring frames of a video say little more than
        one of them. Here each image is its own.
        """
        return list(names)

    def released_split(self, split: Split) -> str:
        """The name under which the data set was released with what is ``split`` here."""
        return split


def read_image(path: Path) -> Pixels:
    """An image file as RGB (H, W, 3); 16 bits of grey are scaled to 8.

    Raises:
        DataError: no such file, it does not decode, or its values have no agreed range.
    """
    return _rgb(_open(path), path)


def read_photograph(path: Path) -> Pixels:
    """As ``read_image``, turned the way that the camera's tag says is up."""
    return _rgb(ImageOps.exif_transpose(_open(path)), path)


def read_upright_image(path: Path) -> Pixels:
    """As ``read_image``; refuses a tag that says to turn it, as labels may be of it before or after that.

    Raises:
        DataError: it has such a tag, or as ``read_image``.
    """
    picture = _open(path)
    orientation = picture.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation != 1:
        raise DataError(
            f"{path}: its orientation tag is {orientation}, so that it is shown turned; expected 1 or none; "
            "turn its pixels the way that its labels are, and remove the tag"
        )
    return _rgb(picture, path)


def files_in(folder: Path) -> list[Path]:
    """What a folder holds, sorted.

    Raises:
        DataError: there is no such folder, or it must not be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}; expected a folder that can be read") from None


def _rgb(picture: Image.Image, path: Path) -> Pixels:
    if picture.mode.startswith("I;16"):
        grey = (np.asarray(picture).astype(np.uint32) * 255 + 32767) // 65535
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    if picture.mode in ("I", "F"):
        raise DataError(
            f"{path}: is an image of 32-bit values ({picture.mode}); expected 8 bits a channel, or 16 of grey"
        )
    return np.asarray(picture.convert("RGB"))


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


def value_counts(pixels: Pixels) -> NDArray[np.int64]:
    """How often each value occurs: (256,) of pixels (H, W), or (3, 256) of pixels (H, W, 3).

    Without a copy of the pixels in larger numbers, which of a large image would take gigabytes.
    """
    counts = np.array(Image.fromarray(pixels).histogram(), np.int64)
    return counts if pixels.ndim == 2 else counts.reshape(3, 256)


def check_values(labels: Pixels, legal: Iterable[int], path: Path) -> None:
    """Raises ``DataError`` if labels hold a value that is not among the legal ones."""
    present = np.flatnonzero(value_counts(labels))
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # told below, as an error
            picture = Image.open(path, formats=_FORMATS)
        if picture.width * picture.height > MOST_PIXELS:
            raise DataError(
                f"{path}: has {picture.height} x {picture.width} pixels (height x width); expected at most "
                f"{MOST_PIXELS // 10**6} million; make it smaller"
            )
        picture.load()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Image.DecompressionBombError:
        raise DataError(
            f"{path}: has more than {MOST_PIXELS // 10**6} million pixels; make it smaller"
        ) from None
    except DataError:
        raise
    except Exception as error:  # what Pillow raises of a broken file depends on how it is broken
        problem = " ".join(str(error).split()) or type(error).__name__
        was_prepared = path.is_relative_to(paths.PREPARED)
        remedy = "run 'python -m experiments.prepare --again'" if was_prepared else "fetch it again"
        raise DataError(f"{path}: does not decode as an image ({problem}); {remedy}") from None
    return picture
