"""Checks every pair of the active profile's data sets and writes what training reads.

For each data set ``data/prepared/<name>/`` holds the labels as class indices, the images where
they are generated or resized, and ``manifest.json``: checksums, class pixel counts, and the mean
and standard deviation of the training images. ``data/prepared/manifest.json`` lists their digests.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from experiments import datasets
from experiments.config import params as config
from experiments.datasets.base import IGNORE_LABEL, SPLITS, DataError, Dataset, Pixels, Split
from experiments.running import command, storage
from experiments.samples.prepared import PREPARED


@dataclass
class Checked:
    """A sample that has been read, and what the manifest says of it."""

    entry: dict[str, Any]
    class_pixels: np.ndarray
    """(256,) pixels of each label value."""
    channel_sum: np.ndarray
    """(3,) sum of each channel's values, in [0, 255]."""
    channel_squares: np.ndarray
    """(3,) sum of their squares."""
    pixels: int


def main() -> None:
    command.parser("prepare", __doc__).parse_args()
    params = config.load()
    profile = params.active
    with storage.folder(PREPARED) as folder:
        index = {}
        for name, options in profile.datasets.items():
            dataset = datasets.create(name, options)
            manifest = prepare(name, dataset, folder / name, profile.image_size)
            text = json.dumps(manifest, indent=1) + "\n"
            (folder / name / "manifest.json").write_text(text)
            index[name] = hashlib.sha256(text.encode()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(index, indent=1) + "\n")


def prepare(name: str, dataset: Dataset, folder: Path, size: tuple[int, int] | None) -> dict[str, Any]:
    """Checks a data set, writes its pixels to ``folder`` and returns its manifest.

    Args:
        name: of the data set.
        dataset: to read from.
        folder: a new folder for labels and changed images.
        size: height and width to resize images to; ``None`` keeps theirs.

    Raises:
        DataError: a split is empty, a sample appears twice or a pair is broken.
    """
    manifest: dict[str, Any] = {
        "dataset": name,
        "classes": [{"name": c.name, "colour": list(c.colour)} for c in dataset.classes],
        "splits": {},
    }
    for split in SPLITS:
        names = dataset.names(split)
        if not names:
            raise DataError(f"data set '{name}': split '{split}' is empty; expected at least one image")
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)

        def check(sample: str, split: Split = split) -> Checked:
            return _check(dataset, split, sample, folder, size)

        # Threads: decoding, resizing and compressing release the interpreter's lock.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            checked = list(
                tqdm(
                    pool.map(check, names), f"prepare {name} {split}", len(names), unit="image", mininterval=1
                )
            )
        counts = np.sum([c.class_pixels for c in checked], axis=0)
        manifest["splits"][split] = {
            "class_pixels": counts[: len(dataset.classes)].tolist(),
            "ignored_pixels": int(counts[IGNORE_LABEL]),
            "samples": [c.entry for c in checked],
        }
        if not counts[: len(dataset.classes)].any():
            raise DataError(
                f"data set '{name}': split '{split}' has no labelled pixel; expected class indices"
            )
        if split == "train":
            pixels = sum(c.pixels for c in checked)
            mean = np.sum([c.channel_sum for c in checked], axis=0) / (255 * pixels)
            variance = np.sum([c.channel_squares for c in checked], axis=0) / (255**2 * pixels) - mean**2
            manifest["mean"] = mean.round(6).tolist()
            # A constant channel would be divided by zero.
            manifest["std"] = np.sqrt(variance.clip(min=1e-6)).round(6).tolist()
    return manifest


def _check(dataset: Dataset, split: Split, name: str, folder: Path, size: tuple[int, int] | None) -> Checked:
    """Reads one pair, writes what training needs of it and measures it."""
    image, labels = dataset.read(split, name)
    entry: dict[str, Any] = {"name": name, "height": labels.shape[0], "width": labels.shape[1]}
    resized = image if size is None else _resize(image, size, Image.Resampling.BILINEAR)
    if size is not None and split == "train":  # validation is scored at the labels' own size
        labels = _resize(labels, size, Image.Resampling.NEAREST)
    source = dataset.image_path(split, name)
    if source is None or resized is not image:
        entry["image"] = _write(folder, f"images/{split}/{name}.png", resized)
        entry["image_sha256"] = _checksum(folder / entry["image"])
    else:
        entry["source"] = str(source)
        entry["image_sha256"] = _checksum(source)
    entry["labels"] = _write(folder, f"labels/{split}/{name}.png", labels)
    entry["labels_sha256"] = _checksum(folder / entry["labels"])
    # Exact sums of integers, so that the order of the samples cannot show in the result.
    flat = resized.reshape(-1, 3).astype(np.int64)
    return Checked(
        entry=entry,
        class_pixels=np.bincount(labels.ravel(), minlength=256),
        channel_sum=flat.sum(0),
        channel_squares=(flat * flat).sum(0),
        pixels=len(flat),
    )


def _resize(pixels: Pixels, size: tuple[int, int], resampling: Image.Resampling) -> Pixels:
    if pixels.shape[:2] == size:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), resampling))


def _write(folder: Path, name: str, pixels: Pixels) -> str:
    # Level 1 compresses label maps to within a few per cent of level 6, at a fraction of the time.
    Image.fromarray(pixels).save(folder / name, compress_level=1)
    return name


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    command.run("prepare", main)
