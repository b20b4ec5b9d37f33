"""Trains one experiment under the active profile, once for each seed.

Writes, for each seed, ``results/train/<experiment>/seed-<n>/``: ``history.csv`` (loss terms and
learning rate), ``weights.safetensors`` and ``run.json`` (provenance). A killed training goes on
from its last checkpoint and ends in the same weights as one that was never killed. A training that
is complete already is not done again.

On several devices: torchrun --nproc-per-node 4 -m experiments.train <experiment>
"""

from __future__ import annotations

import inspect
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

import models
from experiments.config import params as config
from experiments.config.params import Run
from experiments.config.recipes import Loss, Recipe
from experiments.running import command, sources, storage
from experiments.running.command import StageError
from experiments.running.devices import Devices, open_devices, seed_everything
from experiments.running.provenance import provenance
from experiments.samples.augment import Augment
from experiments.samples.prepared import PreparedDataset, TrainingSamples
from experiments.training import losses
from experiments.training.optimizers import create_optimizer
from experiments.training.schedules import learning_rate
from experiments.training.training_state import TrainingState
from models.segmenter import Criterion

TRAIN = Path("results/train")

SOURCES = (
    "samples/augment",
    "running/devices",
    "training/losses",
    "training/optimizers",
    "samples/prepared",
    "training/schedules",
    "train",
)
"""Modules of ``experiments`` that decide what the weights become, besides the model's own."""


def main() -> None:
    parser = command.parser("train", __doc__)
    parser.add_argument("experiment", help="a key of 'experiments' in params.yaml")
    run = config.load().run(parser.parse_args().experiment)
    data = PreparedDataset.load(run.dataset)
    with open_devices() as devices:
        _forget_other_seeds(run, devices)
        for seed in run.seeds:
            train(run, data, seed, devices)


def train(run: Run, data: PreparedDataset, seed: int, devices: Devices) -> None:
    """Trains one seed of a run and writes its folder.

    Raises:
        StageError: the loss is not finite, or the run does not fit the devices.
    """
    folder = TRAIN / run.key / f"seed-{seed}"
    identity = {
        "configuration": run.configuration(seed, data.digest),
        "code": code_digest(run.experiment.model),
    }
    if _is_complete(folder, identity):
        if devices.is_main:
            print(f"train {run.key} seed {seed}: complete; delete {folder} to train it again")
        return
    recipe = run.recipe
    if recipe.batch_size % devices.world_size:
        raise StageError(
            f"batch_size {recipe.batch_size} does not divide over {devices.world_size} devices; "
            "change one of them"
        )
    seed_everything(seed)
    try:
        model = models.create(
            run.experiment.model, len(data.classes), pretrained=recipe.pretrained, **run.options
        )
    except (ValueError, FileNotFoundError, ConnectionError) as error:
        raise StageError(f"experiment '{run.key}': {error}") from None
    model.criterion = create_criterion(recipe.loss, data.class_pixels["train"])
    parallel = devices.wrap(model, recipe.sync_batch_norm).train()
    state = TrainingState(
        folder / "checkpoint.pt",
        identity,
        model,
        create_optimizer(model, recipe),
        torch.amp.GradScaler(devices.device.type, enabled=run.profile.training.precision == "float16"),
        devices,
    )
    if devices.is_main:
        (folder / "run.json").unlink(missing_ok=True)  # of another configuration
    started, first = time.perf_counter(), state.resume()
    _train_steps(run, data, seed, devices, parallel, state)
    if not devices.is_main:
        return
    seconds = time.perf_counter() - started
    storage.write_csv(folder / "history.csv", pd.DataFrame(state.history))
    storage.write(
        folder / "weights.safetensors",
        lambda partial: partial.write_bytes(save({k: v.contiguous() for k, v in model.state_dict().items()})),
    )
    storage.write_json(
        folder / "run.json",
        {
            "experiment": run.key,
            "profile": run.profile_name,
            "dataset": run.dataset,
            "seed": seed,
            "model": run.experiment.model,
            "options": run.options,
            "recipe": recipe.model_dump(mode="json"),
            **identity,
            # Of the last uninterrupted stretch; timings are no part of the result.
            "seconds_per_step": seconds / max(1, recipe.steps - first),
            **provenance(devices),
        },
    )  # last: a folder with run.json is complete
    state.forget()


