"""One step: the gradient of the whole batch, in as many parts as the devices need."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import cast

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from experiments.running.errors import StageError
from experiments.training.setup import Setup
from models import Prediction, Segmenter
from models.segmenter import LabelCounts, PredictionError


def take_step(setup: Setup, parts: Sequence[tuple[Tensor, Tensor]], rate: float) -> dict[str, Tensor]:
    """Adds up the gradients of all parts on all devices, and moves the weights.

    Args:
        setup: model, optimizer and devices.
        parts: this device's images (n, 3, h, w) and labels (n, h, w).
        rate: of this step, before the groups' factors.

    Returns:
        ``loss`` and its terms, scalars on the device: those of the whole batch, on every device.

    Raises:
        StageError: what the model predicts is not what a model promises.
    """
    optimizer, scaler = setup.optimizer, setup.scaler
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    optimizer.zero_grad(set_to_none=True)
    terms = add_gradients(setup, parts)
    if setup.recipe.clip_gradient is not None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(setup.model.parameters(), setup.recipe.clip_gradient)
    scaler.step(optimizer)
    scaler.update()
    return terms


def add_gradients(setup: Setup, parts: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """The first half of ``take_step``: leaves the batch's gradient with the parameters."""
    devices, parallel = setup.devices, setup.parallel
    whole = _counts_of_the_batch(setup, parts)
    memory_format = torch.channels_last if setup.channels_last else torch.contiguous_format
    summed: dict[str, Tensor] = {}
    for number, (images, labels) in enumerate(parts, 1):
        # Gradients travel between devices once, with those of the last part.
        with _apart(parallel) if number < len(parts) else nullcontext():
            with devices.autocast(setup.precision):
                images = images.to(devices.device, non_blocking=True, memory_format=memory_format)
                prediction = parallel(images)
            labels = labels.to(devices.device, non_blocking=True)
            terms = _loss(setup.model, prediction, images, labels, whole)
            total = torch.stack(list(terms.values())).sum()
            # Every part's loss is a summand of the batch's, and torch takes the mean over the devices.
            setup.scaler.scale(total * devices.world_size).backward()
        for name, term in {"loss": total, **terms}.items():
            summed[name] = summed.get(name, 0) + term.detach()
    if devices.world_size > 1:
        values = torch.stack(list(summed.values()))
        distributed.all_reduce(values)
        summed = dict(zip(summed, values.unbind(), strict=True))
    return summed


def _loss(
    model: Segmenter, prediction: Prediction, images: Tensor, labels: Tensor, whole: LabelCounts
) -> dict[str, Tensor]:
    try:
        model.check_prediction(prediction, images)
        return model.loss(prediction, labels, whole)
    except PredictionError as error:
        raise StageError(f"{type(model).__name__}: {error}") from None


def _apart(parallel: nn.Module) -> AbstractContextManager[None]:
    """Keeps gradients on their device."""
    if isinstance(parallel, DistributedDataParallel):
        return cast(AbstractContextManager[None], parallel.no_sync())
    return nullcontext()


def _counts_of_the_batch(setup: Setup, parts: Sequence[tuple[Tensor, Tensor]]) -> LabelCounts:
    counts = [LabelCounts.of(labels, setup.model.num_classes).flat() for _, labels in parts]
    total = torch.stack(counts).sum(dim=0).to(setup.devices.device)
    if setup.devices.world_size > 1:
        distributed.all_reduce(total)
    return LabelCounts.from_flat(total)
