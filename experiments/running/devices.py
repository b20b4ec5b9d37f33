"""Where a stage computes: one device, or one process a device under ``torchrun``.

Plain torch, no framework around it: a stage starts without another import, and everything that
knows of several devices stands here and in ``training/parallel.py``.
``torchrun --nproc-per-node 4 -m experiments.train <key>`` starts four processes whose ``Devices``
differ in their rank alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
from torch import distributed

from experiments.running.machine import cpu_name

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


T = TypeVar("T")


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
    def on_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def description(self) -> str:
        """What a table says of the hardware."""
        if self.on_gpu:
            name = torch.cuda.get_device_name(self.device)
        else:
            threads = torch.get_num_threads()
            name = f"{cpu_name()}, {threads} thread{'' if threads == 1 else 's'}"
        return name if self.world_size == 1 else f"{self.world_size} x {name}"

    def autocast(self, precision: str) -> AbstractContextManager[None]:
        """Mixed precision; does nothing for ``float32``."""
        dtype = _DTYPES[precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def supports(self, precision: str) -> bool:
        """Whether the device computes in this precision itself, and does not emulate it."""
        if precision == "bfloat16" and self.on_gpu:
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return True

    def synchronize(self) -> None:
        """Waits until the device has done all its work."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def count() -> int:
    """GPUs of this machine."""
    return torch.cuda.device_count()


def agreed(value: T | None) -> T | None:
    """The first process's value, in every process of a run under ``torchrun``.

    Args:
        value: of any type that can be pickled; only the first process's counts.
    """
    with open_devices():
        shared = [value]
        distributed.broadcast_object_list(shared)
    return shared[0]


@contextmanager
def open_devices(gpu: int | None = None) -> Iterator[Devices]:
    """Takes a GPU where there is one, and joins the other processes under ``torchrun``.

    Args:
        gpu: number of the one to take, where the process is one of several workers.
    """
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) if gpu is None else gpu)
        torch.cuda.set_device(device)
    if world_size > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    yield Devices(device, rank, world_size)