def create_criterion(loss: Loss, class_counts: list[int]) -> Criterion:
    """The recipe's loss on the main logits; one that weighs classes is told how often they occur."""
    factory = losses.LOSSES[loss.name]
    takes_counts = "class_counts" in inspect.signature(factory).parameters
    return factory(**loss.options, **({"class_counts": class_counts} if takes_counts else {}))


def code_digest(model: str) -> str:
    """Digest of the sources that decide what a training of this model ends in."""
    return sources.digest(
        [
            *sources.files([f"models.{model}"]),
            *(sources.ROOT / "experiments" / f"{name}.py" for name in SOURCES),
        ]
    )


def _train_steps(
    run: Run, data: PreparedDataset, seed: int, devices: Devices, parallel: nn.Module, state: TrainingState
) -> None:
    """Takes the steps that are left, keeping ``state`` and its checkpoint up to date."""
    recipe, training = run.recipe, run.profile.training
    samples = TrainingSamples(
        data, Augment(recipe.augmentation, recipe.crop, data.network_input(recipe)), seed
    )
    batches = _batches(samples, recipe, training.workers, state.step, devices)
    progress = tqdm(
        total=recipe.steps,
        initial=state.step,
        desc=f"train {run.key} seed {seed}",
        unit="step",
        disable=not devices.is_main,
        mininterval=1,
    )
    scaler = state.scaler
    for step in range(state.step, recipe.steps):
        images, labels, _ = next(batches)
        rate = learning_rate(step, recipe)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        with devices.autocast(training.precision):
            prediction = parallel(images.to(devices.device, non_blocking=True))
        terms = state.model.loss(prediction, labels.to(devices.device, non_blocking=True))
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
        log = state.step % training.log_every == 0 or state.step == recipe.steps
        checkpoint = state.step % training.checkpoint_every == 0 and state.step < recipe.steps
        if log or checkpoint:
            # Looking at a loss makes the host wait for the device: so now, and not at every step.
            _check_finite(state, samples, run)
        if log:
            means = {
                k: torch.stack([terms[k] for terms in state.recent]).mean().item() for k in state.recent[0]
            }
            state.history.append({"step": state.step, "learning_rate": rate, **means})
            state.recent = []
            progress.set_postfix(loss=f"{means['loss']:.3f}", refresh=False)
        if checkpoint and devices.is_main:
            state.save()
        progress.update()
    progress.close()


def _batches(
    samples: TrainingSamples, recipe: Recipe, workers: int, first_step: int, devices: Devices
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """This process's share of every batch from ``first_step`` on: images, labels, positions."""
    positions = range(first_step * recipe.batch_size, recipe.steps * recipe.batch_size)
    loader = DataLoader(
        samples,
        batch_size=recipe.batch_size // devices.world_size,
        sampler=positions[devices.rank :: devices.world_size],
        num_workers=workers,
        pin_memory=devices.device.type == "cuda",
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
    raise StageError(
        f"experiment '{run.key}': the loss is not finite at step {step + 1} ({values}); lower the recipe's "
        f"learning_rate, or look at the batch: {', '.join(str(samples.sample_at(p).image) for p in batch)}"
    )


def _is_complete(folder: Path, identity: dict[str, str]) -> bool:
    """Whether the folder holds a finished training of this configuration and code."""
    try:
        written: dict[str, Any] = json.loads((folder / "run.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    same = all(written.get(name) == value for name, value in identity.items())
    return same and (folder / "weights.safetensors").is_file()


def _forget_other_seeds(run: Run, devices: Devices) -> None:
    """Removes folders of seeds that params.yaml no longer names: DVC keeps this stage's outputs."""
    if devices.is_main:
        for folder in (TRAIN / run.key).glob("seed-*"):
            if folder.name not in {f"seed-{seed}" for seed in run.seeds}:
                shutil.rmtree(folder)


if __name__ == "__main__":
    command.run("train", main)
