"""From a data set to what training reads: every pair checked, labels as class indices, a manifest.

The manifest of a data set holds, for each split, the samples with a checksum of their pixels and of the
files that they came from, class pixel counts, and the mean and standard deviation of the training images.
Its digests are of pixels: the same pictures in other files are the same data.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from experiments.datasets import create
from experiments.datasets.base import (
    IGNORE_LABEL,
    SPLITS,
    DataError,
    Dataset,
    Pixels,
    Split,
    check_values,
    value_counts,
)
from experiments.running import digests
from experiments.running.errors import ExpectedError


@dataclass
class _Checked:
    """A sample that has been read, and what the manifest says of it."""

    entry: dict[str, Any]
    class_pixels: np.ndarray
    """(256,) pixels of each label value."""
    channel_sum: np.ndarray
    """(3,) sum of each channel's values, in [0, 255]."""
    channel_squares: np.ndarray
    """(3,) sum of their squares."""
    pixels: int


def settings_digest(name: str, options: dict[str, Any], size: tuple[int, int] | None) -> str:
    """Digest of the settings and the code that prepared data are a function of, beside the files."""
    return digests.of_value([name, options, size, digests.of_code(modules(name))])


def modules(name: str) -> tuple[str, str]:
    """Modules that, with all that they import, decide what is prepared; dvc.yaml follows them."""
    return f"experiments.datasets.{name}", "experiments.datasets.preparation"


def files_digest(dataset: Dataset) -> str:
    """Digest of the files that a data set is read from, by their paths, sizes and times.

    Raises:
        DataError: a folder is missing, or an image has no labels.
    """
    listing = [
        [split, name, [stamp(path) for path in dataset.files(split, name)]]
        for split in SPLITS
        for name in dataset.names(split)
    ]
    return digests.of_value(listing)


def stamp(path: Path) -> list[Any]:
    """Path, size and time of a file: what changes when somebody changes it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return [str(path), None, None]
    return [str(path), status.st_size, status.st_mtime_ns]


def prepare(
    name: str,
    options: dict[str, Any],
    folder: Path,
    size: tuple[int, int] | None,
    progress: Callable[[Split, int, int], None] = lambda split, done, of: None,  # noqa: ARG005
) -> dict[str, Any]:
    """Checks a data set, writes its pixels to ``folder`` and returns its manifest.

    Args:
        name: of the data set.
        options: what params.yaml says of it.
        folder: a new folder for labels and changed images.
        size: height and width to resize images to; ``None`` keeps theirs.
        progress: told after each sample how many of how many of a split are checked.

    Raises:
        DataError: a split is empty, a class or a sample appears twice or a pair is broken.
    """
    dataset = create(name, options)
    _check_classes(name, dataset)
    manifest: dict[str, Any] = {
        "dataset": name,
        "classes": [{"name": c.name, "colour": list(c.colour)} for c in dataset.classes],
        "splits": {},
    }
    for split in SPLITS:
        names = _names(name, dataset, split)
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)

        def check(sample: str, split: Split = split) -> _Checked:
            return _check(dataset, split, sample, folder, size)

        checked = []
        # Threads: decoding, resizing and compressing release the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            try:
                for one in pool.map(check, names):
                    checked.append(one)
                    progress(split, len(checked), len(names))
            finally:
                pool.shutdown(cancel_futures=True)  # or an error would wait for all the other samples
        counts = np.sum([c.class_pixels for c in checked], axis=0)
        if not counts[: len(dataset.classes)].any():
            raise DataError(
                f"data set '{name}': split '{split}' has no labelled pixel; expected class indices"
            )
        described: dict[str, Any] = {
            "released": dataset.released_split(split),
            "class_pixels": counts[: len(dataset.classes)].tolist(),
            "ignored_pixels": int(counts[IGNORE_LABEL]),
        }
        if split == "train":
            described |= _statistics(checked)
        pixels = [[c.entry[key] for key in ("name", "image_sha256", "labels_sha256")] for c in checked]
        described["digest"] = digests.of_value([manifest["classes"], described, pixels])
        manifest["splits"][split] = described | {"samples": [c.entry for c in checked]}
    return manifest


def _check_classes(dataset_name: str, dataset: Dataset) -> None:
    """Of a data set of one's own, whose classes nothing else has checked."""
    names = [c.name for c in dataset.classes]
    for name, colour in ((c.name, c.colour) for c in dataset.classes):
        if names.count(name) > 1:
            raise DataError(f"data set '{dataset_name}': names the class '{name}' twice; expected once")
        if len(colour) != 3 or any(type(value) is not int or not 0 <= value <= 255 for value in colour):
            raise DataError(
                f"data set '{dataset_name}': class '{name}' has the colour {colour}; expected three whole "
                "numbers from 0 to 255"
            )


