"""Scores a trained experiment on the validation images, for each seed.

Writes ``results/evaluate/<experiment>.json`` and, for the report's gallery, what the first seed makes
of a few images, in ``results/predictions/<experiment>/``: the prediction as a label file, and the
model's maps (attention, offsets, priors) in half precision.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

import models
from experiments.config import params as config
from experiments.config.params import Run
from experiments.running import command, storage
from experiments.running.command import StageError
from experiments.running.devices import Devices, open_devices, seed_everything
from experiments.samples.prepared import EvaluationSamples, PreparedDataset
from experiments.scoring import metrics
from experiments.train import TRAIN
from models import Segmenter
from models.parts.layers import upsample

EVALUATE = Path("results/evaluate")
PREDICTIONS = Path("results/predictions")


def main() -> None:
    parser = command.parser("evaluate", __doc__)
    parser.add_argument("experiment", help="a key of 'experiments' in params.yaml")
    run = config.load().run(parser.parse_args().experiment)
    data = PreparedDataset.load(run.dataset)
    with open_devices() as devices, storage.folder(PREDICTIONS / run.key) as gallery:
        seeds: list[dict[str, Any]] = []
        for seed in run.seeds:
            model = load_trained(run, data, seed).to(devices.device)
            seeds.append({"seed": seed, **evaluate(run, data, model, devices, None if seeds else gallery)})
    result = {
        "experiment": run.key,
        "profile": run.profile_name,
        "dataset": run.dataset,
        **_over_seeds(seeds),
        # A list, which `dvc metrics show` passes over: it shows the means above.
        "seeds": seeds,
    }
    storage.write_json(EVALUATE / f"{run.key}.json", result)
    print(
        f"evaluate {run.key}: mIoU {result['miou']:.4f} on {len(data.samples['val'])} images of {run.dataset}"
    )


def load_trained(run: Run, data: PreparedDataset, seed: int) -> Segmenter:
    """The trained model of one seed, on the CPU in evaluation mode.

    Raises:
        StageError: there are no weights, or they belong to another configuration.
    """
    folder = TRAIN / run.key / f"seed-{seed}"
    remedy = f"run 'python -m experiments.train {run.key}' first"
    try:
        written = json.loads((folder / "run.json").read_text())
        weights = load_file(folder / "weights.safetensors")
    except FileNotFoundError as error:
        raise StageError(f"{error.filename}: no such file; {remedy}") from None
    except (SafetensorError, json.JSONDecodeError) as error:
        raise StageError(f"{folder}: weights or run.json do not decode ({error}); {remedy}") from None
    if written.get("configuration") != run.configuration(seed, data.digest):
        raise StageError(f"{folder}: trained with other data or settings than params.yaml has now; {remedy}")
    model = models.create(run.experiment.model, len(data.classes), **run.options)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise StageError(
            f"{folder / 'weights.safetensors'}: weights of another model ({first}); {remedy}"
        ) from None
    return model.eval()


@torch.inference_mode()
def evaluate(
    run: Run, data: PreparedDataset, model: Segmenter, devices: Devices, gallery: Path | None
) -> dict[str, Any]:
    """Scores one model over all validation images; every score is in [0, 1].

    A model whose upsampling follows predicted offsets is also scored near boundaries with plain
    bilinear upsampling of the same scores (``boundary_iou_bilinear``): the same trained network with
    and without guidance.

    Args:
        run: the experiment.
        data: whose validation images are used.
        model: in evaluation mode, on the device.
        devices: where to compute.
        gallery: folder for the predictions and maps of a few images; ``None`` keeps none.
    """
    seed_everything(0)
    settings, num_classes = run.profile.evaluation, len(data.classes)
    widths = sorted(settings.trimap_widths)
    samples = EvaluationSamples(data, run.recipe)
    total = np.zeros((num_classes, num_classes), np.int64)
    bands = np.zeros((len(widths), num_classes, num_classes), np.int64)
    unguided_bands = np.zeros_like(bands)
    per_image: dict[str, float | None] = {}
    kept = {samples.samples[i].name for i in _spread(len(samples), settings.gallery)}
    loader = DataLoader(samples, settings.batch_size, num_workers=run.profile.training.workers)
    with tqdm(total=len(samples), desc=f"evaluate {run.key}", unit="image", mininterval=1) as progress:
        for images, labels, names in _same_size(loader):
            with devices.autocast(run.profile.training.precision):
                output = model(images.to(devices.device))
            predicted = _labels(output.logits, labels.shape)
            unguided = None
            if "offsets" in output.maps and "scores" in output.maps:
                unguided = _labels(upsample(output.maps["scores"], images.shape[-2:]), labels.shape)
            for i, (truth, prediction, name) in enumerate(zip(labels, predicted, names, strict=True)):
                matrix = metrics.confusion_matrix(truth, prediction, num_classes).numpy()
                total += matrix
                bands += metrics.trimap_matrices(truth.numpy(), prediction.numpy(), widths, num_classes)
                if unguided is not None:
                    unguided_bands += metrics.trimap_matrices(
                        truth.numpy(), unguided[i].numpy(), widths, num_classes
                    )
                per_image[name] = _present_iou(matrix)
                if gallery is not None and name in kept:
                    Image.fromarray(prediction.numpy()).save(gallery / f"{name}.png")
                    maps = {key: value[i].half().cpu().contiguous() for key, value in output.maps.items()}
                    save_file(maps, gallery / f"{name}.safetensors")
            progress.update(len(names))
    by_width = {"boundary_iou": bands}
    if unguided_bands.any():
        by_width["boundary_iou_bilinear"] = unguided_bands
    return {
        "miou": _number(metrics.mean_iou(total)),
        "pixel_accuracy": _number(metrics.pixel_accuracy(total)),
        **{
            name: {str(w): _number(metrics.mean_iou(m)) for w, m in zip(widths, matrices, strict=True)}
            for name, matrices in by_width.items()
        },
        "class_iou": {
            c.name: _number(iou) for c, iou in zip(data.classes, metrics.class_iou(total), strict=True)
        },
        "image_iou": per_image,
    }


def _labels(logits: Tensor, shape: torch.Size) -> Tensor:
    """The best class of each pixel, (N, H, W) uint8 on the CPU, at the size of labels (N, H, W)."""
    return upsample(logits.float(), shape[-2:]).argmax(1).to(torch.uint8).cpu()


def _same_size(loader: DataLoader[Any]) -> Any:
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


def _present_iou(matrix: metrics.Matrix) -> float | None:
    """Mean IoU over the classes that the image's labels hold; ``None`` if nothing is labelled."""
    present = matrix.sum(1) > 0
    return _number(metrics.class_iou(matrix)[present].mean()) if present.any() else None


def _over_seeds(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and the mIoU's standard deviation where there are several."""
    means: dict[str, Any] = {name: fmean(s[name] for s in seeds) for name in ("miou", "pixel_accuracy")}
    if len(seeds) > 1:
        means["miou_std"] = stdev(s["miou"] for s in seeds)
    for name in ("boundary_iou", "boundary_iou_bilinear"):
        if name in seeds[0]:
            # Without a boundary in any validation image there is no number to average.
            widths = [width for width, value in seeds[0][name].items() if value is not None]
            means[name] = {width: fmean(seed[name][width] for seed in seeds) for width in widths}
    return means


def _spread(count: int, wanted: int) -> list[int]:
    """Indices of ``wanted`` of ``count`` images, spread evenly."""
    wanted = min(wanted, count)
    return [i * count // wanted for i in range(wanted)]


def _number(value: float) -> float | None:
    """Six decimals; ``None`` where there is nothing to measure, which JSON cannot say as NaN."""
    return None if math.isnan(value) else round(float(value), 6)


if __name__ == "__main__":
    command.run("evaluate", main)
