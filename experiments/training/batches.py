"""How the batch of a recipe is cut: over devices, and on each of them into micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from experiments.config.recipes import HardestSettings, LovaszSettings, OhemSettings, Recipe
from experiments.running import stopping
from experiments.running.devices import Devices
from experiments.running.errors import StageError
from experiments.samples.stream import TrainingSamples


@dataclass(frozen=True)
class Cut:
    """The batch, and its parts."""

    batch: int
    """Images of a step."""
    devices: int
    part: int
    """Images that a device takes at once."""

    @property
    def parts(self) -> int:
        """Parts that a device takes one after the other, until its share of the batch is complete."""
        return self.batch // (self.devices * self.part)

    @property
    def together(self) -> int:
        """Images of one forward pass over all devices, which batch norm sees."""
        return self.devices * self.part

    def described(self) -> str:
        """As ``16 images: 2 devices x 4 parts of 2``."""
        if self.part == self.batch:
            return f"{self.batch} images at once"
        return f"{self.batch} images: {self.devices} x {self.parts} x {self.part} (devices, parts, images)"


def cut(recipe: Recipe, devices: int, micro_batch: int | None) -> Cut:
    """Cuts a recipe's batch.

    Args:
        recipe: whose batch and loss it is.
        devices: that share the batch.
        micro_batch: images that a device takes at once; ``None``, or more than its share, takes the share.

    Raises:
        StageError: the batch does not divide so, or the recipe's loss compares pixels across a cut.
    """
    share, rest = divmod(recipe.batch_size, devices)
    if rest:
        raise StageError(
            f"batch_size {recipe.batch_size} does not divide over {devices} devices; change one of them"
        )
    part = share if micro_batch is None else min(micro_batch, share)
    if share % part:
        raise StageError(
            f"a device's {share} of the {recipe.batch_size} images of a batch cannot be made of parts of "
            f"micro_batch {micro_batch}; take a divisor of {share}"
        )
    made = Cut(recipe.batch_size, devices, part)
    loss = recipe.loss
    if isinstance(loss, OhemSettings | HardestSettings | LovaszSettings) and part < recipe.batch_size:
        if loss.group is None:
            raise StageError(
                f"the loss '{loss.name}' compares the pixels of the whole batch, which is cut into parts of "
                f"{part} images; give the loss a group, or take fewer devices and no micro_batch"
            )
        if part % loss.group:
            raise StageError(
                f"the loss '{loss.name}' compares the pixels of {loss.group} images, which parts of {part} "
                f"images cut; take a multiple of {loss.group} for each device's micro_batch, or change the "
                "loss's group"
            )
    return made


def part_batches(
    samples: TrainingSamples,
    recipe: Recipe,
    made: Cut,
    devices: Devices,
    first_step: int,
    loader_workers: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This process's parts of every batch from ``first_step`` on, in order: images, labels, positions.

    A device takes consecutive images of the batch, so that a group of images that belong together is the
    same whatever the number of devices.
    """
    share = made.part * made.parts
    positions = (
        step * made.batch + devices.rank * share + i
        for step in range(first_step, recipe.steps)
        for i in range(share)
    )
    loader = DataLoader(
        samples,
        batch_size=made.part,
        sampler=positions,
        num_workers=loader_workers,
        worker_init_fn=stopping.leave_to_others,
        pin_memory=devices.on_gpu,
        # A generator of its own: the loader draws a base seed, which must not move the global one.
        generator=torch.Generator(),
    )
    return iter(loader)
