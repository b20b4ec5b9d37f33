"""One training over several processes, so that it is the training of one process."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.parallel import DistributedDataParallel

from experiments.running import stopping
from experiments.running.devices import Devices


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch, and asks for deterministic kernels.

    Some CUDA kernels that these models need, the gradient of ``grid_sample`` among them, have no
    deterministic form; there torch warns instead of failing. New tensors are not filled before they are
    written, which deterministic mode does for code that reads them first: it takes up to a tenth of a step,
    a sixth of CRF-RNN's, and that runs end in the same bytes is tested.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
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
        shape = (1, -1, *[1] * (x.ndim - 2))
        total = all_reduce(torch.cat((x.sum(dims), x.new_tensor([x.numel() / x.shape[1]]))))
        count = total[-1:]
        mean = total[:-1] / count
        deviation = x - mean.view(shape)
        # Not the mean of squares less the squared mean, which few or distant values leave no digits of.
        variance = all_reduce(deviation.square().sum(dims)) / count
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked += 1
                share = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
                self.running_mean.lerp_(mean.to(self.running_mean), share)
                unbiased = variance * count / (count - 1).clamp(min=1)
                self.running_var.lerp_(unbiased.to(self.running_var), share)
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        normalised: Tensor = deviation * scale.view(shape)
        return normalised + self.bias.view(shape) if self.affine else normalised
