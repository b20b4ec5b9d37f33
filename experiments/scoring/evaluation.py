"""One evaluation: from trained weights to counts by image, and pictures of a few.

Everything in this folder, and in ``samples``, decides what weights score.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import DataLoader

import models
from experiments.config.run import Run
from experiments.datasets.base import IGNORE_LABEL, LabelClass
from experiments.running import stopping, storage
from experiments.running.devices import Devices, open_devices
from experiments.running.errors import StageError
from experiments.running.work import Context
from experiments.samples.prepared import PreparedDataset
from experiments.samples.stream import EvaluationSamples
from experiments.scoring.counts import Counter, Evaluation
from models import Segmenter
from models.parts.layers import upsample
from models.segmenter import OFFSETS, SCORES


def evaluate(
    context: Context,
    run: Run,
    data: PreparedDataset,
    seed: int,
    weights: Path,
    digest: str,
    gallery: Path | None,
) -> str:
    """Scores one trained network over the validation images and writes its counts.

    Args:
        context: of the job.
        run: the experiment.
        data: whose validation images are used.
        seed: of the training.
        weights: file of the trained weights.
        digest: of all that the counts are a function of.
        gallery: folder for predictions and maps of a few images; ``None`` keeps none.

    Returns:
        What to say when it is done.

    Raises:
        StageError: the weights are broken, or belong to another model.
    """
    started = time.perf_counter()
    with open_devices(context.device) as devices:
        model = load_trained(run, len(data.classes), weights).to(devices.device)
        if gallery is None:
            evaluation = _count(context, run, data, model, devices, digest, None)
        else:
            with storage.folder(gallery) as folder:
                evaluation = _count(context, run, data, model, devices, digest, folder)
    evaluation.save(run.paths.counts(run.key, seed))
    seconds = time.perf_counter() - started
    miou = 100 * evaluation.counts.mean_iou()
    return f"mIoU {miou:.2f} on {len(evaluation.counts.images)} images of {run.dataset}, in {seconds:.1f} s"


def load_trained(run: Run, num_classes: int, weights: Path) -> Segmenter:
    """A trained model, on the CPU in evaluation mode.

    Raises:
        StageError: the file is missing, broken, or holds the weights of another model.
    """
    remedy = f"run 'python -m experiments.train {run.key}' again"
    try:
        tensors = load_file(weights)
    except FileNotFoundError:
        raise StageError(f"{weights}: no such file; {remedy}") from None
    except (SafetensorError, OSError) as error:
        raise StageError(f"{weights}: does not decode ({storage.reason(error)}); {remedy}") from None
    model = models.create(run.experiment.model, num_classes, **run.options)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise StageError(f"{weights}: weights of another model ({first}); {remedy}") from None
    return model.eval()


@torch.inference_mode()
def _count(
    context: Context,
    run: Run,
    data: PreparedDataset,
    model: Segmenter,
    devices: Devices,
    digest: str,
    gallery: Path | None,
) -> Evaluation:
    """Counts every validation image.

    A model whose upsampling follows predicted offsets is also counted with plain bilinear upsampling of
    the same scores: the same trained network with and without guidance.
    """
    settings, num_classes = run.profile.evaluation, len(data.classes)
    samples = EvaluationSamples(data, run.recipe)
    counter = Counter(num_classes, settings.trimap_widths)
    bilinear: Counter | None = None
    kept = {samples.samples[i].name for i in evenly_spaced(len(samples), settings.gallery)}
    loader = DataLoader(
        samples,
        settings.batch_size,
        num_workers=run.profile.training.loader_workers,
        worker_init_fn=stopping.leave_to_others,
    )
    done = 0
    for images, labels, names in _same_size(loader):
        if stopping.requested():
            raise stopping.Stopped(f"after {done} of {len(samples)} images")
        with devices.autocast(run.profile.training.precision):
            output = model(images.to(devices.device))
        predicted = _best_classes(output.logits, labels.shape)
        unguided = None
        if OFFSETS in output.maps:
            unguided = _best_classes(upsample(output.maps[SCORES], images.shape[-2:]), labels.shape)
            bilinear = bilinear or Counter(num_classes, settings.trimap_widths)
        for i, (truth, name) in enumerate(zip(labels.numpy(), names, strict=True)):
            counter.add(name, truth, predicted[i])
            if unguided is not None and bilinear is not None:
                bilinear.add(name, truth, unguided[i])
            if gallery is not None and name in kept:
                save_labels(gallery / f"{name}.png", predicted[i], data.classes)
                maps = {key: value[i].half().cpu().contiguous() for key, value in output.maps.items()}
                # Through memory: the library's writer does not tell a full disk as Python does.
                (gallery / f"{name}.safetensors").write_bytes(save(maps))
        done += len(names)
        context.progress(done / len(samples))
    return Evaluation(
        digest, counter.counts(), counter.confusion, bilinear.counts() if bilinear is not None else None
    )


def save_labels(path: Path, labels: np.ndarray, classes: tuple[LabelClass, ...]) -> None:
    """Writes class indices (H, W) as a PNG whose palette shows them in the classes' colours."""
    picture = Image.fromarray(labels)
    palette = np.zeros((IGNORE_LABEL + 1, 3), np.uint8)
    palette[: len(classes)] = [c.colour for c in classes]
    picture.putpalette(palette.ravel().tolist())
    picture.save(path)


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Indices of ``wanted`` of ``count`` images, spread evenly."""
    wanted = min(wanted, count)
    return [i * count // wanted for i in range(wanted)]


def _best_classes(logits: Tensor, shape: torch.Size) -> np.ndarray:
    """The best class of each pixel, (N, H, W) uint8, at the size of labels (N, H, W)."""
    best: np.ndarray = upsample(logits.float(), shape[-2:]).argmax(1).to(torch.uint8).cpu().numpy()
    return best


def _same_size(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's batches.

    Raises:
        StageError: images of one batch differ in size.
    """
    try:
        yield from loader
    except RuntimeError as error:
        if "stack expects each tensor to be equal size" not in str(error):
            raise
        raise StageError(
            "validation images differ in size; set evaluation.batch_size to 1 in the profile"
        ) from None
