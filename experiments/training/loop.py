"""One training: from an experiment and a seed to weights.

Everything in this folder, and in ``samples``, decides what the weights become.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader

import models
from experiments.config.run import Run
from experiments.running import digests, stopping, storage
from experiments.running.devices import Devices, open_devices
from experiments.running.errors import StageError
from experiments.running.provenance import provenance
from experiments.running.work import Context
from experiments.samples.network_input import NetworkInput
from experiments.samples.prepared import PreparedDataset
from experiments.samples.stream import TrainingSamples
from experiments.training.checkpoints import TrainingState
from experiments.training.folder import TrainingFolder
from experiments.training.losses import create_criterion
from experiments.training.optimizers import create_optimizer
from experiments.training.parallel import any_stop_requested, seed_everything, whole_batch, wrap
from experiments.training.schedules import learning_rate

_HISTORY_EVERY = 2.0
"""Seconds between two writes of a growing ``history.csv``."""


def train(context: Context, run: Run, data: PreparedDataset, seed: int, digest: str) -> str:
    """Trains one seed of a run and writes its folder; a killed training goes on from its checkpoint.

    Returns:
        What to say when it is done.

    Raises:
        StageError: the loss is not finite, or the run does not fit the devices.
        Stopped: it was asked to stop, and has written a checkpoint.
    """
    folder = TrainingFolder(run.paths.training(run.key, seed))
    with open_devices(context.device) as devices:
        if devices.is_main:
            folder.make_room(digest)
            folder.path.mkdir(parents=True, exist_ok=True)
            storage.clear_partials(folder.path)
        state, parallel = _build(run, data, seed, digest, devices, folder)
        started, first = time.perf_counter(), state.resume(context.say)
        state.begin_stretch()
        if devices.is_main:
            context.say(f"{run.key} seed {seed}: {_announcement(run, first)}{_processes(state)}")
        _take_steps(context, run, data, seed, devices, parallel, state)
        seconds = time.perf_counter() - started
        if devices.is_main:
            _write(run, data, seed, digest, devices, state, seconds / max(1, run.recipe.steps - first))
    return f"{run.recipe.steps - first} steps in {seconds:.1f} s, loss {state.history[-1]['loss']:.3f}"


def _build(
    run: Run, data: PreparedDataset, seed: int, digest: str, devices: Devices, folder: TrainingFolder
) -> tuple[TrainingState, nn.Module]:
    """The model and all that goes with it, as they are before the first step."""
    recipe = run.recipe
    if recipe.batch_size % devices.world_size:
        raise StageError(
            f"batch_size {recipe.batch_size} does not divide over {devices.world_size} devices; "
            "change one of them"
        )
    seed_everything(seed)
    try:
        model = models.create(
            run.experiment.model, len(data.classes), pretrained=run.weights(), **run.options
        )
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        raise StageError(str(error)) from None
    model.criterion = create_criterion(recipe.loss, data.train.class_pixels)
    parallel = wrap(model, devices).train()
    scaler = torch.amp.GradScaler(devices.device.type, enabled=run.profile.training.precision == "float16")
    return TrainingState(folder, digest, model, create_optimizer(model, recipe), scaler, devices), parallel


def _announcement(run: Run, first: int) -> str:
    """The settings that are in force, where they come from more than one place."""
    recipe, paper = run.recipe, run.paper_recipe
    weights = run.weights()
    if isinstance(weights, str):
        start = f"weights of {weights} (sha256 {digests.of_file(Path(weights))[:12]})"
    else:
        start = "ImageNet weights of the hub" if weights else "from scratch"
    rate = f"rate {recipe.learning_rate:g}"
    if recipe.learning_rate != paper.learning_rate:
        rate += f" (profile {run.profile_name}; recipe {run.experiment.recipe}: {paper.learning_rate:g})"
    steps = f"{recipe.steps} steps" + (f", going on at {first}" if first else "")
    crop = " x ".join(map(str, recipe.crop))
    return ", ".join(
        [run.backbone or run.experiment.model, start, f"{steps} of {recipe.batch_size} x {crop}", rate]
    )


def _processes(state: TrainingState) -> str:
    """How many processes did, and do, the training; nothing where it was always one."""
    if all(processes == 1 for _, processes in state.stretches):
        return ""
    return ", " + ", then ".join(
        f"{processes} processes from step {step}" for step, processes in state.stretches
    )


def _take_steps(
    context: Context,
    run: Run,
    data: PreparedDataset,
    seed: int,
    devices: Devices,
    parallel: nn.Module,
    state: TrainingState,
) -> None:
    """Takes the steps that are left, keeping ``state`` and its checkpoint up to date."""
    recipe, training = run.recipe, run.profile.training
    samples = TrainingSamples(data, recipe, seed)
    batches = _batches(samples, run, state.step, devices)
    scaler = state.scaler
    shown = written = time.monotonic()
    for step in range(state.step, recipe.steps):
        images, labels, _ = next(batches)
        rate = learning_rate(step, recipe)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        with devices.autocast(training.precision):
            prediction = parallel(images.to(devices.device, non_blocking=True))
        predicted, truth = whole_batch(prediction, labels.to(devices.device, non_blocking=True), devices)
        terms = state.model.loss(predicted, truth)
        total = torch.stack(list(terms.values())).sum()
        state.optimizer.zero_grad(set_to_none=True)
        scaler.scale(total).backward()
        if recipe.clip_gradient is not None:
            scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_gradient)
        scaler.step(state.optimizer)
        scaler.update()
        state.step = step + 1
        state.recent.append({"loss": total.detach(), **{k: v.detach() for k, v in terms.items()}})
        stop = any_stop_requested(devices) and state.step < recipe.steps
        log = state.step % training.log_every == 0 or state.step == recipe.steps
        checkpoint = stop or (state.step % training.checkpoint_every == 0 and state.step < recipe.steps)
        if log or checkpoint:
            # Looking at a loss makes the host wait for the device: so now, and not at every step.
            _check_finite(state, samples, run)
        now = time.monotonic()
        if log:
            state.history.append({"step": state.step, "learning_rate": rate, **_means(state.recent)})
            state.recent = []
            if devices.is_main and now - written > _HISTORY_EVERY:
                written = now
                _write_history(state)
        if checkpoint and devices.is_main:
            state.save()
        if stop:
            raise stopping.Stopped(f"at step {state.step} of {recipe.steps}")
        if devices.is_main and now - shown > 0.2:
            shown = now
            context.progress(state.step / recipe.steps)


def _means(recent: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: torch.stack([terms[name] for terms in recent]).mean().item() for name in recent[0]}


def _batches(
    samples: TrainingSamples, run: Run, first_step: int, devices: Devices
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This process's share of every batch from ``first_step`` on: images, labels, positions."""
    recipe = run.recipe
    positions = range(first_step * recipe.batch_size, recipe.steps * recipe.batch_size)
    loader = DataLoader(
        samples,
        batch_size=recipe.batch_size // devices.world_size,
        sampler=positions[devices.rank :: devices.world_size],
        num_workers=run.profile.training.loader_workers,
        worker_init_fn=stopping.leave_to_others,
        pin_memory=devices.on_gpu,
        # A generator of its own: the loader draws a base seed, which must not move the global one.
        generator=torch.Generator(),
    )
    return iter(loader)


