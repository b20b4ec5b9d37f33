"""A data set of one's own in plain folders: paths, classes and colours stand in ``params.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator
from pydantic.types import Strict
from pydantic_core import PydanticCustomError

from experiments.config.strict import StrictModel
from experiments.datasets import base
from experiments.datasets.base import DataError, LabelClass, Pixels, Split, read_labels
from experiments.running import paths

_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")

Colour = Annotated[
    tuple[Annotated[int, Field(ge=0, le=255)], ...], Strict(False), Field(min_length=3, max_length=3)
]


class Pairs(StrictModel):
    """Where a split is, below ``root``."""

    images: str
    labels: str
    """An image's labels have the same name, with the ending ``.png``."""


class Options(base.Options):
    """Paths, classes and what the values of a label file mean."""

    root: str = "."
    train: Pairs
    val: Pairs
    classes: Annotated[dict[str, Colour], Field(min_length=1, max_length=255)]
    """The colour (red, green, blue) of each class; the first class has the value 0 in a label file."""
    ignored: list[Annotated[int, Field(ge=0, le=255)]] = [base.IGNORE_LABEL]
    """Values of pixels that belong to no class."""

    @model_validator(mode="after")
    def _splits_apart(self) -> Options:
        if Path(self.train.images) == Path(self.val.images):
            raise PydanticCustomError(
                "splits",
                "val.images is {images}, as train.images is; expected other images than are trained on",
                {"images": self.val.images},
            )
        return self

    @model_validator(mode="after")
    def _values_apart(self) -> Options:
        for value in self.ignored:
            if value < len(self.classes):
                name = list(self.classes)[value]
                raise PydanticCustomError(
                    "ignored",
                    "ignored holds {value}, which is the class '{name}'; expected values from {first} on",
                    {"value": value, "name": name, "first": len(self.classes)},
                )
        return self


class Folders(base.Dataset):
    """Pairs of ``<images>/<name>.<any image ending>`` and ``<labels>/<name>.png``."""

    options_type = Options

    def __init__(self, options: Options):
        self.options = options
        self.classes = tuple(
            LabelClass(name, (red, green, blue)) for name, (red, green, blue) in options.classes.items()
        )
        self._images: dict[Split, dict[str, Path]] = {}

    def names(self, split: Split) -> list[str]:
        names = list(self._split(split))
        for image, labels in (self.files(split, name) for name in names):
            if not labels.is_file():
                raise DataError(f"{image}: has no labels; expected them at {labels}")
        # One folder may have the labels of both splits.
        known = {name for each in base.SPLITS for name in self._split(each)}
        folder = paths.given(self.options.root) / self._pairs(split).labels
        for path in base.files_in(folder):
            if path.suffix == ".png" and path.stem not in known:
                raise DataError(
                    f"{path}: has no image; expected '{path.stem}' with one of the endings "
                    f"{', '.join(_ENDINGS)} in {self._folder(split)}, or remove the labels"
                )
        return names

    def files(self, split: Split, name: str) -> tuple[Path, Path]:
        labels = paths.given(self.options.root) / self._pairs(split).labels / f"{name}.png"
        return self._split(split)[name], labels

    def read(self, split: Split, name: str) -> tuple[Pixels, Pixels]:
        image_path, labels_path = self.files(split, name)
        labels = read_labels(labels_path)
        base.check_values(labels, [*range(len(self.classes)), *self.options.ignored], labels_path)
        labels = labels.copy()
        labels[labels >= len(self.classes)] = base.IGNORE_LABEL
        return base.read_upright_image(image_path), labels

    def _pairs(self, split: Split) -> Pairs:
        return self.options.train if split == "train" else self.options.val

    def _folder(self, split: Split) -> Path:
        return paths.given(self.options.root) / self._pairs(split).images

    def _split(self, split: Split) -> dict[str, Path]:
        if split not in self._images:
            folder = self._folder(split)
            if not folder.is_dir():
                raise DataError(f"{folder}: no such folder; expected the images of split '{split}'")
            found: dict[str, Path] = {}
            for path in base.files_in(folder):
                if path.suffix.lower() not in _ENDINGS:
                    continue
                if path.stem in found:
                    raise DataError(
                        f"{path}: has the name of {found[path.stem].name}; expected one image of a name"
                    )
                found[path.stem] = path
            self._images[split] = found
        return self._images[split]


DATASET = Folders
