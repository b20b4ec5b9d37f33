"""Samples as tensors: the training stream by position, and the validation images in order."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from experiments.config.recipes import Recipe
from experiments.samples.augment import Augment
from experiments.samples.decoded import DecodedPairs, read_pair
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
        keep_decoded: whether decoded pairs are kept on disk.
    """

    def __init__(self, data: PreparedDataset, recipe: Recipe, seed: int, keep_decoded: bool = False):
        self.samples = data.train.samples
        self.pairs = DecodedPairs(data.train, keep_decoded)
        self.augment = Augment(recipe.augmentation, recipe.crop, NetworkInput.of(data, recipe))
        self.seed = seed
        self._order: tuple[int, list[int]] = (-1, [])

    def sample_at(self, position: int) -> Sample:
        """The sample at a position, not augmented."""
        return self.samples[self._index_at(position)]

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        """Normalised image (3, h, w), labels (h, w) int64, and the position."""
        image, labels = self.pairs.read(self._index_at(position))
        # torchvision's transforms draw from the global generator, which also drives dropout when
        # the loader runs in the training process.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(self.seed, position, 2))
            image, labels = self.augment(image, labels)
        return image, labels.long(), position

    def _index_at(self, position: int) -> int:
        epoch, place = divmod(position, len(self.samples))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_mix(self.seed, epoch, 1))
            self._order = epoch, torch.randperm(len(self.samples), generator=generator).tolist()
        return self._order[1][place]


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


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers, far apart for neighbouring ones."""
    state = 0
    for number in numbers:  # splitmix64, chained
        state = (state + number + 0x9E3779B97F4A7C15) & (2**64 - 1)
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        state ^= state >> 31
    return state >> 1
