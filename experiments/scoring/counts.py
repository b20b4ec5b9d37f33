"""Counts by image: intersections and unions of every class, from which every score can be summed again."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.running import storage
from experiments.scoring import metrics
from experiments.scoring.metrics import Matrix

Integers = NDArray[np.int64]
_MOST_BYTES = 256 * 2**20
"""More than the counts of any data set unpack to."""
REMEDY = "run 'python -m experiments.evaluate' again"
"""What mends a file of counts of this run."""


@dataclass(frozen=True)
class Counts:
    """Pixels of N images, in the regions of the whole image (first) and of each band, by class.

    A band of width w holds the pixels closer than w to a label boundary.
    """

    images: list[str]
    """Names of the images."""
    widths: list[int]
    """Widths of the bands, increasing."""
    intersections: Integers
    """(N, 1 + bands, K) pixels that are labelled and predicted as the class."""
    unions: Integers
    """(N, 1 + bands, K) labelled pixels that are labelled or predicted as the class."""
    labelled: Integers
    """(N, 1 + bands, K) pixels that are labelled as the class."""

    def class_iou(self, region: int = 0) -> NDArray[np.float64]:
        """IoU (K,) of each class over all images, NaN where it has no union; region 0 is the whole image."""
        return metrics.iou(self.intersections[:, region].sum(0), self.unions[:, region].sum(0))

    def mean_iou(self, region: int = 0) -> float:
        """Mean of the classes' IoU over all images: the data set's mIoU, in [0, 1]."""
        return metrics.mean_of_present(self.class_iou(region))

    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right, in [0, 1]; NaN if none is labelled."""
        labelled = self.labelled[:, 0].sum()
        return float(self.intersections[:, 0].sum() / labelled) if labelled else float("nan")

    def image_iou(self) -> NDArray[np.float64]:
        """(N,) mean IoU of each image over the classes that its labels hold; NaN if none is labelled."""
        iou = metrics.iou(self.intersections[:, 0], self.unions[:, 0])
        present = self.labelled[:, 0] > 0
        count = present.sum(1)
        sums = np.where(present, iou, 0.0).sum(1)
        return np.where(count > 0, sums / np.maximum(count, 1), np.nan)


class Counter:
    """Adds up what a network makes of image after image.

    Args:
        num_classes: K.
        widths: of the bands around label boundaries, in pixels.
    """

    def __init__(self, num_classes: int, widths: Sequence[int]):
        self.num_classes = num_classes
        self.widths = sorted(widths)
        self.confusion: Matrix = np.zeros((num_classes, num_classes), np.int64)
        """(K, K) pixels of all images by true class (row) and predicted class (column)."""
        self._images: list[str] = []
        self._regions: list[NDArray[np.int64]] = []

    def add(self, name: str, labels: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> None:
        """Counts one image.

        Args:
            name: of the image.
            labels: (H, W) class indices or ``IGNORE_LABEL``.
            prediction: (H, W) class indices.
        """
        whole = metrics.confusion_matrix(labels, prediction, self.num_classes)
        bands = metrics.trimap_matrices(labels, prediction, self.widths, self.num_classes)
        matrices = np.concatenate((whole[None], bands))
        hits = np.diagonal(matrices, axis1=1, axis2=2)
        labelled, predicted = matrices.sum(2), matrices.sum(1)
        self.confusion += whole
        self._images.append(name)
        self._regions.append(np.stack((hits, labelled + predicted - hits, labelled)))

    def add_batch(
        self, names: Sequence[str], labels: NDArray[np.uint8], predictions: NDArray[np.uint8]
    ) -> None:
        """Counts N images of one size: names, and labels and predictions (N, H, W), as in ``add``."""
        for name, truth, predicted in zip(names, labels, predictions, strict=True):
            self.add(name, truth, predicted)

    def counts(self) -> Counts:
        """What has been counted so far: at least one image."""
        regions = np.stack(self._regions)
        return Counts(self._images, self.widths, regions[:, 0], regions[:, 1], regions[:, 2])

    def counts_if_any(self) -> Counts | None:
        """What has been counted so far; ``None`` if no image has."""
        return self.counts() if self._images else None


@dataclass(frozen=True)
class Evaluation:
    """What one trained network scored, as it is kept."""

    digest: str
    """Of all that the counts are a function of."""
    counts: Counts
    confusion: Matrix
    bilinear: Counts | None
    """Of the same network with bilinear upsampling in place of its learned one, where it has one."""
    multi_scale: Counts | None
    """By the multi-scale protocol, where it is measured."""

    def save(self, path: Path) -> None:
        """Writes a compressed ``.npz``, the same bytes for the same counts."""
        arrays: dict[str, Any] = {"digest": np.array(self.digest), "confusion": _smallest(self.confusion)}
        further = {"bilinear_": self.bilinear, "multi_scale_": self.multi_scale}
        for prefix, counts in {"": self.counts, **further}.items():
            if counts is None:
                continue
            arrays[f"{prefix}images"] = np.array(counts.images)
            arrays[f"{prefix}widths"] = np.array(counts.widths, np.int64)
            for name in ("intersections", "unions", "labelled"):
                arrays[f"{prefix}{name}"] = _smallest(getattr(counts, name))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        storage.write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path, remedy: str = REMEDY) -> Evaluation:
        """Reads what ``save`` wrote.

        Args:
            path: of the file.
            remedy: what to do where it is missing or broken.

        Raises:
            StorageError: the file is missing or broken.
        """
        try:
            _check_size(path)
            with np.load(path, allow_pickle=False) as arrays:
                return cls(
                    digest=str(arrays["digest"]),
                    counts=_counts(arrays, ""),
                    confusion=arrays["confusion"].astype(np.int64),
                    bilinear=_counts_if_any(arrays, "bilinear_"),
                    multi_scale=_counts_if_any(arrays, "multi_scale_"),
                )
        except FileNotFoundError:
            raise storage.StorageError(f"{path}: no such file; {remedy}") from None
        except Exception as error:  # what a broken archive raises depends on how it is broken
            raise storage.StorageError(
                f"{path}: holds no counts ({type(error).__name__}: {storage.reason(error)}); {remedy}"
            ) from None


