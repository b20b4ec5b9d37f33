from __future__ import annotations

import numpy as np
import pytest

from experiments.datasets.base import LabelClass
from experiments.reporting import maps

CLASSES = (LabelClass("road", (10, 20, 30)), LabelClass("sky", (40, 50, 60)), LabelClass("car", (7, 8, 9)))


@pytest.mark.parametrize(
    ("offset", "colour"),
    [((2.0, 0.0), (255, 0, 0)), ((-2.0, 0.0), (0, 255, 255)), ((0.0, 0.0), (255, 255, 255))],
    ids=["right is red", "left is cyan", "none is white"],
)
def test_offsets_are_drawn_on_the_colour_wheel(
    offset: tuple[float, float], colour: tuple[int, int, int]
) -> None:
    field = np.zeros((2, 3, 4), np.float32)
    field[:, 0, 0] = (0, 2.0)  # the longest one sets the scale
    field[:, 1, 1] = offset
    np.testing.assert_array_equal(maps.offset_colours(field)[1, 1], colour)


def test_scores_are_drawn_as_the_best_class() -> None:
    scores = np.zeros((3, 1, 2), np.float16)
    scores[1, 0, 0] = scores[2, 0, 1] = 1
    pictures = maps.pictures({"stage1_prediction": scores}, np.zeros((1, 2), np.uint8), CLASSES)
    np.testing.assert_array_equal(pictures["stage1 prediction"], [[(40, 50, 60), (7, 8, 9)]])


def test_attention_by_class_is_drawn_for_the_classes_of_the_image_most_frequent_first() -> None:
    labels = np.array([[1, 1, 2, 255, 255, 255]], np.uint8)
    attention = np.random.default_rng(0).random((3, 2, 2)).astype(np.float16)
    pictures = maps.pictures({"stage1_guided_attention_per_class": attention}, labels, CLASSES)
    assert [title.split("\n")[1] for title in pictures] == ["sky", "car", "road"]


def test_an_offset_says_how_long_it_is() -> None:
    field = np.zeros((2, 2, 2), np.float16)
    field[:, 0, 1] = (3, 4)
    (title,) = maps.pictures({"offsets": field}, np.zeros((2, 2), np.uint8), CLASSES)
    assert "longest 5.0 px" in title


def test_ignored_pixels_are_black() -> None:
    assert maps.colourise(np.array([[255, 0]], np.uint8), CLASSES).tolist() == [[[0, 0, 0], [10, 20, 30]]]


def test_levels_are_drawn_from_shallow_to_deep() -> None:
    names = ["offset_16_deep", "offset_32_deep", "offset_8_deep", "offset_aligncm"]
    fields = {name: np.ones((2, 3, 4), np.float16) for name in names}
    drawn = maps.pictures(fields, np.zeros((3, 4), np.uint8), CLASSES)
    assert [title.split("\n")[0] for title in drawn] == [
        "offset 8 deep", "offset 16 deep", "offset 32 deep", "offset aligncm"
    ]  # fmt: skip
