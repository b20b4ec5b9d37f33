"""How much of the disk trainings will take, said before they start."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from experiments.config.run import Run
from experiments.running import workers
from experiments.running.jobs import Job, count
from experiments.running.server import COMPUTING

_SURELY_ENOUGH = 4 * 2**30
"""Bytes for each training and each worker with which not even the largest model fills the disk. Where there
is less, the models are built to know exactly, which takes seconds."""
_CHECKPOINTS = 3
"""Of each running training: two that are kept, and one that is being written."""


def warning(work: Sequence[Job], running: int, place: Path) -> str:
    """What to say if the outstanding trainings need more than is free; empty if they do not.

    Args:
        work: the outstanding trainings.
        running: how many of them run at once.
        place: a folder on the disk that they write to, which need not be there yet.
    """
    while not place.exists():
        place = place.absolute().parent
    free, running = shutil.disk_usage(place).free, min(running, len(work))
    if free >= _SURELY_ENOUGH * (len(work) + running):
        return ""
    runs = [(job.arguments["run"], len(job.arguments["data"].classes)) for job in work]
    sizes = workers.ask("experiments.training.space:sizes", runs, imports=COMPUTING)
    weights = sum(size for size, _ in sizes)
    checkpoints = _CHECKPOINTS * sum(sorted(size for _, size in sizes)[-running:])
    if weights + checkpoints <= free:
        return ""
    return (
        f"{count(len(work), 'training')} will take {_in_words(weights)} of weights and up to "
        f"{_in_words(checkpoints)} of checkpoints, {running} at once; {place} has {_in_words(free)} free. "
        "What does not fit will fail, and can be done again"
    )


def sizes(runs: Sequence[tuple[Run, int]]) -> list[tuple[int, int]]:
    """Bytes of the weights and of a checkpoint of each training.

    Args:
        runs: with the number of classes of each.
    """
    import torch

    import models

    found = []
    for run, classes in runs:
        with torch.device("meta"):  # shapes without numbers
            model = models.create(run.experiment.model, classes, **run.options)
        weights = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
        trained = sum(p.numel() * p.element_size() for p in model.parameters())
        # What the optimizer keeps of each parameter: SGD its momentum, AdamW two moments.
        found.append((weights, weights + trained * (2 if run.recipe.optimizer == "adamw" else 1)))
    return found


def _in_words(size: int) -> str:
    return f"{size / 1e9:.2g} GB" if size >= 1e8 else f"{size / 1e6:.2g} MB"
