"""The training stream on street photographs' size beside a plain PIL and NumPy pipeline, on one core.

1024 x 2048 pairs of PNG with the Cityscapes recipe of SPGNet, decoding every time and reading what was
decoded and kept on disk. At least twice the images a second are wanted.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from side_by_side import time_beside

from experiments.config.params import load_params
from experiments.datasets.scenes import draw_scene
from experiments.running import paths
from experiments.samples.network_input import IMAGENET_MEAN, IMAGENET_STD
from experiments.samples.prepared import Sample
from experiments.samples.stream import TrainingSamples

CROP = 769
SCALES = (0.5, 2.0)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Four generated pairs with the noise of a photograph, which is what PNG takes long to decode."""
    folder = tmp_path_factory.mktemp("pairs")
    found = []
    for i in range(4):
        image, labels = draw_scene(0, i, 1024, 2048)
        noise = np.random.default_rng(i).integers(-6, 7, image.shape)
        sample = Sample(str(i), folder / f"{i}.png", folder / f"{i}-labels.png")
        Image.fromarray(np.clip(image + noise, 0, 255).astype(np.uint8)).save(sample.image)
        Image.fromarray(labels).save(sample.labels)
        found.append(sample)
    return found


def plain_pipeline(sample: Sample, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Decode, resize, mirror, pad, crop and normalise, as one writes it down."""
    scale = random.uniform(*SCALES)
    size = round(2048 * scale), round(1024 * scale)
    pixels = np.asarray(Image.open(sample.image).convert("RGB").resize(size, Image.Resampling.BILINEAR))
    classes = np.asarray(Image.open(sample.labels).resize(size, Image.Resampling.NEAREST))
    if random.random() < 0.5:
        pixels, classes = pixels[:, ::-1], classes[:, ::-1]
    missing = [(0, max(0, CROP - side)) for side in classes.shape]
    pixels = np.pad(pixels, (*missing, (0, 0)))
    classes = np.pad(classes, missing, constant_values=255)
    top, left = (random.integers(side - CROP + 1) for side in classes.shape)
    cropped = pixels[top : top + CROP, left : left + CROP].astype(np.float32) / 255
    mean, std = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    normalised = ((cropped - mean) / std).transpose(2, 0, 1)
    return np.ascontiguousarray(normalised), classes[top : top + CROP, left : left + CROP]


@pytest.mark.parametrize("kept", [False, True], ids=["decoding", "decoded"])
def test_training_stream(
    benchmark: BenchmarkFixture,
    samples: list[Sample],
    kept: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paths, "DECODED", tmp_path)
    recipe = load_params(ROOT / "params.yaml").run("spgnet-r50").paper_recipe
    assert recipe.crop == (CROP, CROP)
    data: Any = SimpleNamespace(train=SimpleNamespace(samples=samples, digest="benchmark"))
    stream = TrainingSamples(data, recipe, 0, kept)
    position, random = count(), np.random.default_rng(0)
    torch.set_num_threads(1)
    for _ in samples:
        stream[next(position)]
    image, _, _ = time_beside(
        benchmark,
        lambda: stream[next(position)],
        lambda: plain_pipeline(samples[next(position) % len(samples)], random),
        than="PIL and NumPy",
        rounds=20,
    )
    assert image.shape == (3, CROP, CROP)