def _check_finite(state: TrainingState, samples: TrainingSamples, run: Run) -> None:
    """Raises ``StageError`` with step and file names if a loss since the last row is not finite."""
    finite = torch.stack([terms["loss"] for terms in state.recent]).isfinite().tolist()
    if all(finite):
        return
    place = finite.index(False)
    step = state.step - len(state.recent) + place
    batch = range(step * run.recipe.batch_size, (step + 1) * run.recipe.batch_size)
    values = ", ".join(f"{name} = {value.item():g}" for name, value in state.recent[place].items())
    files = [str(samples.sample_at(p).image) for p in batch]
    shown = ", ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
    raise StageError(
        f"the loss is not finite at step {step + 1} ({values}); lower the recipe's learning_rate, or look "
        f"at the batch: {shown}"
    )


def _write_history(state: TrainingState) -> None:
    columns = list(state.history[0]) if state.history else ["step"]
    rows = [columns, *([str(row[name]) for name in columns] for row in state.history)]
    text = "".join(",".join(row) + "\n" for row in rows)
    storage.write_text(state.folder.history, text)


def _write(
    run: Run,
    data: PreparedDataset,
    seed: int,
    digest: str,
    devices: Devices,
    state: TrainingState,
    seconds_per_step: float,
) -> None:
    """Writes what a finished training leaves, ``run.json`` last: a folder that has it is complete."""
    folder = state.folder
    _write_history(state)
    weights = {name: tensor.contiguous() for name, tensor in state.model.state_dict().items()}
    storage.write_bytes(folder.weights, save(weights))
    storage.write_json(
        folder.about,
        {
            "experiment": run.key,
            "profile": run.profile_name,
            "dataset": run.dataset,
            "split": data.train.released,
            "seed": seed,
            "model": run.experiment.model,
            "options": run.options,
            "classes": [{"name": c.name, "colour": list(c.colour)} for c in data.classes],
            "network_input": asdict(NetworkInput.of(data, run.recipe)),
            "recipe": run.recipe.model_dump(mode="json"),
            "precision": run.profile.training.precision,
            "threads": run.profile.training.threads,
            "digest": digest,
            "processes": [{"from_step": step, "count": count} for step, count in state.stretches],
            # Of the last uninterrupted stretch; timings are no part of the result.
            "seconds_per_step": seconds_per_step,
            **provenance(devices.description),
        },
    )
    for path in (folder.checkpoint, folder.previous_checkpoint):
        path.unlink(missing_ok=True)