def _names(dataset_name: str, dataset: Dataset, split: Split) -> list[str]:
    names = dataset.names(split)
    if not names:
        raise DataError(f"data set '{dataset_name}': split '{split}' is empty; expected at least one image")
    seen = set()
    for name in names:
        if name in seen:
            raise DataError(f"data set '{dataset_name}': split '{split}' names '{name}' twice; expected once")
        if not re.fullmatch(r"[^/\\\0]+", name) or name.startswith("."):
            raise DataError(
                f"data set '{dataset_name}': split '{split}' has a sample named {name!r}; expected a name "
                "that can be a file's"
            )
        seen.add(name)
    return names


def _statistics(checked: list[_Checked]) -> dict[str, list[float]]:
    """Mean and standard deviation of the channels, in [0, 1]."""
    pixels = sum(c.pixels for c in checked)
    mean = np.sum([c.channel_sum for c in checked], axis=0) / (255 * pixels)
    variance = np.sum([c.channel_squares for c in checked], axis=0) / (255**2 * pixels) - mean**2
    # A constant channel would be divided by zero.
    return {"mean": mean.round(6).tolist(), "std": np.sqrt(variance.clip(min=1e-6)).round(6).tolist()}


def _check(dataset: Dataset, split: Split, name: str, folder: Path, size: tuple[int, int] | None) -> _Checked:
    """Reads one pair, writes what training needs of it and measures it."""
    files = dataset.files(split, name)
    stamps = [stamp(path) for path in files]  # before reading: a change while it is read is a change
    where = files[-1] if files else Path(f"{split} sample '{name}'")
    image, labels = _read(dataset, split, name, where)
    entry: dict[str, Any] = {"name": name, "height": labels.shape[0], "width": labels.shape[1]}
    resized = image if size is None else resize(image, size, Image.Resampling.BILINEAR)
    if size is not None and split == "train":  # validation is scored at the labels' own size
        labels = resize(labels, size, Image.Resampling.NEAREST)
    if not files or resized is not image:
        entry["image"] = _write(folder, f"images/{split}/{name}.png", resized)
    entry["labels"] = _write(folder, f"labels/{split}/{name}.png", labels)
    entry["image_sha256"], entry["labels_sha256"] = checksum(resized), checksum(labels)
    entry["files"] = [[*stamped, digests.of_file(path)] for stamped, path in zip(stamps, files, strict=True)]
    # Exact sums of integers, so that the order of the samples cannot show in the result.
    counts, values = value_counts(resized), np.arange(256)
    return _Checked(
        entry=entry,
        class_pixels=value_counts(labels),
        channel_sum=counts @ values,
        channel_squares=counts @ values**2,
        pixels=resized.shape[0] * resized.shape[1],
    )


def _read(dataset: Dataset, split: Split, name: str, where: Path) -> tuple[Pixels, Pixels]:
    """A pair whose types, sizes and values are as ``Dataset.read`` promises."""
    try:
        image, labels = dataset.read(split, name)
    except ExpectedError:
        raise
    except Exception as error:  # a data set of one's own may raise anything
        raise DataError(
            f"{where}: reading '{name}' failed ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    for what, pixels, dimensions in (("image", image, 3), ("labels", labels, 2)):
        if pixels.dtype != np.uint8 or pixels.ndim != dimensions:
            shape = "(H, W, 3)" if dimensions == 3 else "(H, W)"
            raise DataError(
                f"{where}: {what} of '{name}' are {pixels.dtype} {pixels.shape}; expected uint8 {shape}"
            )
    if image.shape[:2] != labels.shape:
        found, expected = (f"{size[0]} x {size[1]}" for size in (labels.shape, image.shape))
        raise DataError(f"{where}: labels are {found} (height x width); expected {expected}, as the image")
    check_values(labels, [*range(len(dataset.classes)), IGNORE_LABEL], where)
    return image, labels


def resize(pixels: Pixels, size: tuple[int, int], resampling: Image.Resampling) -> Pixels:
    """Pixels (H, W) or (H, W, 3) at another height and width, as training has them."""
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), resampling))


def _write(folder: Path, name: str, pixels: Pixels) -> str:
    # Level 1 compresses label maps to within a few per cent of level 6, at a fraction of the time.
    Image.fromarray(pixels).save(folder / name, compress_level=1)
    return name


def checksum(pixels: Pixels) -> str:
    """SHA-256 of the shape and the values of an image or of labels."""
    total = hashlib.sha256(f"{pixels.shape}".encode())
    total.update(np.ascontiguousarray(pixels).data)
    return total.hexdigest()
