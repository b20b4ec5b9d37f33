"""Generated pictures in the place of a data set that is not here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from experiments.config.entries import plugged_in_datasets
from experiments.config.run import Run
from experiments.datasets.base import IGNORE_LABEL
from experiments.datasets.scenes import draw_scene
from experiments.samples.prepared import PreparedDataset, PreparedSplit, Sample

TYPICAL_SIZES = {
    "cityscapes": (1024, 2048),
    "ade20k": (512, 683),
    "cocostuff10k": (480, 640),
    "camvid": (360, 480),
}
"""Height and width of the pictures of data sets, or of most of them."""


def generated_data(run: Run, folder: Path, count: int) -> PreparedDataset:
    """Street scenes in the size and with the number of classes of a run's data set.

    Args:
        run: whose data set it is.
        folder: to write the pictures to.
        count: of the pictures.
    """
    classes = plugged_in_datasets().classes(run.dataset, run.profile.datasets.get(run.dataset))
    options = run.profile.datasets.get(run.dataset, {})
    size = (options["height"], options["width"]) if "height" in options else None
    height, width = run.profile.image_size or size or TYPICAL_SIZES.get(run.dataset, (512, 1024))
    samples, pixels = [], np.zeros(IGNORE_LABEL + 1, np.int64)
    sums = np.zeros((2, 3))
    for index in range(count):
        image, labels = draw_scene(0, index, height, width)
        # Every class of the scenes becomes one of the data set's, in turn over the pictures.
        shifted = (labels.astype(np.int64) + 7 * index) % len(classes)
        labels = np.where(labels == IGNORE_LABEL, IGNORE_LABEL, shifted).astype(np.uint8)
        pixels += np.bincount(labels.ravel(), minlength=len(pixels))
        scaled = image.reshape(-1, 3) / 255
        sums += np.stack((scaled.mean(0), np.square(scaled).mean(0)))
        sample = Sample(f"{index:03d}", folder / f"{index:03d}.png", folder / f"{index:03d}-labels.png")
        Image.fromarray(image).save(sample.image)
        Image.fromarray(labels).save(sample.labels)
        samples.append(sample)
    mean, squares = sums / count
    red, green, blue = (float(value) for value in mean)
    deviations = np.sqrt(squares - np.square(mean))
    split = PreparedSplit("generated", "generated", pixels[: len(classes)].tolist(), samples)
    return PreparedDataset(
        name=run.dataset,
        classes=tuple(classes),
        mean=(red, green, blue),
        std=(float(deviations[0]), float(deviations[1]), float(deviations[2])),
        train=split,
        val=split,
        _folder=folder,
        _manifest={},
    )
