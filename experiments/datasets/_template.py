"""A data set to start from: copy this file to ``experiments/datasets/<name>.py`` and change it.

Then name it in ``params.yaml``, under a profile's ``datasets`` and as its ``stand_in``:

    datasets:
      <name>: {root: path/to/the/files}
    stand_in: <name>

As it stands it reads ``<root>/<split>/<name>.png`` and ``<root>/<split>/<name>_labels.png``. Pairs in plain
folders need no file at all: that is the data set ``folders``.
"""

from __future__ import annotations

from pathlib import Path

from experiments.datasets import base
from experiments.datasets.base import DataError, LabelClass, Pixels, Split, read_image, read_labels


class Options(base.Options):
    """What ``params.yaml`` may say: each field is checked against its type."""

    root: str


class Template(base.Dataset):
    """Pairs of image and labels."""

    options_type = Options
    # In the order of the label values: the first class is 0. Pixels of no class are base.IGNORE_LABEL.
    classes = (LabelClass("background", (0, 0, 0)), LabelClass("object", (230, 159, 0)))

    def __init__(self, options: Options):
        self.root = Path(options.root)

    def names(self, split: Split) -> list[str]:
        folder = self.root / split
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; set the data set's 'root' in params.yaml")
        # Of both files, so that one without the other is refused when it is read.
        return sorted({path.stem.removesuffix("_labels") for path in folder.glob("*.png")})

    def files(self, split: Split, name: str) -> tuple[Path, Path]:
        return self.root / split / f"{name}.png", self.root / split / f"{name}_labels.png"

    def read(self, split: Split, name: str) -> tuple[Pixels, Pixels]:
        image, labels = self.files(split, name)
        return read_image(image), read_labels(labels)


DATASET = Template
