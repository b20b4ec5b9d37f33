"""Counts parameters and multiply-accumulates of a network without running it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

import models
from experiments.measuring.counters import CallCounter, OperatorCounts, count_calls, count_operators
from experiments.measuring.formulations import write_as_published
from experiments.running import storage
from experiments.running.errors import StageError
from experiments.running.work import Context

OTHER_SCALES = (0.25, 0.5)
"""Scales of height and width at which multiply-accumulates are counted too: a convolution grows with the
pixels, attention over the whole map with their square."""

_DEPTH = 3
"""Levels of modules below the network whose share is kept."""


def count(
    context: Context,  # noqa: ARG001 (counting takes a second and says nothing)
    network: dict[str, Any],
    num_classes: int,
    size: tuple[int, int],
    digest: str,
    path: Path,
) -> str:
    """Counts one network and writes what was counted.

    Args:
        context: of the job.
        network: ``model`` and ``options``.
        num_classes: K.
        size: height and width of the input.
        digest: of all that the counts depend on.
        path: where to.

    Returns:
        What to say when it is done.

    Raises:
        StageError: the network cannot be built, or cannot take an input of this size.
    """
    torch.set_num_threads(1)
    try:
        with torch.device("meta"):
            on_meta = models.create(network["model"], num_classes, **network["options"])
    except ValueError as error:
        raise StageError(str(error)) from None
    on_meta.eval().requires_grad_(False)
    try:
        with CallCounter() as called:  # in the same pass, which is what counting spends its time on
            counted = count_operators(on_meta, size)
    except (ValueError, RuntimeError) as error:
        raise StageError(
            f"input_size {size[0]} x {size[1]} does not fit model '{network['model']}': {error}; "
            "expected a larger one"
        ) from None
    scaled = [(round(scale * size[0]), round(scale * size[1])) for scale in OTHER_SCALES]
    by_size = {f"{height}x{width}": count_calls(on_meta, (height, width)) for height, width in scaled}
    by_size[f"{size[0]}x{size[1]}"] = counted.macs
    parameters = count_parameters(on_meta)
    weights = [*on_meta.parameters(), *on_meta.buffers()]
    note = write_as_published(on_meta)
    counts = {
        "parameters": parameters,
        "macs": counted.macs,
        "macs_check": called.macs,
        "height": size[0],
        "width": size[1],
        "num_classes": num_classes,
        "uncounted": _described(counted),
        "uncounted_macs": sum(counted.uncounted_macs.values()),
        "sampling_macs": counted.sampling,
        "activations": counted.activations,
        "parameter_mb": sum(tensor.numel() * tensor.element_size() for tensor in weights) / 2**20,
        "macs_as_published": count_calls(on_meta, size) if note else counted.macs,
        "as_published": note,
    }
    modules = {name: macs for name, macs in counted.by_module.items() if name.count(".") < _DEPTH}
    storage.write_json(path, {"digest": digest, "counts": counts, "modules": modules, "by_size": by_size})
    return f"{parameters / 1e6:.3g} M parameters, {counted.macs / 1e9:.4g} G multiply-accumulates"


def count_parameters(network: nn.Module) -> int:
    """Scalars in all parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in network.parameters())


def _described(counted: OperatorCounts) -> str:
    """The operators that are in no count: how often each runs, and about how many multiply-adds it does."""
    return "; ".join(
        f"{name} x{times} ~{counted.uncounted_macs[name] / 1e9:.2g} G"
        for name, times in sorted(counted.uncounted.items())
    )
