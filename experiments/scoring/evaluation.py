"""One slice of an evaluation: from a network and images to counts by image, and pictures of a few.

Everything in this folder, and in ``samples``, decides what weights score.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from experiments.config.protocol import Protocol
from experiments.running import stopping, storage
from experiments.running.devices import Devices, open_devices
from experiments.running.errors import StageError
from experiments.running.work import Context
from experiments.samples.network_input import NetworkInput
from experiments.samples.stream import EvaluationSamples
from experiments.scoring import networks
from experiments.scoring.counts import Counter, Evaluation
from experiments.scoring.networks import ScoreMaps
from experiments.scoring.pictures import label_picture
from experiments.scoring.protocols import predict_each
from experiments.scoring.slices import COUNTS, Scoring
from models import Segmenter


def score_slice(
    context: Context, scoring: Scoring, images: range, digest: str, gallery: bool, place: Path
) -> str:
    """Scores one network over some of the validation images and writes its counts.

    Args:
        context: of the job.
        scoring: what is scored.
        images: places of the slice's images among all.
        digest: of all that the counts are a function of.
        gallery: whether predictions and maps of the images that the report shows are kept.
        place: folder for all of it.

    Returns:
        What to say when it is done.

    Raises:
        StageError: the weights are broken or belong to another model, or the images do not fit the protocol.
    """
    started = time.perf_counter()
    with open_devices(context.device) as devices, storage.folder(place) as folder:
        # Convolutions on GPUs would round their inputs to 10 bits; float32 means float32 here.
        torch.backends.cudnn.allow_tf32 = False
        model = networks.load(scoring.network).to(devices.device)
        evaluation = _count(context, scoring, images, model, devices, digest, folder if gallery else None)
        evaluation.save(folder / COUNTS)
    seconds = time.perf_counter() - started
    miou = f"mIoU {100 * evaluation.counts.mean_iou():.2f}"
    if evaluation.multi_scale is not None:
        miou += f", multi-scale {100 * evaluation.multi_scale.mean_iou():.2f},"
    return f"{miou} on {len(images)} images of {scoring.data.name}, in {seconds:.1f} s"


def _count(
    context: Context,
    scoring: Scoring,
    images: range,
    model: Segmenter,
    devices: Devices,
    digest: str,
    folder: Path | None,
) -> Evaluation:
    single_scale, multi_scale = scoring.recipe.single_scale, scoring.recipe.multi_scale
    samples = EvaluationSamples(scoring.data, NetworkInput.of(scoring.data, scoring.recipe))
    loader = DataLoader(
        Subset(samples, images),
        scoring.settings.batch_size,
        num_workers=scoring.loader_workers,
        worker_init_fn=stopping.leave_to_others,
    )
    num_classes, widths = len(scoring.data.classes), scoring.settings.trimap_widths
    counter, bilinear, averaged = (Counter(num_classes, widths) for _ in range(3))
    network = ScoreMaps(model, devices, single_scale.precision)
    shown = scoring.gallery() if folder is not None else set()
    done = 0
    for batch, labels, names in _same_size(loader):
        if stopping.requested():
            raise stopping.Stopped(f"after {done} of {len(images)} images")
        _check_window(single_scale, batch, names[0])
        inputs, truth, size = batch.to(devices.device), labels.numpy(), tuple(labels.shape[-2:])
        predicted = [_best_classes(scores) for scores in predict_each(network, inputs, single_scale, size)]
        counter.add_batch(names, truth, predicted[0])
        if len(predicted) > 1:
            bilinear.add_batch(names, truth, predicted[1])
        if multi_scale is not None:
            several = ScoreMaps(model, devices, multi_scale.precision)
            averaged.add_batch(
                names, truth, _best_classes(predict_each(several, inputs, multi_scale, size)[0])
            )
        for i, name in enumerate(names):
            if folder is not None and name in shown:
                label_picture(predicted[0][i], scoring.data.classes).save(folder / f"{name}.png")
                # Through memory: the library's writer does not tell a full disk as Python does.
                maps = save(network.maps(inputs[i : i + 1], single_scale))
                (folder / f"{name}.safetensors").write_bytes(maps)
        done += len(names)
        context.progress(done / len(images))
    return Evaluation(
        digest, counter.counts(), counter.confusion, bilinear.counts_if_any(), averaged.counts_if_any()
    )


def _best_classes(scores: Tensor) -> np.ndarray:
    """The best class of each pixel, (N, H, W) uint8, of scores (N, K, H, W)."""
    best: np.ndarray = scores.argmax(1).to(torch.uint8).cpu().numpy()
    return best


def _check_window(protocol: Protocol, images: Tensor, name: str) -> None:
    """Raises ``StageError`` if not even the largest of the resized images reaches the window's size."""
    if protocol.window is None:
        return
    height, width = max(protocol.input_sizes(*images.shape[-2:]))
    if protocol.window[0] > height and protocol.window[1] > width:
        raise StageError(
            f"single_scale.window: {protocol.window[0]} x {protocol.window[1]} is larger than image "
            f"'{name}', {height} x {width} (height x width); give recipe or profile a smaller one, or null"
        )


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
