"""One training over several processes, so that it is the training of one process."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_gather, all_reduce
from torch.nn.parallel import DistributedDataParallel

from experiments.running import stopping
from experiments.running.devices import Devices
from models.segmenter import Prediction


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch, and asks for deterministic kernels.

    Some CUDA kernels that these models need, the gradient of ``grid_sample`` among them, have no
    deterministic form; there torch warns instead of failing.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False


def wrap(model: nn.Module, devices: Devices) -> nn.Module:
    """The model on this process's device, with gradients averaged over all processes.

    Batch norm sees the whole batch, on every kind of device: so it does not matter how many processes
    share it.
    """
    model.to(devices.device)
    if devices.world_size == 1:
        return model
    if devices.on_gpu:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.__class__ = _SynchronisedBatchNorm
    # Ablations leave parameters without a gradient, such as a branch whose loss is off.
    return DistributedDataParallel(model, find_unused_parameters=True)


def whole_batch(prediction: Prediction, labels: Tensor, devices: Devices) -> tuple[Prediction, Tensor]:
    """What all processes predicted, and their labels, in the order of the batch.

    A loss is a mean over the labelled pixels of a batch, or over its hardest ones, and the shares of the
    batch have not equally many. So every process takes the loss of the whole batch: the gradients are then
    those of one process.
    """
    if devices.world_size == 1:
        return prediction, labels

    def gather(share: Tensor) -> Tensor:
        # Process r has the samples r, r + W, r + 2 W ... of the batch.
        return torch.stack(all_gather(share.contiguous()), 1).flatten(0, 1)

    with torch.no_grad():
        labels = gather(labels)
    auxiliary, maps = (
        {name: gather(value) for name, value in values.items()}
        for values in (prediction.auxiliary, prediction.maps)
    )
    return Prediction(gather(prediction.logits), auxiliary, maps), labels


def any_stop_requested(devices: Devices) -> bool:
    """Whether any of the processes was asked to stop: all of them have to stop at the same step."""
    requested = stopping.requested()
    if devices.world_size == 1:
        return requested
    flag = torch.tensor(float(requested), device=devices.device)
    distributed.all_reduce(flag)
    return bool(flag.item())


class _SynchronisedBatchNorm(nn.BatchNorm2d):
    """Batch norm over the batches of all processes; torch's own knows GPUs only."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims = [0, *range(2, x.ndim)]
        count = x.new_tensor([x.numel() / x.shape[1]])
        total = all_reduce(torch.cat((x.sum(dims), x.square().sum(dims), count)))
        sums, squares, count = total.split((x.shape[1], x.shape[1], 1))
        mean = sums / count
        variance = squares / count - mean.square()
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
                self.running_mean.lerp_(mean.to(self.running_mean), share)
                unbiased = variance * count / (count - 1).clamp(min=1)
                self.running_var.lerp_(unbiased.to(self.running_var), share)
        shape = (1, -1, *[1] * (x.ndim - 2))
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        normalised: Tensor = (x - mean.view(shape)) * scale.view(shape)
        return normalised + self.bias.view(shape) if self.affine else normalised
