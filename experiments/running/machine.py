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


def started(process: int) -> str | None:
    """When a process of this machine started, as the system writes it; ``None`` if there is none."""
    try:
        # The second field is a name in parentheses, which may hold anything.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        pass
    else:
        return None if fields[0] == "Z" else fields[19]
    if Path("/proc/self").exists():
        return None
    try:  # where there is no /proc
        os.kill(process, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"


def description() -> str:
    """This machine, in words: what a timing is of."""
    gpus = sorted(glob.glob("/proc/driver/nvidia/gpus/*/information"))
    if gpus and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
        text = "".join(Path(gpu).read_text(errors="replace") for gpu in gpus)
        return " + ".join(
            line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("Model")
        )
    return f"{cpu_name()}, {cores()} cores"


def cpu_name(information: Path = Path("/proc/cpuinfo")) -> str:
    """The processor, as the system calls it.

    Virtual machines often leave the number out of the name. Family and model then tell one processor from
    the next, whose times, and last digits of sums, are others.
    """
    try:
        lines = information.read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name")
    if name is None:
        return platform.processor() or platform.machine()
    if any(letter.isdigit() for letter in name) or not {"cpu family", "model"} <= set(fields):
        return name
    return f"{name} (family {fields['cpu family']}, model {fields['model']})"


def may_have_gpu() -> bool:
    """Whether it is worth asking torch for GPUs."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    return any(os.path.exists(path) for path in ("/dev/nvidiactl", "/dev/dxg"))
