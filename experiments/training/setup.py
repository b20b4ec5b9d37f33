"""The model and all that goes with it, as they are before the first step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn, optim
from torch.nn.modules.batchnorm import _BatchNorm

import models
from experiments.config.recipes import MaskSettings, Recipe
from experiments.config.run import Run
from experiments.running.devices import Devices
from experiments.running.errors import StageError
from experiments.samples.prepared import PreparedDataset
from experiments.training.batches import Cut, cut
from experiments.training.losses import create_auxiliary_criterion, create_criterion
from experiments.training.optimizers import Group, create_optimizer, parameter_groups
from experiments.training.parallel import seed_everything, wrap
from experiments.training.recomputing import recompute_blocks
from models import Segmenter


@dataclass
class Setup:
    """What a step is taken with."""

    recipe: Recipe
    precision: str
    channels_last: bool
    devices: Devices
    cut: Cut
    model: Segmenter
    parallel: nn.Module
    """The model as it is called: on one device itself, else with gradients averaged over all."""
    groups: list[Group]
    optimizer: optim.Optimizer
    scaler: torch.amp.GradScaler

    def warnings(self) -> list[str]:
        """What makes this training another one than that of the whole batch on one device."""
        if self.cut.parts == 1 or not any(isinstance(m, _BatchNorm) for m in self.model.modules()):
            return []
        return [
            f"batch norm takes its statistics of {self.cut.together} images at a time, not of the batch's "
            f"{self.cut.batch}; more devices, or a larger micro_batch, bring them closer"
        ]


def set_up(run: Run, data: PreparedDataset, seed: int, devices: Devices, pretrained: bool | str) -> Setup:
    """Builds the model with the seed, and what trains it.

    Args:
        run: whose training it is.
        data: that it is trained on.
        seed: of the training.
        devices: that share it.
        pretrained: where the backbone's ImageNet weights come from.

    Raises:
        StageError: the run does not fit the devices, or its loss not the model.
    """
    recipe, training = run.recipe, run.profile.training
    made = cut(recipe, devices.world_size, training.micro_batch)
    if not devices.supports(training.precision):
        raise StageError(
            f"precision is {training.precision}, which {devices.description} does not have; set "
            f"profiles.{run.profile_name}.training.precision to float16 or float32"
        )
    seed_everything(seed)
    try:
        model = models.create(run.experiment.model, len(data.classes), pretrained=pretrained, **run.options)
        groups = parameter_groups(model, recipe)
        if training.recompute:
            recompute_blocks(model)
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        raise StageError(str(error)) from None
    _set_losses(model, run, data)
    if training.channels_last:
        model.to(memory_format=torch.channels_last)
    if training.compile:
        model.compile()
    parallel = wrap(model, devices).train()
    scaler = torch.amp.GradScaler(devices.device.type, enabled=training.precision == "float16")
    return Setup(
        recipe=recipe,
        precision=training.precision,
        channels_last=training.channels_last,
        devices=devices,
        cut=made,
        model=model,
        parallel=parallel,
        groups=groups,
        optimizer=create_optimizer(groups, recipe),
        scaler=scaler,
    )


def _set_losses(model: Segmenter, run: Run, data: PreparedDataset) -> None:
    """Gives the model the recipe's losses; a decoder of masks has its own."""
    loss = run.recipe.loss
    if isinstance(loss, MaskSettings) != model.predicts_masks:
        found, expected = (
            ("masks", "the loss 'masks'") if model.predicts_masks else ("class scores", "another")
        )
        raise StageError(
            f"the loss '{loss.name}' of recipe '{run.experiment.recipe}' does not fit the model, which "
            f"predicts {found}; expected {expected}"
        )
    if not isinstance(loss, MaskSettings):
        model.criterion = create_criterion(loss, data.train.class_pixels)
        model.auxiliary_criterion = create_auxiliary_criterion(loss)
