"""Times inference of every experiment on the device at hand.

Writes ``results/speed.csv``. The network is the paper's own (only the input size may be the
profile's), in evaluation mode with random weights, which cost the same as trained ones.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

import models
from experiments import datasets
from experiments.config import params as config
from experiments.config.params import Params, Speed
from experiments.running import command, memo, sources, storage
from experiments.running.command import StageError
from experiments.running.devices import Devices, open_devices, seed_everything
from experiments.running.provenance import provenance

SPEED = Path("results/speed.csv")
MEMO = Path("results/speed")


def main() -> None:
    command.parser("speed", __doc__).parse_args()
    params = config.load()
    memo.forget_others(MEMO, set(params.experiments))
    rows: list[dict[str, Any]] = []
    with open_devices() as devices:
        for key in tqdm(params.experiments, "speed", unit="experiment", mininterval=1):
            configuration = _configuration(params, key, devices)
            try:
                rows += memo.recall(
                    MEMO / f"{key}.json", configuration, partial(_time_experiment, params, key, devices)
                )
            except ValueError as error:
                raise StageError(f"experiment '{key}': {error}") from None
    storage.write_csv(SPEED, pd.DataFrame(rows))


def _configuration(params: Params, key: str, devices: Devices) -> dict[str, Any]:
    """All that the timings of an experiment depend on, the machine's mood apart."""
    experiment = params.experiments[key]
    return {
        "model": experiment.model,
        "options": experiment.options,
        "num_classes": len(datasets.dataset_class(experiment.dataset).classes),
        "size": list(_size(params, key)),
        "settings": params.active.speed.model_dump(mode="json"),
        "device": devices.description,
        "torch": torch.__version__,
        "code": sources.digest([Path(__file__).resolve(), *sources.files([f"models.{experiment.model}"])]),
    }


def _size(params: Params, key: str) -> tuple[int, int]:
    return params.active.speed.size or params.recipes[params.experiments[key].recipe].input_size


def _time_experiment(params: Params, key: str, devices: Devices) -> list[dict[str, Any]]:
    """A row for each precision, mode and batch size of the profile."""
    settings, experiment = params.active.speed, params.experiments[key]
    num_classes = len(datasets.dataset_class(experiment.dataset).classes)
    height, width = _size(params, key)
    seed_everything(0)
    network = models.create(experiment.model, num_classes, **experiment.options).eval().to(devices.device)
    rows = []
    for precision, mode, batch in product(settings.precisions, settings.modes, settings.batch_sizes):
        row: dict[str, Any] = {
            "experiment": key, "device": devices.description, "precision": precision, "mode": mode,
            "batch": batch, "height": height, "width": width,
        }  # fmt: skip
        try:
            timing = time_inference(network, (batch, 3, height, width), precision, mode, settings, devices)
        except (torch.OutOfMemoryError, NotImplementedError) as error:
            # That something cannot run here is a result, with its reason.
            timing = dict.fromkeys(("latency_ms_median", "latency_ms_p95", "fps", "peak_memory_mb"))
            timing["note"] = str(error).splitlines()[0]
        about = provenance(devices)
        rows.append(
            row
            | timing
            | {
                "profile": params.profile,
                "repetitions": settings.repetitions,
                "time": about["time"],
                "commit": about["commit"],
                "torch": about["packages"]["torch"],
            }
        )
    return rows


@torch.inference_mode()
def time_inference(
    network: nn.Module,
    shape: tuple[int, int, int, int],
    precision: str,
    mode: str,
    settings: Speed,
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


if __name__ == "__main__":
    command.run("speed", main)
