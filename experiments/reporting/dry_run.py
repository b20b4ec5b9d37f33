"""What a training would be: its plan, what a few steps take, and a sheet of its samples."""

from __future__ import annotations

import gc
import io
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.config.recipes import Augmentation, Recipe
from experiments.config.run import Run
from experiments.datasets.base import DataError
from experiments.reporting.generated import generated_data
from experiments.reporting.maps import colourise
from experiments.reporting.recipes import said
from experiments.running import devices as all_devices
from experiments.running import storage
from experiments.running.devices import Devices
from experiments.samples.network_input import NetworkInput
from experiments.samples.prepared import PreparedDataset
from experiments.samples.stream import TrainingSamples
from experiments.training.batches import cut
from experiments.training.optimizers import Group
from experiments.training.schedules import learning_rate
from experiments.training.setup import Setup, set_up
from experiments.training.step import take_step

SAMPLES = 12
_CPU_IMAGES = 2
"""Images of a part that is timed on a CPU: one would leave some batch norms a single value."""


@dataclass
class Timed:
    """What some steps of one device's part of the batch took."""

    images: int
    """Of the part."""
    seconds: float
    """Of a part, forward, backward and the weights' step; the median."""
    losses: list[float]
    kept_bytes: int
    """Activations that the forward pass keeps for the backward pass."""
    peak_bytes: int | None
    """Of the device's memory; ``None`` on a CPU."""


def dry_run(run: Run, timed_steps: int) -> str:
    """Rehearses a training, and writes ``plan.json`` and ``samples.png``.

    Args:
        run: whose training it is. Its backbone starts from nothing, so that nothing is fetched.
        timed_steps: steps that are timed, after one that is not.

    Returns:
        What to print.

    Raises:
        StageError: the run does not fit the device, or its loss not the model.
    """
    threads = run.profile.training.threads
    if threads:
        torch.set_num_threads(threads)
    folder = run.paths.dry_run(run.key)
    with TemporaryDirectory() as place, all_devices.open_devices() as device:
        try:
            data, source = PreparedDataset.load(run), "prepared"
        except DataError:
            data, source = generated_data(run, Path(place), SAMPLES), "generated pictures"
        samples = TrainingSamples(data, run.recipe, seed=0)
        world = max(1, all_devices.count()) if device.on_gpu else 1
        made = cut(run.recipe, world, run.profile.training.micro_batch)
        groups, timed = measure(run, data, samples, device, made.part, timed_steps)
        # A GPU finds the part that fits it; on a CPU fewer images are timed than a training takes at once.
        part = timed.images if device.on_gpu else made.part
        plan = described(run, data, groups, timed, world, part)
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(folder / "samples.png", sheet(samples, data, run.recipe))
    plan |= {"device": device.description, "data": source}
    storage.write_json(folder / "plan.json", plan)
    return printed(run, plan, folder)


def measure(
    run: Run, data: PreparedDataset, samples: TrainingSamples, device: Devices, share: int, timed_steps: int
) -> tuple[list[Group], Timed]:
    """Times steps of the largest part of a batch that fits the device; on a CPU, of two images."""
    candidates = [part for part in range(share, 0, -1) if share % part == 0]
    if not device.on_gpu:
        candidates = [min(share, _CPU_IMAGES)]
    for part in candidates:
        try:
            return _measured(run, data, samples, device, part, timed_steps)
        except torch.cuda.OutOfMemoryError:
            if part == candidates[-1]:
                raise
        gc.collect()
        torch.cuda.empty_cache()
    raise AssertionError("a share has at least one divisor")


def _measured(
    run: Run, data: PreparedDataset, samples: TrainingSamples, device: Devices, part: int, timed_steps: int
) -> tuple[list[Group], Timed]:
    alone = Run(run.key, run.profile_name, run.profile, run.experiment, run.paper_recipe, run.settled)
    # Of the part alone: what is timed is one part, and a loss that compares images sees all there are.
    alone.recipe = run.recipe.model_copy(update={"batch_size": part})
    setup = set_up(alone, data, 0, device, pretrained=False)
    if device.on_gpu:
        torch.cuda.reset_peak_memory_stats(device.device)
    drawn = [samples[position] for position in range(part)]
    images = torch.stack([image for image, _, _ in drawn])
    labels = torch.stack([labels for _, labels, _ in drawn])
    seconds, losses, kept = [], [], 0
    for step in range(timed_steps + 1):
        rate = learning_rate(step, run.recipe)
        device.synchronize()
        started = time.perf_counter()
        if step == 0:
            with _counting_kept(setup) as count:
                terms = take_step(setup, [(images, labels)], rate)
            kept = count()
        else:
            terms = take_step(setup, [(images, labels)], rate)
        losses.append(terms["loss"].item())
        device.synchronize()
        seconds.append(time.perf_counter() - started)
    peak = torch.cuda.max_memory_allocated(device.device) if device.on_gpu else None
    # The first step also plans and allocates.
    return setup.groups, Timed(part, float(np.median(seconds[1:] or seconds)), losses, kept, peak)


