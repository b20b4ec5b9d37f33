"""Times a network's inference."""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import models
from experiments.config.entries import SpeedSettings
from experiments.running import storage
from experiments.running.devices import Devices, open_devices
from experiments.running.errors import StageError
from experiments.running.provenance import provenance
from experiments.running.work import Context


def time_network(
    context: Context,
    network: dict[str, Any],
    num_classes: int,
    size: tuple[int, int],
    settings: SpeedSettings,
    digest: str,
    path: Path,
) -> str:
    """Times one network for each precision, mode and batch size, and writes the rows.

    Args:
        context: of the job.
        network: ``model`` and ``options``.
        num_classes: K.
        size: height and width of the input.
        settings: what to time, and how often.
        digest: of all that the timings depend on.
        path: where to.

    Returns:
        What to say when it is done.

    Raises:
        StageError: the network cannot be built.
    """
    height, width = size
    rows = []
    with open_devices(context.device) as devices:
        torch.manual_seed(0)
        try:
            model = models.create(network["model"], num_classes, **network["options"])
        except ValueError as error:
            raise StageError(str(error)) from None
        model.eval().to(devices.device)
        kinds = list(product(settings.precisions, settings.modes, settings.batch_sizes))
        for i, (precision, mode, batch) in enumerate(kinds):
            context.progress(i / len(kinds))
            row: dict[str, Any] = {
                "device": devices.description, "precision": precision, "mode": mode,
                "batch": batch, "height": height, "width": width,
            }  # fmt: skip
            try:
                timing = time_inference(model, (batch, 3, height, width), precision, mode, settings, devices)
            except (torch.OutOfMemoryError, NotImplementedError) as error:
                # That something cannot run here is a result, with its reason.
                timing = dict.fromkeys(("latency_ms_median", "latency_ms_p95", "fps", "peak_memory_mb"))
                timing["note"] = str(error).splitlines()[0]
            about = provenance(devices.description)
            rows.append(
                row
                | timing
                | {
                    "repetitions": settings.repetitions,
                    "time": about["time"],
                    "commit": about["commit"],
                    "torch": about["packages"]["torch"],
                }
            )
    storage.write_json(path, {"digest": digest, "rows": rows})
    return ", ".join(f"{row['fps']} FPS ({row['precision']}, {row['mode']})" for row in rows)


@torch.inference_mode()
def time_inference(
    network: nn.Module,
    shape: tuple[int, int, int, int],
    precision: str,
    mode: str,
    settings: SpeedSettings,
    devices: Devices,
) -> dict[str, Any]:
    """Latency of single forward passes, and images per second at the median latency.

    Args:
        network: in evaluation mode, on the device.
        shape: of the input (N, 3, H, W).
        precision: ``float32``, ``bfloat16`` or ``float16`` (autocast).
        mode: ``eager`` or ``compile``.
        settings: warm-up and repetitions.
        devices: where the network is.

    Returns:
        ``latency_ms_median``, ``latency_ms_p95``, ``fps``, ``peak_memory_mb`` (GPU only: weights
        and activations) and ``note``.
    """
    images = torch.randn(shape, device=devices.device)
    run = torch.compile(network) if mode == "compile" else network
    on_gpu = devices.device.type == "cuda"
    seconds = []
    with devices.autocast(precision):
        for _ in range(settings.warmup):
            run(images)
        devices.synchronize()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(devices.device)
        for _ in range(settings.repetitions):
            started = time.perf_counter()
            run(images)
            devices.synchronize()
            seconds.append(time.perf_counter() - started)
    median, p95 = np.percentile(seconds, [50, 95])
    peak = torch.cuda.max_memory_allocated(devices.device) / 2**20 if on_gpu else None
    return {
        "latency_ms_median": round(1000 * median, 3),
        "latency_ms_p95": round(1000 * p95, 3),
        "fps": round(shape[0] / median, 3),
        "peak_memory_mb": peak,
        "note": "",
    }
