"""One training: from an experiment and a seed to weights.

Everything in this folder, and in ``samples``, decides what the weights become.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save
from torch import Tensor

from experiments.config.run import Run
from experiments.running import digests, stopping, storage
from experiments.running.devices import open_devices
from experiments.running.errors import StageError
from experiments.running.provenance import provenance
from experiments.running.work import Context
from experiments.samples.network_input import NetworkInput
from experiments.samples.prepared import PreparedDataset
from experiments.samples.stream import TrainingSamples
from experiments.training.averaging import WeightAverage
from experiments.training.batches import part_batches
from experiments.training.checkpoints import TrainingState
from experiments.training.folder import TrainingFolder
from experiments.training.parallel import any_stop_requested
from experiments.training.schedules import learning_rate
from experiments.training.setup import Setup, set_up
from experiments.training.step import take_step
from models import Segmenter

_HISTORY_EVERY = 2.0
"""Seconds between two writes of a growing ``history.csv``."""


class Observer(Protocol):
    """Watches a training in the process that writes its files, and changes nothing."""

    def row(self, values: dict[str, float]) -> None:
        """Takes a new row of ``history.csv``."""

    def checkpoint(self, step: int, model: Segmenter) -> None:
        """Takes the model at a checkpoint and at the end."""


def train(
    context: Context,
    run: Run,
    data: PreparedDataset,
    seed: int,
    digest: str,
    observer: Observer | None = None,
) -> str:
    """Trains one seed of a run and writes its folder; a killed training goes on from its checkpoint.

    Returns:
        What to say when it is done.

    Raises:
        StageError: the loss is not finite, or the run does not fit the devices.
        Stopped: it was asked to stop, and has written a checkpoint.
    """
    folder = TrainingFolder(run.paths.training(run.key, seed))
    with open_devices(context.device) as devices:
        setup = set_up(run, data, seed, devices, run.weights())
        if devices.is_main:
            folder.make_room(digest)
            storage.clear_partials(folder.path)
        average = WeightAverage(setup.model, run.recipe)
        state = TrainingState(folder, digest, setup.model, average, setup.optimizer, setup.scaler, devices)
        started, first = time.perf_counter(), state.resume(context.say)
        state.begin_stretch()
        if devices.is_main:
            context.say(f"{run.key} seed {seed}: {_announcement(run, first)}{_processes(state)}")
            for line in setup.warnings():
                context.say(f"{run.key} seed {seed}: {line}")
        _take_steps(context, run, data, seed, setup, state, observer if devices.is_main else None)
        seconds = time.perf_counter() - started
        if devices.is_main:
            _write(run, data, seed, digest, setup, state, seconds / max(1, run.recipe.steps - first))
    return f"{run.recipe.steps - first} steps in {seconds:.1f} s, loss {state.history[-1]['loss']:.3f}"


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
    setup: Setup,
    state: TrainingState,
    observer: Observer | None,
) -> None:
    """Takes the steps that are left, keeping ``state`` and its checkpoint up to date."""
    recipe, training, devices = run.recipe, run.profile.training, setup.devices
    samples = TrainingSamples(data, recipe, seed, training.keep_decoded)
    parts = part_batches(samples, recipe, setup.cut, devices, state.step, training.loader_workers)
    shown = written = time.monotonic()
    for step in range(state.step, recipe.steps):
        rate = learning_rate(step, recipe)
        batch = [next(parts)[:2] for _ in range(setup.cut.parts)]
        state.recent.append(take_step(setup, batch, rate))
        state.average.add(step)
        state.step = step + 1
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
            if observer is not None:
                observer.row(state.history[-1])
            if devices.is_main and now - written > _HISTORY_EVERY:
                written = now
                _write_history(state)
        if checkpoint and devices.is_main:
            state.save()
        if state.step == recipe.steps:
            state.average.give_to_model()
        if observer is not None and (checkpoint or state.step == recipe.steps):
            observer.checkpoint(state.step, state.model)
        if stop:
            raise stopping.Stopped(f"at step {state.step} of {recipe.steps}")
        if devices.is_main and now - shown > 0.2:
            shown = now
            context.progress(state.step / recipe.steps)


def _means(recent: list[dict[str, Tensor]]) -> dict[str, float]:
    return {name: torch.stack([terms[name] for terms in recent]).mean().item() for name in recent[0]}


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
    setup: Setup,
    state: TrainingState,
    seconds_per_step: float,
) -> None:
    """Writes what a finished training leaves, ``run.json`` last: a folder that has it is complete."""
    folder = state.folder
    _write_history(state)
    # Copies, as a module that a model has under two names is one tensor, which safetensors refuses to write.
    weights = {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in state.model.state_dict().items()
    }
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
            "image_size": run.profile.image_size,
            "recipe": run.recipe.model_dump(mode="json"),
            "parameter_groups": [group.described() for group in setup.groups],
            "batch": {**asdict(setup.cut), "parts": setup.cut.parts},
            **run.profile.training.deciding(),
            "digest": digest,
            "processes": [{"from_step": step, "count": count} for step, count in state.stretches],
            # Of the last uninterrupted stretch; timings are no part of the result.
            "seconds_per_step": seconds_per_step,
            **provenance(setup.devices.description),
        },
    )
    for path in (folder.checkpoint, folder.previous_checkpoint):
        path.unlink(missing_ok=True)
