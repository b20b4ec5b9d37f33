from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from experiments.scoring import metrics

K = 4
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)
label_maps = hnp.arrays(
    np.uint8,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.sampled_from([0, 1, 2, 3, 255]),
)


def predictions_for(labels: np.ndarray) -> np.ndarray:
    return np.random.default_rng(int(labels.sum())).integers(0, K, labels.shape).astype(np.uint8)


def confusion(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    return metrics.confusion_matrix(torch.from_numpy(labels), torch.from_numpy(predictions), K).numpy()


@given(label_maps)
def test_confusion_matrix_counts_each_labelled_pixel_once(labels: np.ndarray) -> None:
    predictions = predictions_for(labels)
    expected = np.zeros((K, K), int)
    for truth, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
        if truth != 255:
            expected[truth, prediction] += 1
    np.testing.assert_array_equal(confusion(labels, predictions), expected)


@given(label_maps)
def test_scores_lie_between_0_and_1_and_a_perfect_prediction_has_1(labels: np.ndarray) -> None:
    matrix = confusion(labels, predictions_for(labels))
    iou = metrics.class_iou(matrix)
    assert ((iou >= 0) & (iou <= 1) | np.isnan(iou)).all()
    if (labels != 255).any():
        assert 0 <= metrics.mean_iou(matrix) <= 1
        assert 0 <= metrics.pixel_accuracy(matrix) <= 1
        perfect = confusion(labels, np.where(labels == 255, 0, labels).astype(np.uint8))
        assert metrics.mean_iou(perfect) == metrics.pixel_accuracy(perfect) == 1
    else:
        assert np.isnan(metrics.mean_iou(matrix))


@given(label_maps, st.permutations(range(K)))
def test_mean_iou_does_not_depend_on_the_names_of_the_classes(labels: np.ndarray, order: list[int]) -> None:
    renamed = np.array([*order, *range(K, 255), 255], np.uint8)
    predictions = predictions_for(labels)
    before = metrics.mean_iou(confusion(labels, predictions))
    after = metrics.mean_iou(confusion(renamed[labels], renamed[predictions]))
    np.testing.assert_allclose(before, after)


def test_iou_is_the_one_of_cityscapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the official script, on label ids with void pixels and classes that never occur."""
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path))
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling
    from cityscapesscripts.helpers.labels import id2label, trainId2label
    from PIL import Image

    generator = np.random.default_rng(3)
    train_ids = [i for i in range(19) if i not in (14, 16)]
    evaluated = np.array([trainId2label[i].id for i in train_ids], np.uint8)
    void = np.array([0, 1, 3, 4, 9, 29], np.uint8)
    files: dict[str, list[str]] = {"truth": [], "prediction": []}
    total = np.zeros((19, 19), np.int64)
    to_train_id = np.array([id2label[i].trainId if i in id2label else 255 for i in range(256)])
    to_train_id[to_train_id < 0] = 255
    for i in range(3):
        truth = generator.choice(np.concatenate([evaluated, void]), (40, 60))
        prediction = np.where(generator.random((40, 60)) < 0.6, truth, generator.choice(evaluated, (40, 60)))
        prediction = np.where(np.isin(prediction, void), 7, prediction).astype(np.uint8)
        for kind, ids in (("truth", truth), ("prediction", prediction)):
            path = tmp_path / f"{kind}_{i}.png"
            Image.fromarray(ids.astype(np.uint8)).save(path)
            files[kind].append(str(path))
        total += metrics.confusion_matrix(
            torch.from_numpy(to_train_id[truth]), torch.from_numpy(to_train_id[prediction]), 19
        ).numpy()
    official: Any = evalPixelLevelSemanticLabeling
    arguments = official.args
    arguments.evalInstLevelScore = False
    arguments.quiet = True
    arguments.JSONOutput = True
    arguments.exportFile = str(tmp_path / "scores.json")
    official.evaluateImgLists(files["prediction"], files["truth"], arguments)
    scores = json.loads((tmp_path / "scores.json").read_text())
    for train_id, iou in enumerate(metrics.class_iou(total)):
        np.testing.assert_allclose(iou, scores["classScores"][trainId2label[train_id].name], rtol=1e-12)
    np.testing.assert_allclose(metrics.mean_iou(total), scores["averageScoreClasses"], rtol=1e-12)


def boundary_by_definition(labels: np.ndarray) -> np.ndarray:
    height, width = labels.shape
    boundary = np.zeros(labels.shape, bool)
    for y in range(height):
        for x in range(width):
            for dy, dx in ((0, 1), (1, 0), (0, -1), (-1, 0)):
                v, u = y + dy, x + dx
                if 0 <= v < height and 0 <= u < width and 255 not in (labels[y, x], labels[v, u]):
                    boundary[y, x] |= labels[y, x] != labels[v, u]
    return boundary


def distance_by_definition(labels: np.ndarray) -> np.ndarray:
    boundary = boundary_by_definition(labels)
    distance = ndimage.distance_transform_edt(~boundary) if boundary.any() else np.full(labels.shape, np.inf)
    distance[labels == 255] = np.inf
    return distance


@given(label_maps, st.sampled_from([1, 2, 3, 16, 180, 181, 182, 400]))
def test_boundary_distance_is_exact_up_to_its_limit(labels: np.ndarray, limit: int) -> None:
    expected = np.minimum(distance_by_definition(labels), limit)
    np.testing.assert_array_equal(metrics.squared_boundary_distance(labels, limit), np.rint(expected**2))


def test_boundary_distance_of_a_map_that_is_larger_than_a_block() -> None:
    labels = np.repeat(np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4), 37, 0), 41, 1)
    expected = np.minimum(distance_by_definition(labels), 19)
    np.testing.assert_array_equal(metrics.squared_boundary_distance(labels, 19), np.rint(expected**2))


@given(label_maps)
def test_bands_hold_the_pixels_closer_than_their_width(labels: np.ndarray) -> None:
    predictions, widths = predictions_for(labels), [1, 2, 5, 40]
    matrices = metrics.trimap_matrices(labels, predictions, widths, K)
    distance = distance_by_definition(labels)
    for width, matrix in zip(widths, matrices, strict=True):
        inside = np.where(distance < width, labels, 255).astype(np.uint8)
        np.testing.assert_array_equal(matrix, confusion(inside, predictions))


def test_a_map_of_one_class_has_no_boundary() -> None:
    labels = np.full((5, 7), 2, np.uint8)
    labels[0] = 255  # next to ignored pixels is no boundary
    assert (metrics.squared_boundary_distance(labels, 3) == 9).all()
    assert metrics.trimap_matrices(labels, labels.clip(max=3), [1, 8], K).sum() == 0
