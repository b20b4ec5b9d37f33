"""ADE20K's scene-parsing benchmark: 150 classes, 20 210 training and 2000 validation images.

Zhou et al., "Scene Parsing through ADE20K Dataset", CVPR 2017. The files are those of
``ADEChallengeData2016.zip`` from http://sceneparsing.csail.mit.edu.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.datasets import base
from experiments.datasets.base import DataError, LabelClass, Pixels, Split, read_image, read_labels
from experiments.running import paths

# fmt: off
_NAMES = (
    "wall", "building", "sky", "floor", "tree", "ceiling", "road", "bed", "windowpane", "grass", "cabinet",
    "sidewalk", "person", "earth", "door", "table", "mountain", "plant", "curtain", "chair", "car", "water",
    "painting", "sofa", "shelf", "house", "sea", "mirror", "rug", "field", "armchair", "seat", "fence",
    "desk", "rock", "wardrobe", "lamp", "bathtub", "railing", "cushion", "base", "box", "column",
    "signboard", "chest of drawers", "counter", "sand", "sink", "skyscraper", "fireplace", "refrigerator",
    "grandstand", "path", "stairs", "runway", "case", "pool table", "pillow", "screen door", "stairway",
    "river", "bridge", "bookcase", "blind", "coffee table", "toilet", "flower", "book", "hill", "bench",
    "countertop", "stove", "palm", "kitchen island", "computer", "swivel chair", "boat", "bar",
    "arcade machine", "hovel", "bus", "towel", "light", "truck", "tower", "chandelier", "awning",
    "streetlight", "booth", "television", "airplane", "dirt track", "apparel", "pole", "land", "bannister",
    "escalator", "ottoman", "bottle", "buffet", "poster", "stage", "van", "ship", "fountain",
    "conveyer belt", "canopy", "washer", "plaything", "swimming pool", "stool", "barrel", "basket",
    "waterfall", "tent", "bag", "minibike", "cradle", "oven", "ball", "food", "step", "tank", "trade name",
    "microwave", "pot", "animal", "bicycle", "lake", "dishwasher", "screen", "blanket", "sculpture", "hood",
    "sconce", "vase", "traffic light", "tray", "ashcan", "fan", "pier", "crt screen", "plate", "monitor",
    "bulletin board", "shower", "radiator", "glass", "clock", "flag",
)
# fmt: on

_FOLDERS: dict[Split, str] = {"train": "training", "val": "validation"}


class Options(base.Options):
    """``root`` holds ``images/`` and ``annotations/``."""

    root: str


class ADE20K(base.Dataset):
    """Pairs of ``images/<split>/<name>.jpg`` and ``annotations/<split>/<name>.png``.

    In the files 0 means unlabelled and class k has the value k + 1.
    """

    options_type = Options
    classes = tuple(LabelClass(name, base.spread_colour(index)) for index, name in enumerate(_NAMES))

    def __init__(self, options: Options):
        self.root = paths.given(options.root)

    def names(self, split: Split) -> list[str]:
        folder = self.root / "images" / _FOLDERS[split]
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such folder; set the data set's 'root' in params.yaml to ADEChallengeData2016 "
                "from http://sceneparsing.csail.mit.edu"
            )
        names = [image.stem for image in sorted(folder.glob("*.jpg"))]
        for image, labels in (self.files(split, name) for name in names):
            if not labels.is_file():
                raise DataError(f"{image}: has no labels; expected them at {labels}")
        return names

    def files(self, split: Split, name: str) -> tuple[Path, Path]:
        folder = _FOLDERS[split]
        return (
            self.root / "images" / folder / f"{name}.jpg",
            self.root / "annotations" / folder / f"{name}.png",
        )

    def released_split(self, split: Split) -> str:
        return _FOLDERS[split]

    def read(self, split: Split, name: str) -> tuple[Pixels, Pixels]:
        image_path, labels_path = self.files(split, name)
        image, labels = read_image(image_path), read_labels(labels_path)
        base.check_values(labels, range(len(self.classes) + 1), labels_path)
        # Unsigned arithmetic turns the 0 of unlabelled pixels into 255, the ignored label.
        return image, labels - np.uint8(1)


DATASET = ADE20K
