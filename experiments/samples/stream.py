"""Samples as tensors: the training stream by position, and the validation images in order."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset
from torchvision import tv_tensors

from experiments.config.recipes import Recipe
from experiments.datasets.base import read_image, read_labels
from experiments.samples.augment import Augment
from experiments.samples.network_input import NetworkInput
from experiments.samples.prepared import PreparedDataset, Sample


class TrainingSamples(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """A training run's endless stream of samples, by position.

    Position p holds image ``order(p // n)[p % n]``, with n images and a new order every epoch,
    augmented by a generator that is seeded with (seed, p). So the stream is a function of the seed
    alone: the number of loader processes, of devices and of restarts does not change it.

    Args:
        data: whose training split is drawn from.
        recipe: of the training.
        seed: of the training.
        cache_mb: MiB of decoded pairs that each loading process keeps. The first ones stay: every epoch
            takes each pair once, so that none is worth more than another.
    """

    def __init__(self, data: PreparedDataset, recipe: Recipe, seed: int, cache_mb: int = 0):
        self.samples = data.train.samples
        self._decoded: dict[str, tuple[tv_tensors.Image, tv_tensors.Mask]] = {}
        self._room = cache_mb * 2**20
        self.augment = Augment(recipe.augmentation, recipe.crop, NetworkInput.of(data, recipe))
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
        image, labels = self._pair(self.sample_at(position))
        # torchvision's transforms draw from the global generator, which also drives dropout when
        # the loader runs in the training process.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(self.seed, position, 2))
            image, labels = self.augment(image, labels)
        return image, labels.long(), position

    def _pair(self, sample: Sample) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
        """The decoded pair, which nothing may change in place: it may be kept."""
        pair = self._decoded.get(sample.name)
        if pair is None:
            pair = read_pair(sample)
            size = sum(tensor.nbytes for tensor in pair)
            if size <= self._room:
                self._room -= size
                self._decoded[sample.name] = pair
        return pair


class EvaluationSamples(Dataset[tuple[torch.Tensor, torch.Tensor, str]]):
    """The validation images, normalised as the network takes them, and their labels.

    Args:
        data: whose validation split is read.
        network_input: how the network takes images.
    """

    def __init__(self, data: PreparedDataset, network_input: NetworkInput):
        self.network_input = network_input
        self.samples = data.val.samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, str]:
        """Normalised image (3, h, w), labels (H, W) uint8 at their own size, and the sample's name."""
        sample = self.samples[index]
        image, labels = read_pair(sample)
        return self.network_input.normalise(image), labels, sample.name


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
