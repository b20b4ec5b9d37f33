"""Generated street scenes with the classes of Cityscapes: a data set that needs no download.

A scene is a function of the seed, its index and the picture's size alone, so that any of them can be
made again by itself. At another size of the same shape the same scene is seen with other pixels.
"""

from __future__ import annotations

from pydantic import NonNegativeInt

from experiments.config.strict import Count, Side
from experiments.datasets.base import DataError, Dataset, Options, Pixels, Split
from experiments.datasets.cityscapes_classes import CLASSES
from experiments.datasets.street.canvas import Canvas
from experiments.datasets.street.dice import Dice
from experiments.datasets.street.painting import paint_street
from experiments.datasets.street.plan import draw_light, draw_street, draw_view


def draw_scene(seed: int, index: int, height: int, width: int) -> tuple[Pixels, Pixels]:
    """A street scene and its labels.

    Args:
        seed: of the data set, not negative.
        index: of the scene, not negative.
        height: H, at least 1.
        width: W, at least 1.

    Returns:
        The image (H, W, 3), and the labels (H, W): an index of ``CLASSES`` or ``IGNORE_LABEL``.

    Raises:
        ValueError: a size below 1, or a negative seed or index.
    """
    if height < 1 or width < 1:
        raise ValueError(f"size of a scene: found {height} x {width}, expected at least 1 x 1")
    dice = Dice((seed, index))
    view, light, street = draw_view(dice), draw_light(dice), draw_street(dice)
    canvas = Canvas(height, width, view, light, dice)
    paint_street(canvas, dice, street)
    return canvas.develop(dice)


class ScenesOptions(Options):
    """How many scenes, of which size in pixels."""

    train: Count
    val: Count
    height: Side
    width: Side
    seed: NonNegativeInt = 0


class Scenes(Dataset):
    """Scenes by their index: the even ones are for training, the odd ones for validation.

    So neither split changes when the other one grows, and they never share a scene.
    """

    options_type = ScenesOptions
    classes = CLASSES

    def __init__(self, options: ScenesOptions):
        self.options = options
        self._indices: dict[Split, dict[str, int]] = {
            "train": {f"{index:06d}": index for index in range(0, 2 * options.train, 2)},
            "val": {f"{index:06d}": index for index in range(1, 2 * options.val, 2)},
        }

    def names(self, split: Split) -> list[str]:
        return list(self._indices[split])

    def read(self, split: Split, name: str) -> tuple[Pixels, Pixels]:
        options = self.options
        index = self._indices[split].get(name)
        if index is None:
            raise DataError(f"scenes: no scene '{name}' in split {split}; take a name from names()")
        return draw_scene(options.seed, index, options.height, options.width)


DATASET = Scenes
