"""What a prediction is worth: confusion matrices, IoU, and IoU near label boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.datasets.base import IGNORE_LABEL

Matrix = NDArray[np.int64]
"""(K, K) pixels by true class (row) and predicted class (column)."""


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Pixels of every true and predicted class: (K, K) int64 on the tensors' device.

    Args:
        labels: any shape, in [0, K) or ``IGNORE_LABEL``, which counts nowhere.
        predictions: the same shape, in [0, K).
        num_classes: K.
    """
    labels, predictions = labels.reshape(-1).long(), predictions.reshape(-1).long()
    # Ignored pixels go to a row of their own that is cut off: selecting the others would cost a
    # copy of both maps.
    row = labels.clamp(max=num_classes)
    counts = torch.bincount(row * num_classes + predictions, minlength=(num_classes + 1) * num_classes)
    return counts.reshape(num_classes + 1, num_classes)[:num_classes]


def class_iou(matrix: Matrix) -> NDArray[np.float64]:
    """Intersection over union of each class (K,), as Cityscapes defines it.

    True positives over true positives, false positives and false negatives; ignored pixels are
    none of these. NaN for a class that is neither labelled nor predicted.
    """
    hits = np.diag(matrix).astype(np.float64)
    union = matrix.sum(0) + matrix.sum(1) - hits
    iou = np.full(len(matrix), np.nan)
    np.divide(hits, union, out=iou, where=union > 0)
    return iou


def mean_iou(matrix: Matrix) -> float:
    """Mean of the classes' IoU in [0, 1]; classes without any pixel are left out. NaN for none."""
    iou = class_iou(matrix)
    return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")


def pixel_accuracy(matrix: Matrix) -> float:
    """Share of the labelled pixels that are right, in [0, 1]; NaN if none is labelled."""
    total = matrix.sum()
    return float(np.trace(matrix) / total) if total else float("nan")


def boundary_distance(labels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Euclidean distance in pixels from each pixel to the nearest class boundary: (H, W).

    A pixel lies on a boundary, at distance 0, if one of its four neighbours has another class.
    Ignored pixels are no class: next to them is no boundary, and their own distance is infinite.
    Everything is infinite if there is no boundary.

    Args:
        labels: (H, W) class indices or ``IGNORE_LABEL``.
    """
    valid = labels != IGNORE_LABEL
    on_boundary = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        before, after = _halves(labels, axis)
        valid_before, valid_after = _halves(valid, axis)
        differ = (before != after) & valid_before & valid_after
        boundary_before, boundary_after = _halves(on_boundary, axis)
        boundary_before |= differ
        boundary_after |= differ
    if not on_boundary.any():
        return np.full(labels.shape, np.inf, np.float32)
    distance: Any = cv2.distanceTransform((~on_boundary).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    distance[~valid] = np.inf
    result: NDArray[np.float32] = distance
    return result


def trimap_matrices(
    labels: NDArray[np.uint8], predictions: NDArray[np.uint8], widths: Sequence[int], num_classes: int
) -> NDArray[np.int64]:
    """Confusion matrices inside bands around the label boundaries: (len(widths), K, K).

    The band of width w holds the pixels closer than w to a boundary pixel, on both sides; w = 1
    holds the boundary pixels alone.

    Args:
        labels: (H, W) class indices or ``IGNORE_LABEL``.
        predictions: (H, W) class indices.
        widths: in pixels, increasing.
        num_classes: K.
    """
    distance = boundary_distance(labels)
    inside = distance < widths[-1]
    # Each pixel is counted once, in the narrowest band that holds it; wider bands add up.
    band = np.searchsorted(np.asarray(widths), distance[inside], side="right")
    cell = (band * num_classes + labels[inside]) * num_classes + predictions[inside]
    counts = np.bincount(cell, minlength=len(widths) * num_classes**2)
    return np.cumsum(counts.reshape(len(widths), num_classes, num_classes), axis=0)


def _halves(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Views of all but the last and all but the first element along an axis."""
    return (array[:-1], array[1:]) if axis == 0 else (array[:, :-1], array[:, 1:])
