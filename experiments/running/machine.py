"""What machine this is, asked without torch, which takes seconds to import."""

from __future__ import annotations

import glob
import os
import platform
from pathlib import Path


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def description() -> str:
    """This machine, in words: what a timing is of."""
    gpus = sorted(glob.glob("/proc/driver/nvidia/gpus/*/information"))
    if gpus and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        text = "".join(Path(gpu).read_text(errors="replace") for gpu in gpus)
        return " + ".join(
            line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("Model")
        )
    return f"{cpu_name()}, {cores()} cores"


def cpu_name() -> str:
    """The processor, as the system calls it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return next(
            line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def may_have_gpu() -> bool:
    """Whether it is worth asking torch for GPUs."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    return any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg"))
