"""Live curves of a training in TensorBoard, for whoever asks for them; nothing here changes the training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from experiments.config.run import Run
from experiments.reporting.maps import colourise
from experiments.running.devices import Devices, open_devices
from experiments.running.errors import StageError
from experiments.running.work import Context
from experiments.samples.network_input import NetworkInput
from experiments.samples.prepared import PreparedDataset
from experiments.samples.stream import EvaluationSamples
from experiments.scoring.metrics import confusion_matrix, iou, mean_of_present
from experiments.scoring.networks import ScoreMaps
from experiments.scoring.protocols import predict
from experiments.training import loop
from models import Segmenter
from models.parts.layers import upsample

_IMAGES = 40
"""Validation images of a checkpoint's score, evenly spaced, where there are more."""


def train(context: Context, run: Run, data: PreparedDataset, seed: int, digest: str, tensorboard: str) -> str:
    """``loop.train``, with its curves written to a folder of TensorBoard.

    Raises:
        StageError: as ``loop.train``, and where TensorBoard is not installed.
    """
    curves = Curves(f"{tensorboard}/{run.key}-seed-{seed}", run, data, context.device)
    try:
        return loop.train(context, run, data, seed, digest, observer=curves)
    finally:
        curves.close()


class Curves:
    """An ``Observer`` that writes loss terms, rate, validation mIoU and a sample prediction.

    Args:
        folder: to write to.
        run: that is observed.
        data: whose validation images are predicted.
        gpu: number of the one that trains.

    Raises:
        StageError: TensorBoard is not installed.
    """

    def __init__(self, folder: str, run: Run, data: PreparedDataset, gpu: int | None):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise StageError(
                "--tensorboard needs TensorBoard, which is not installed; run 'pip install tensorboard'"
            ) from None
        self.writer = SummaryWriter(folder)
        self.run, self.data, self.gpu = run, data, gpu

    def row(self, values: dict[str, float]) -> None:
        """See ``Observer``."""
        for name, value in values.items():
            if name != "step":
                self.writer.add_scalar(f"training/{name}", value, int(values["step"]))

    def checkpoint(self, step: int, model: Segmenter) -> None:
        """See ``Observer``: the mIoU in per cent, and the first image above its labels and prediction."""
        training, generator = model.training, torch.get_rng_state()
        with torch.no_grad(), open_devices(self.gpu) as devices:
            matrix, picture = self._score(model.eval(), devices)
        model.train(training)
        torch.set_rng_state(generator)
        hits = matrix.diagonal()
        class_iou = iou(hits, matrix.sum(0) + matrix.sum(1) - hits)
        self.writer.add_scalar("validation/mIoU", 100 * mean_of_present(class_iou), step)
        self.writer.add_image("validation/image, labels, prediction", picture, step, dataformats="HWC")

    def close(self) -> None:
        """Writes what is left."""
        self.writer.close()

    def _score(self, model: Segmenter, devices: Devices) -> tuple[np.ndarray, np.ndarray]:
        protocol = self.run.recipe.single_scale
        network = ScoreMaps(model, devices, protocol.precision)
        samples = EvaluationSamples(self.data, NetworkInput.of(self.data, self.run.recipe))
        count = min(_IMAGES, len(samples))
        total, picture = np.zeros((len(self.data.classes),) * 2, np.int64), np.zeros((1, 1, 3), np.uint8)
        for place in range(count):
            image, labels, _ = samples[place * len(samples) // count]
            inputs, size = image[None].to(devices.device), (labels.shape[0], labels.shape[1])
            scores = predict(lambda x: network(x)[0], inputs, protocol, size)
            predicted = scores.argmax(1)[0].to(torch.uint8).cpu().numpy()
            total += confusion_matrix(labels.numpy(), predicted, len(self.data.classes))
            if place == 0:
                maps = [colourise(x, self.data.classes) for x in (labels.numpy(), predicted)]
                picture = np.concatenate([self._picture(upsample(image[None], labels.shape)[0]), *maps])
        return total, picture

    def _picture(self, image: Tensor) -> np.ndarray:
        """A normalised image (3, H, W) as RGB (H, W, 3)."""
        seen = NetworkInput.of(self.data, self.run.recipe)
        return seen.picture(image)
