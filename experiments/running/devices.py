"""Where a stage computes: one device, or one process a device under ``torchrun``.

Plain torch, no framework around it: a stage starts without another import, and everything that
knows of several devices stands here. ``torchrun --nproc-per-node 4 -m experiments.train <key>``
starts four processes whose ``Devices`` differ in their rank alone.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Devices:
    """This process's device, and its place among all processes of the run."""

    def __init__(self, device: torch.device, rank: int = 0, world_size: int = 1):
        self.device = device
        self.rank = rank
        self.world_size = world_size

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    @property
    def description(self) -> str:
        """What a table says of the hardware."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        else:
            name = f"{_cpu_name()}, {torch.get_num_threads()} threads"
        return name if self.world_size == 1 else f"{self.world_size} x {name}"

    def wrap(self, model: nn.Module, sync_batch_norm: bool) -> nn.Module:
        """The model on this device, with gradients averaged over all processes."""
        model.to(self.device)
        if self.world_size == 1:
            return model
        if sync_batch_norm and self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # Ablations leave parameters without a gradient, such as a branch whose loss is off.
        return DistributedDataParallel(model, find_unused_parameters=True)

    def autocast(self, precision: str) -> AbstractContextManager[None]:
        """Mixed precision; does nothing for ``float32``."""
        dtype = _DTYPES[precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.world_size > 1:
            distributed.all_reduce(values)
        return values

    def synchronize(self) -> None:
        """Waits until the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def open_devices() -> Iterator[Devices]:
    """Takes a GPU where there is one, and joins the other processes under ``torchrun``."""
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if world_size > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Devices(device, rank, world_size)
    finally:
        if world_size > 1:
            distributed.destroy_process_group()


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


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()