@contextmanager
def _counting_kept(setup: Setup) -> Iterator[Any]:
    """Adds up what is kept for the backward pass, each memory once and weights apart."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in setup.model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in weights:
            found[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(found.values())


def described(
    run: Run, data: PreparedDataset, groups: list[Group], timed: Timed, world: int, part: int
) -> dict[str, Any]:
    """The plan as ``plan.json`` has it, with ``part`` images of a device's batch at once."""
    recipe = run.recipe
    rows = [group.described() for group in groups]
    parameters = sum(row["parameters"] for row in rows)
    states = 2 if recipe.optimizer == "adamw" else 1
    seconds = recipe.batch_size / (world * timed.images) * timed.seconds  # of a step
    points = sorted({0, *(round(share * (recipe.steps - 1)) for share in (0.25, 0.5, 0.75, 1))})
    return {
        "experiment": run.key,
        "profile": run.profile_name,
        "recipe": recipe.model_dump(mode="json"),
        "precision": run.profile.training.precision,
        "network_input": asdict(NetworkInput.of(data, recipe)),
        "parameter_groups": rows,
        "schedule": [{"step": step, "learning_rate": learning_rate(step, recipe)} for step in points],
        "batch": {
            "images": recipe.batch_size,
            "devices": world,
            "part": part,
            "parts": recipe.batch_size / (world * part),
        },
        "memory_mib": {
            "weights, gradients and optimizer": parameters * 4 * (2 + states) / 2**20,
            "activations": timed.kept_bytes * part / timed.images / 2**20,
            "peak": None if timed.peak_bytes is None else timed.peak_bytes / 2**20,
        },
        "timed": {"images": timed.images, "seconds_a_part": timed.seconds, "losses": timed.losses},
        "steps_a_second": 1 / seconds,
        "hours": recipe.steps * seconds / 3600,
    }


def printed(run: Run, plan: dict[str, Any], folder: Path) -> str:
    """The plan for people."""
    recipe, batch, memory = run.recipe, plan["batch"], plan["memory_mib"]
    lines = [
        f"{run.key} under profile {run.profile_name}: {run.backbone or run.experiment.model}, "
        f"{run.dataset} ({plan['data']}), recipe {run.experiment.recipe}, {plan['precision']}",
        f"  {recipe.optimizer}, loss {said(recipe.loss.model_dump())}, "
        f"gradients clipped at {said(recipe.clip_gradient)}; groups of parameters:",
    ]
    lines += [
        f"    {row['part']:8} {row['kind']:15} {row['parameters']:>12,} parameters in {row['tensors']:>4} "
        f"tensors, rate x {row['rate_factor']:g}, decay {row['weight_decay']:g}"
        for row in plan["parameter_groups"]
    ]
    points = ", ".join(f"{point['learning_rate']:.3g} at {point['step']}" for point in plan["schedule"])
    crop = " x ".join(map(str, recipe.crop))
    lines += [
        f"  rate: {points}",
        f"  samples: {resizing(recipe.augmentation)}; crop {crop}",
        f"  batch: {batch['images']} images = {batch['devices']} devices x {batch['parts']:g} parts of "
        f"{batch['part']}",
        "  memory of a device: "
        + ", ".join(f"{name} {value:,.0f} MiB" for name, value in memory.items() if value is not None),
        f"  on {plan['device']}: {plan['timed']['seconds_a_part']:.2f} s for {plan['timed']['images']} "
        f"images, {plan['steps_a_second']:.3g} steps a second, {plan['hours']:,.1f} hours for "
        f"{recipe.steps} steps",
        f"  losses of the timed steps: {', '.join(f'{loss:.3f}' for loss in plan['timed']['losses'])}",
        f"  {folder / 'plan.json'}, {folder / 'samples.png'}",
    ]
    return "\n".join(lines)


def resizing(augmentation: Augmentation) -> str:
    """What happens to an image, in words and ranges."""
    given = augmentation.model_dump(mode="json", exclude_defaults=True)
    given = {"mirror": augmentation.mirror} | given
    return ", ".join(f"{name.replace('_', ' ')} {said(value)}" for name, value in given.items())


def sheet(samples: TrainingSamples, data: PreparedDataset, recipe: Recipe) -> bytes:
    """A PNG of the first samples as the network sees them, each over its labels."""
    seen = NetworkInput.of(data, recipe)
    tiles = []
    for position in range(SAMPLES):
        image, labels, _ = samples[position]
        named = colourise(labels.numpy().astype(np.uint8), data.classes)
        tiles.append(np.concatenate((seen.picture(image), named)))
    whole = Image.fromarray(np.concatenate([np.concatenate(tiles[i : i + 6], axis=1) for i in (0, 6)]))
    whole.thumbnail((1920, 1920))
    content = io.BytesIO()
    whole.save(content, "PNG")
    return content.getvalue()