def digest_of(path: Path) -> str | None:
    """Digest of a file of counts; ``None`` if it is missing or broken."""
    try:
        _check_size(path)
        with np.load(path, allow_pickle=False) as arrays:
            return str(arrays["digest"])
    except Exception:  # as in ``Evaluation.load``
        return None


def merge(digest: str, parts: Sequence[Evaluation]) -> Evaluation:
    """The evaluation of all images from those of parts of them.

    Args:
        digest: of the whole.
        parts: of one network, in the order of their images.
    """
    return Evaluation(
        digest,
        _joined([part.counts for part in parts]),
        np.sum([part.confusion for part in parts], axis=0),
        _joined_if_any([part.bilinear for part in parts]),
        _joined_if_any([part.multi_scale for part in parts]),
    )


def _joined_if_any(parts: Sequence[Counts | None]) -> Counts | None:
    known = [part for part in parts if part is not None]
    return _joined(known) if known else None


def _joined(parts: Sequence[Counts]) -> Counts:
    return Counts(
        [name for part in parts for name in part.images],
        parts[0].widths,
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("intersections", "unions", "labelled")
        ),
    )


def _counts_if_any(arrays: Any, prefix: str) -> Counts | None:
    return _counts(arrays, prefix) if f"{prefix}images" in arrays else None


def _check_size(path: Path) -> None:
    """Raises ``ValueError`` for an archive that would unpack to more than any counts."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > _MOST_BYTES:
        raise ValueError(f"unpacks to {size} bytes, expected at most {_MOST_BYTES}")


def _counts(arrays: Any, prefix: str) -> Counts:
    return Counts(
        images=[str(name) for name in arrays[f"{prefix}images"]],
        widths=[int(width) for width in arrays[f"{prefix}widths"]],
        **{
            name: arrays[f"{prefix}{name}"].astype(np.int64)
            for name in ("intersections", "unions", "labelled")
        },
    )


def _smallest(counts: NDArray[np.int64]) -> NDArray[np.unsignedinteger[Any]]:
    """The same numbers in the smallest type that holds them."""
    largest = int(counts.max(initial=0))
    kind = next(kind for kind in (np.uint8, np.uint16, np.uint32, np.uint64) if largest <= np.iinfo(kind).max)
    return counts.astype(kind)
