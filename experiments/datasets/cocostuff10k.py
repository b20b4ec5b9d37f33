"""COCO-Stuff 10k: 171 classes of things and stuff, 9000 training and 1000 test images.

Caesar et al., "COCO-Stuff: Thing and Stuff Classes in Context", CVPR 2018. The files are those of version
1.1, ``cocostuff-10k-v1.1.zip`` from https://github.com/nightrome/cocostuff10k, either as released, with
``.mat`` labels and lists of names, or as mmsegmentation converts them, with ``_labelTrainIds.png`` labels and
a folder for each split.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.datasets import base
from experiments.datasets.base import DataError, LabelClass, Pixels, Split, read_image, read_labels
from experiments.running import paths

# fmt: off
_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard",
    "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase",
    "scissors", "teddy bear", "hair drier", "toothbrush", "banner", "blanket", "branch", "bridge",
    "building-other", "bush", "cabinet", "cage", "cardboard", "carpet", "ceiling-other", "ceiling-tile",
    "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff", "dirt", "door-stuff",
    "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower", "fog",
    "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves",
    "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper",
    "pavement", "pillow", "plant-other", "plastic", "platform", "playingfield", "railing", "railroad",
    "river", "road", "rock", "roof", "rug", "salad", "sand", "sea", "shelf", "sky-other", "skyscraper",
    "snow", "solid-other", "stairs", "stone", "straw", "structural-other", "table", "tent",
    "textile-other", "towel", "tree", "vegetable", "wall-brick", "wall-concrete", "wall-other",
    "wall-panel", "wall-stone", "wall-tile", "wall-wood", "water-other", "waterdrops", "window-blind",
    "window-other", "wood",
)
# fmt: on

_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Ids from 1 to 182 that COCO-Stuff reserves and never uses; the others are the classes in their order."""
_LARGEST_ID = 182

_CONVERTED: dict[Split, str] = {"train": "train2014", "val": "test2014"}
_LISTS: dict[Split, str] = {"train": "train", "val": "test"}


class Options(base.Options):
    """``root`` holds ``images/`` and ``annotations/``, and ``imageLists/`` where it is as released."""

    root: str


class COCOStuff10k(base.Dataset):
    """Pairs of an image and labels, as released or as mmsegmentation converts them.

    Converted: ``images/<train2014 or test2014>/<name>.jpg`` and
    ``annotations/<train2014 or test2014>/<name>_labelTrainIds.png``, where 0 means unlabelled and class k
    has the value k + 1. As released: ``images/<name>.jpg`` and ``annotations/<name>.mat``, whose map ``S``
    has COCO-Stuff's ids, and ``imageLists/<train or test>.txt``.
    """

    options_type = Options
    classes = tuple(LabelClass(name, base.spread_colour(index)) for index, name in enumerate(_NAMES))

    def __init__(self, options: Options):
        self.root = paths.given(options.root)

    @property
    def _is_converted(self) -> bool:
        return (self.root / "images" / _CONVERTED["train"]).is_dir()

    def names(self, split: Split) -> list[str]:
        if self._is_converted:
            names = [f.stem for f in sorted((self.root / "images" / _CONVERTED[split]).glob("*.jpg"))]
        else:
            names = self._listed(split)
        for image, labels in (self.files(split, name) for name in names):
            if not labels.is_file():
                raise DataError(f"{image}: has no labels; expected them at {labels}")
        return names

    def _listed(self, split: Split) -> list[str]:
        path = self.root / "imageLists" / f"{_LISTS[split]}.txt"
        try:
            return path.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            raise DataError(
                f"{path}: no such file; set the data set's 'root' in params.yaml to the folder of "
                "cocostuff-10k-v1.1.zip, or to what mmsegmentation makes of it"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: is not a list of names ({error}); fetch it again") from None

    def files(self, split: Split, name: str) -> tuple[Path, Path]:
        if self._is_converted:
            folder = _CONVERTED[split]
            return (
                self.root / "images" / folder / f"{name}.jpg",
                self.root / "annotations" / folder / f"{name}_labelTrainIds.png",
            )
        return self.root / "images" / f"{name}.jpg", self.root / "annotations" / f"{name}.mat"

    def released_split(self, split: Split) -> str:
        return _LISTS[split]

    def read(self, split: Split, name: str) -> tuple[Pixels, Pixels]:
        image_path, labels_path = self.files(split, name)
        image = read_image(image_path)
        if labels_path.suffix == ".mat":
            return image, _CLASSES[_read_matlab(labels_path)]
        labels = read_labels(labels_path)
        base.check_values(labels, range(len(self.classes) + 1), labels_path)
        # Unsigned arithmetic turns the 0 of unlabelled pixels into 255, the ignored label.
        return image, labels - np.uint8(1)


def _read_matlab(path: Path) -> Pixels:
    """The map of ids in a ``.mat`` file, (H, W) in [0, 182]."""
    from scipy.io import loadmat  # here, as importing it takes time and converted labels do without

    try:
        found = np.asarray(loadmat(path, variable_names=["S"])["S"])
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except KeyError:
        raise DataError(f"{path}: has no variable 'S'; expected COCO-Stuff's label map") from None
    except Exception as error:  # what a broken file raises depends on how it is broken
        raise DataError(f"{path}: does not decode as a MATLAB file ({error}); fetch it again") from None
    labels = found.astype(np.uint8)
    if found.ndim != 2 or (labels != found).any():
        raise DataError(
            f"{path}: 'S' is {found.dtype} {found.shape}; expected ids (H, W) of 0 to {_LARGEST_ID}"
        )
    base.check_values(labels, {*range(_LARGEST_ID + 1)} - set(_UNUSED_IDS), path)
    return labels


_CLASSES = np.full(256, base.IGNORE_LABEL, np.uint8)
_CLASSES[[i for i in range(1, _LARGEST_ID + 1) if i not in _UNUSED_IDS]] = np.arange(len(_NAMES))

DATASET = COCOStuff10k
