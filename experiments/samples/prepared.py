"""Prepared data: what ``prepare`` wrote, as the other stages read it.

``data/prepared/manifest.json`` lists the data sets with a digest of each; the manifest of a data
set lists its samples with their checksums.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from experiments.config.recipes import Recipe
from experiments.datasets.base import DataError, LabelClass, Split, read_image, read_labels
from experiments.samples.augment import Augment, NetworkInput

PREPARED = Path("data/prepared")


@dataclass(frozen=True)
class Sample:
    """A checked pair: an RGB image, and labels as one channel of class indices."""

    name: str
    image: Path
    labels: Path


# Of ImageNet's images, red, green and blue: what timm's weights were trained with.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PreparedDataset:
    """A data set that ``prepare`` has checked."""

    name: str
    digest: str
    """SHA-256 of the manifest: two data sets with the same digest hold the same pixels."""
    classes: tuple[LabelClass, ...]
    mean: tuple[float, float, float]
    """Of the training images' channels, in [0, 1]."""
    std: tuple[float, float, float]
    class_pixels: dict[Split, list[int]]
    samples: dict[Split, list[Sample]]

    @classmethod
    def load(cls, name: str) -> PreparedDataset:
        """Reads a manifest.

        Raises:
            DataError: ``prepare`` has not prepared this data set.
        """
        index_file = PREPARED / "manifest.json"
        try:
            digest = json.loads(index_file.read_text())[name]
            manifest = json.loads((PREPARED / name / "manifest.json").read_text())
        except (FileNotFoundError, KeyError):
            raise DataError(
                f"{index_file}: data set '{name}' is not prepared; run 'python -m experiments.prepare' first"
            ) from None
        folder = PREPARED / name
        splits = manifest["splits"]
        return cls(
            name=name,
            digest=digest,
            classes=tuple(LabelClass(c["name"], tuple(c["colour"])) for c in manifest["classes"]),
            mean=tuple(manifest["mean"]),
            std=tuple(manifest["std"]),
            class_pixels={split: splits[split]["class_pixels"] for split in splits},
            samples={
                split: [
                    # An image that needed no change stays where the data set keeps it.
                    Sample(
                        s["name"],
                        Path(s["source"]) if "source" in s else folder / s["image"],
                        folder / s["labels"],
                    )
                    for s in splits[split]["samples"]
                ]
                for split in splits
            },
        )

    def network_input(self, recipe: Recipe) -> NetworkInput:
        """How a network that is trained by the recipe sees this data set's images.

        ImageNet weights get images as they were trained on; without them, the training images have
        zero mean and unit variance.
        """
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if recipe.pretrained else (self.mean, self.std)
        return NetworkInput(mean, std, recipe.subsampling, recipe.short_side)


class TrainingSamples(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """A training run's endless stream of samples, by position.

    Position p holds image ``order(p // n)[p % n]``, with n images and a new order every epoch,
    augmented by a generator that is seeded with (seed, p). So the stream is a function of the seed
    alone: the number of loader processes, of devices and of restarts does not change it.
    """

    def __init__(self, data: PreparedDataset, augment: Augment, seed: int):
        self.samples = data.samples["train"]
        self.augment = augment
        self.seed = seed
        self._order: tuple[int, list[int]] = (-1, [])

    def sample_at(self, position: int) -> Sample:
        """The sample at a position, not augmented."""
        epoch, place = divmod(position, len(self.samples))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_mix(self.seed, epoch, 1))
            self._order = epoch, torch.randperm(len(self.samples), generator=generator).tolist()
        return self.samples[self._order[1][place]]

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Normalised image (3, h, w), labels (h, w) int64, and the position."""
        image, labels = read_pair(self.sample_at(position))
        # torchvision's transforms draw from the global generator, which also drives dropout when
        # the loader runs in the training process.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(self.seed, position, 2))
            image, labels = self.augment(image, labels)
        return image, labels.long(), position


class EvaluationSamples(Dataset[tuple[torch.Tensor, torch.Tensor, str]]):
    """The validation images as the network sees them, with labels at their own size."""

    def __init__(self, data: PreparedDataset, recipe: Recipe):
        self.view = data.network_input(recipe)
        self.samples = data.samples["val"]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        """Normalised image (3, h, w), labels (H, W) uint8, and the sample's name."""
        sample = self.samples[index]
        image, labels = read_pair(sample)
        return self.view.whole(image), labels, sample.name


def read_pair(sample: Sample) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Image (3, H, W) and labels (H, W), both uint8.

    Raises:
        DataError: a file has gone or does not decode since it was prepared.
    """
    image = torch.from_numpy(read_image(sample.image).copy()).permute(2, 0, 1)
    labels = torch.from_numpy(read_labels(sample.labels).copy())
    return tv_tensors.Image(image), tv_tensors.Mask(labels)


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers, far apart for neighbouring ones."""
    state = 0
    for number in numbers:  # splitmix64, chained
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1
