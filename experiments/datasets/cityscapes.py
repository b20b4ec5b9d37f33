"""Cityscapes, the finely annotated 2975 training and 500 validation images of 1024 x 2048.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding", CVPR 2016. The
files come from https://www.cityscapes-dataset.com (registration needed): the archives
``leftImg8bit_trainvaltest.zip`` and ``gtFine_trainvaltest.zip``, unpacked into one folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from experiments.datasets import base
from experiments.datasets.base import DataError, Pixels, Split, read_image, read_labels
from experiments.datasets.cityscapes_classes import CLASSES
from experiments.running import paths

LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The label ids that Cityscapes evaluates, in the order of their train ids: of class k the k-th."""
_LARGEST_ID = 33

_IMAGE_SUFFIX = "_leftImg8bit.png"


class Options(base.Options):
    """``root`` holds ``leftImg8bit/`` and ``gtFine/``."""

    root: str
    train_on: Literal["train", "train+val"] = "train"
    """``train+val`` is for predictions that go to the test server: scores on ``val`` then say nothing."""


class Cityscapes(base.Dataset):
    """Pairs of ``leftImg8bit/<split>/<city>/*`` and ``gtFine/<split>/<city>/*_labelIds.png``."""

    options_type = Options
    classes = CLASSES

    def __init__(self, options: Options):
        self.root = paths.given(options.root)
        self.train_on = options.train_on

    def names(self, split: Split) -> list[str]:
        if split == "train" and self.train_on == "train+val":
            return [*self._names("train"), *self._names("val")]
        return self._names(split)

    def _names(self, split: Split) -> list[str]:
        folder = self.root / "leftImg8bit" / split
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; set the data set's 'root' in params.yaml to the folder with "
                "leftImg8bit/ and gtFine/ from https://www.cityscapes-dataset.com"
            )
        names = [
            image.name.removesuffix(_IMAGE_SUFFIX) for image in sorted(folder.glob(f"*/*{_IMAGE_SUFFIX}"))
        ]
        for image, labels in (self.files(split, name) for name in names):
            if not labels.is_file():
                raise DataError(f"{image}: has no labels; expected them at {labels}")
        return names

    def files(self, split: Split, name: str) -> tuple[Path, Path]:
        own = self._files(split, name)
        if split == "train" and self.train_on == "train+val" and not own[0].is_file():
            return self._files("val", name)
        return own

    def _files(self, released: str, name: str) -> tuple[Path, Path]:
        city = name.split("_", 1)[0]
        return (
            self.root / "leftImg8bit" / released / city / f"{name}{_IMAGE_SUFFIX}",
            self.root / "gtFine" / released / city / f"{name}_gtFine_labelIds.png",
        )

    def released_split(self, split: Split) -> str:
        return self.train_on if split == "train" else split

    def read(self, split: Split, name: str) -> tuple[Pixels, Pixels]:
        image_path, labels_path = self.files(split, name)
        image, labels = read_image(image_path), read_labels(labels_path)
        base.check_values(labels, range(_LARGEST_ID + 1), labels_path)
        return image, _TRAIN_IDS[labels]


_TRAIN_IDS = np.full(256, base.IGNORE_LABEL, np.uint8)
_TRAIN_IDS[list(LABEL_IDS)] = np.arange(len(LABEL_IDS))

DATASET = Cityscapes
