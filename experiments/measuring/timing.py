"""Times a network's inference, and what the device could do at most."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import models
from experiments.config.entries import SpeedSettings
from experiments.measuring.counters import count_operators
from experiments.measuring.counting import count_parameters
from experiments.measuring.latency import describe
from experiments.running import storage
from experiments.running.devices import Devices, open_devices
from experiments.running.errors import StageError
from experiments.running.provenance import provenance
from experiments.running.work import Context

_SETTLED = 0.02
"""Warm-up ends when the medians of two windows of passes agree to this."""
_WINDOW = 5
_LARGEST_BATCH = 64
_TYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def time_network(
    context: Context,
    network: dict[str, Any],
    num_classes: int,
    size: tuple[int, int],
    kind: dict[str, Any],
    settings: SpeedSettings,
    digest: str,
    path: Path,
) -> str:
    """Times one network in one way, and writes the single timings.

    Args:
        context: of the job.
        network: ``model`` and ``options``.
        num_classes: K.
        size: height and width of the input.
        kind: ``precision``, ``mode``, ``batch`` (a number, or ``best`` for the one of the most images a
            second) and ``end_to_end``.
        settings: how often.
        digest: of all that the timings depend on.
        path: where to.

    Returns:
        What to say when it is done.

    Raises:
        StageError: the network cannot be built, or cannot take an input of this size.
    """
    height, width = size
    with open_devices(context.device) as devices, _as_fast_as_it_goes(kind["precision"]):
        torch.manual_seed(0)
        try:
            with devices.device:
                model = models.create(network["model"], num_classes, **network["options"])
            with torch.device("meta"):
                on_meta = models.create(network["model"], num_classes, **network["options"])
            counted = count_operators(on_meta.eval().requires_grad_(False), size)
        except ValueError as error:
            raise StageError(" ".join(str(error).split())) from None
        model.for_inference()  # as evaluation has it
        row: dict[str, Any] = {"device": devices.description, **kind, "height": height, "width": width}
        found: dict[str, Any] = {"seconds": [], "note": ""}
        try:
            if kind["batch"] == "best":
                row["batch"] = best_batch(model, size, kind, devices)
            found = time_inference(model, (row["batch"], 3, height, width), kind, settings, devices)
        except (RuntimeError, NotImplementedError) as error:
            # That something cannot run here is a result, with its reason.
            found["note"] = (str(error).splitlines() or [type(error).__name__])[0]
        about = provenance(devices.description)
        row |= {
            "macs": counted.macs,
            "traffic_mb": _traffic(counted.activations, count_parameters(model), kind["precision"]),
            "circumstances": _circumstances(devices),
            "time": about["time"],
            "commit": about["commit"],
            "torch": about["packages"]["torch"],
        }
    storage.write_json(path, {"digest": digest, "row": row, **found})
    seconds = found["seconds"]
    return f"{describe(seconds, row['batch'])['fps']} FPS" if seconds else f"cannot run: {found['note']}"


def measure_ceilings(
    context: Context, precisions: list[str], settings: SpeedSettings, digest: str, path: Path
) -> str:
    """Measures what the device does at most: matrix products in each precision, and copies.

    Args:
        context: of the job.
        precisions: to multiply in.
        settings: how often.
        digest: of all that the ceilings depend on.
        path: where to.

    Returns:
        What to say when it is done.
    """
    compute: dict[str, float] = {}
    with open_devices(context.device) as devices:
        side, values = (8192, 2**28) if devices.on_gpu else (1024, 2**24)
        for precision in precisions:
            with _as_fast_as_it_goes(precision):
                square = torch.randn(side, side, device=devices.device).to(_TYPES[precision])
                compute[precision] = side**3 / min(
                    repeat(partial(torch.mm, square, square), settings, devices)
                )
        source = torch.randn(values, device=devices.device)
        target = torch.empty_like(source)
        # A copy reads every byte and writes it.
        copy = 2 * source.nbytes / min(repeat(lambda: target.copy_(source), settings, devices))
    storage.write_json(path, {"digest": digest, "macs_a_second": compute, "bytes_a_second": copy})
    fastest = max(compute.values(), default=0.0)
    return f"at most {fastest / 1e9:.3g} G multiply-accumulates and {copy / 1e9:.3g} GB a second"


@torch.inference_mode()
def time_inference(
    network: nn.Module,
    shape: tuple[int, int, int, int],
    kind: dict[str, Any],
    settings: SpeedSettings,
    devices: Devices,
) -> dict[str, Any]:
    """Times single forward passes.

    Args:
        network: in evaluation mode, on the device.
        shape: of the input (N, 3, H, W).
        kind: ``precision``, ``mode`` (``eager``, ``channels-last``, ``compile`` or ``cuda-graphs``), and in
            ``end_to_end`` whether bytes are copied to the device and labels back, or scores stay there.
        settings: warm-up and repetitions.
        devices: where the network is.

    Returns:
        ``seconds`` of every pass, ``issue_ms`` (what the host needs to issue a pass, on a GPU),
        ``peak_memory_mb`` (weights and activations, on a GPU) and ``note``.

    Raises:
        NotImplementedError: the device has no such precision or mode.
    """
    if not devices.on_gpu and (kind["precision"] == "tf32" or kind["mode"] == "cuda-graphs"):
        raise NotImplementedError(f"{kind['precision']}, {kind['mode']}: needs an NVIDIA GPU")
    if devices.on_gpu:
        torch.cuda.reset_peak_memory_stats(devices.device)
    with devices.autocast("float32" if kind["precision"] == "tf32" else kind["precision"]):
        run = _pass(network, shape, kind, devices)
        warm_up(run, settings.warmup, devices)
        seconds = repeat(run, settings, devices)
        issue = _issue_seconds(run, devices) if devices.on_gpu else None
    peak = torch.cuda.max_memory_allocated(devices.device) / 2**20 if devices.on_gpu else None
    return {
        "seconds": seconds,
        "issue_ms": None if issue is None else 1000 * issue,
        "peak_memory_mb": peak,
        "note": "",
    }


def best_batch(network: nn.Module, size: tuple[int, int], kind: dict[str, Any], devices: Devices) -> int:
    """The batch of the most images a second: it doubles while that brings at least 5 %."""
    best, most = 1, 0.0
    quick = SpeedSettings(warmup=2, repetitions=3)
    batch = 1
    while batch <= _LARGEST_BATCH:
        try:
            timed = time_inference(network, (batch, 3, *size), kind, quick, devices)
        except torch.OutOfMemoryError:
            break
        speed = batch / min(timed["seconds"])
        if speed < 1.05 * most:
            break
        best, most = batch, speed
        batch *= 2
    return best


def warm_up(run: Callable[[], Any], most: int, devices: Devices) -> int:
    """Runs until the medians of two windows of passes agree, at most ``most`` times; returns how often."""
    before, passes = float("inf"), 0
    while passes < most:
        window = min(_WINDOW, most - passes)
        seconds = sorted(_seconds(run, devices) for _ in range(window))
        passes += window
        median = seconds[window // 2]
        if abs(median - before) < _SETTLED * median:
            break
        before = median
    return passes


def repeat(run: Callable[[], Any], settings: SpeedSettings, devices: Devices) -> list[float]:
    """Seconds of each of the repetitions."""
    return [_seconds(run, devices) for _ in range(settings.repetitions)]


def _seconds(run: Callable[[], Any], devices: Devices) -> float:
    """Seconds that the device needs for one pass: on a GPU between two events of its own."""
    if not devices.on_gpu:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    torch.cuda.synchronize(devices.device)
    return float(start.elapsed_time(end)) / 1000


def _issue_seconds(run: Callable[[], Any], devices: Devices) -> float:
    """Seconds until the host has issued a pass: where that is all of its time, the device waits for it."""
    issued = []
    for _ in range(_WINDOW):
        devices.synchronize()
        started = time.perf_counter()
        run()
        issued.append(time.perf_counter() - started)
    devices.synchronize()
    return min(issued)


def _pass(
    network: nn.Module, shape: tuple[int, int, int, int], kind: dict[str, Any], devices: Devices
) -> Callable[[], Tensor]:
    """One forward pass of the kind, as a function."""
    layout = torch.channels_last if kind["mode"] == "channels-last" else torch.contiguous_format
    network.to(memory_format=layout)
    images = torch.randn(shape, device=devices.device).to(memory_format=layout)
    forward: Callable[[Tensor], Any] = torch.compile(network) if kind["mode"] == "compile" else network
    if kind["mode"] == "cuda-graphs":
        forward = _replayed(network, images)
    if not kind["end_to_end"]:
        return lambda: forward(images).logits
    pixels = torch.randint(256, shape, dtype=torch.uint8)
    if devices.on_gpu:
        pixels = pixels.pin_memory()

    def from_bytes_to_labels() -> Tensor:
        images.copy_(pixels.to(devices.device, non_blocking=True)).div_(255)
        labels: Tensor = forward(images).logits.argmax(dim=1).to(torch.uint8).cpu()
        return labels

    return from_bytes_to_labels


def _replayed(network: nn.Module, images: Tensor) -> Callable[[Tensor], Any]:
    """The network on these very images as a recorded graph, which the device runs without the host."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is allocated once must not be recorded
        for _ in range(3):
            network(images)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        prediction = network(images)

    def replay(_: Tensor) -> Any:
        graph.replay()
        return prediction

    return replay


@contextmanager
def _as_fast_as_it_goes(precision: str) -> Iterator[None]:
    """No deterministic mode, which slows down resizing on a GPU; TF32 where it is what is timed alone."""
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def _traffic(activations: int, parameters: int, precision: str) -> float:
    """MiB that have to move at least for one image: weights once, each activation out and in again."""
    return _TYPES[precision].itemsize * (parameters + 2 * activations) / 2**20


def _circumstances(devices: Devices) -> str:
    """Clocks, power and other load while it ran, as far as the system tells."""
    load = f"load {os.getloadavg()[0]:.1f}"
    if not devices.on_gpu:
        return load
    query = "--query-gpu=clocks.sm,power.draw,temperature.gpu"
    try:
        asked = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader", f"--id={devices.device.index or 0}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return load
    return f"{load}, {asked.stdout.strip()}"
