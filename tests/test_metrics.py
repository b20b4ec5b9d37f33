from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from experiments.running.storage import StorageError
from experiments.scoring import metrics
from experiments.scoring.counts import Counter, Counts, Evaluation, digest_of

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
    return metrics.confusion_matrix(labels, predictions, K)


def counted(labels: np.ndarray, predictions: np.ndarray, widths: list[int] | None = None) -> Counts:
    """Counts of one image."""
    counter = Counter(K, widths or [1])
    counter.add("image", labels, predictions)
    return counter.counts()


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
    counts = counted(labels, predictions_for(labels))
    iou = counts.class_iou()
    assert ((iou >= 0) & (iou <= 1) | np.isnan(iou)).all()
    if (labels != 255).any():
        assert 0 <= counts.mean_iou() <= 1
        assert 0 <= counts.pixel_accuracy() <= 1
        perfect = counted(labels, np.where(labels == 255, 0, labels).astype(np.uint8))
        assert perfect.mean_iou() == perfect.pixel_accuracy() == perfect.image_iou()[0] == 1
    else:
        assert np.isnan([counts.mean_iou(), counts.pixel_accuracy(), counts.image_iou()[0]]).all()


@given(label_maps, st.permutations(range(K)))
def test_mean_iou_does_not_depend_on_the_names_of_the_classes(labels: np.ndarray, order: list[int]) -> None:
    renamed = np.array([*order, *range(K, 255), 255], np.uint8)
    predictions = predictions_for(labels)
    before = counted(labels, predictions).mean_iou()
    after = counted(renamed[labels], renamed[predictions]).mean_iou()
    np.testing.assert_allclose(before, after)


@given(st.lists(label_maps, min_size=1, max_size=4))
def test_scores_are_of_summed_counts(images: list[np.ndarray]) -> None:
    counter = Counter(K, [1, 3])
    total = np.zeros((K, K), np.int64)
    for i, labels in enumerate(images):
        counter.add(str(i), labels, predictions_for(labels))
        total += confusion(labels, predictions_for(labels))
    counts = counter.counts()
    hits = np.diag(total)
    expected = metrics.iou(hits, total.sum(0) + total.sum(1) - hits)
    np.testing.assert_array_equal(counts.class_iou(), expected)
    np.testing.assert_array_equal(counter.confusion, total)
    if total.sum():
        assert counts.pixel_accuracy() == hits.sum() / total.sum()


@given(label_maps)
def test_bands_belong_to_their_widths_in_whatever_order_they_are_given(labels: np.ndarray) -> None:
    counts = counted(labels, predictions_for(labels), [50, 1, 3])
    assert counts.widths == [1, 3, 50]
    sizes = counts.labelled.sum(axis=(0, 2))
    assert sizes[1] <= sizes[2] <= sizes[3] <= sizes[0]
    if sizes[1]:  # with any boundary the widest band holds the whole image
        np.testing.assert_array_equal(counts.intersections[:, 3], counts.intersections[:, 0])


def test_counts_are_kept_as_they_are_and_the_same_bytes_twice(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    counter, other = Counter(K, [1, 3]), Counter(K, [1, 3])
    for i in range(3):
        labels = generator.choice([0, 1, 2, 3, 255], (20, 30)).astype(np.uint8)
        counter.add(f"image {i}", labels, predictions_for(labels))
        other.add(f"image {i}", labels, labels.clip(max=3))
    evaluation = Evaluation("digest", counter.counts(), counter.confusion, other.counts(), None)
    for name in ("a", "b"):
        evaluation.save(tmp_path / f"{name}.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    found = Evaluation.load(tmp_path / "a.npz")
    assert (found.digest, found.counts.images, found.counts.widths) == (
        "digest",
        counter.counts().images,
        [1, 3],
    )
    for name in ("intersections", "unions", "labelled"):
        np.testing.assert_array_equal(getattr(found.counts, name), getattr(evaluation.counts, name))
    np.testing.assert_array_equal(found.confusion, counter.confusion)
    assert found.bilinear is not None
    assert found.bilinear.mean_iou() == other.counts().mean_iou()


@pytest.mark.parametrize("content", [b"", b"PK", b"not an archive at all"])
def test_broken_counts_are_told_in_a_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "seed-0.npz"
    path.write_bytes(content)
    assert digest_of(path) is None
    with pytest.raises(
        StorageError, match=r"seed-0.npz: holds no counts .*; run 'python -m experiments.evaluate'"
    ):
        Evaluation.load(path)


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
    counter = Counter(19, [1])
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
        labels, predicted = (to_train_id[ids].astype(np.uint8) for ids in (truth, prediction))
        counter.add(str(i), labels, predicted)
    official: Any = evalPixelLevelSemanticLabeling
    arguments = official.args
    arguments.evalInstLevelScore = False
    arguments.quiet = True
    arguments.JSONOutput = True
    arguments.exportFile = str(tmp_path / "scores.json")
    official.evaluateImgLists(files["prediction"], files["truth"], arguments)
    scores = json.loads((tmp_path / "scores.json").read_text())
    counts = counter.counts()
    for train_id, iou in enumerate(counts.class_iou()):
        np.testing.assert_allclose(iou, scores["classScores"][trainId2label[train_id].name], rtol=1e-12)
    np.testing.assert_allclose(counts.mean_iou(), scores["averageScoreClasses"], rtol=1e-12)


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
