"""Networks from files of weights, trained here or released by a paper's authors, and the scores they give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import models
from experiments.config.protocol import Protocol
from experiments.running import storage
from experiments.running.devices import Devices
from experiments.running.errors import StageError
from experiments.scoring.released import read_checkpoint
from experiments.scoring.slices import NetworkFile
from models import Segmenter
from models.parts.layers import upsample
from models.segmenter import OFFSETS, SCORES


def load(file: NetworkFile) -> Segmenter:
    """The network for inference alone, on the CPU: its batch norms are folded.

    Raises:
        StageError: the file is missing, broken, or holds the weights of another network.
    """
    tensors = read_checkpoint(file.weights) if file.released else _trained(file)
    model = models.create(file.model, file.num_classes, **file.options)
    try:
        if file.released:
            models.load_released(model, tensors)
        else:
            model.load_state_dict(tensors)
    except ValueError as error:
        raise StageError(f"{file.weights}: {error}; {file.remedy}") from None
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip()
        raise StageError(f"{file.weights}: weights of another model ({first}); {file.remedy}") from None
    return model.for_inference()


def check(file: NetworkFile) -> None:
    """Raises what ``load`` raises: once, and not by each of many slices of an evaluation."""
    load(file)


def _trained(file: NetworkFile) -> dict[str, Tensor]:
    try:
        return load_file(file.weights)
    except FileNotFoundError:
        raise StageError(f"{file.weights}: no such file; {file.remedy}") from None
    except (SafetensorError, OSError) as error:
        raise StageError(
            f"{file.weights}: does not decode ({storage.reason(error)}); {file.remedy}"
        ) from None


class ScoreMaps:
    """A network as protocols call it: images to score maps.

    The first map is the network's prediction. A network whose upsampling follows predicted offsets gives a
    second one: plain bilinear upsampling of the same scores, the same network without guidance.

    Args:
        model: in evaluation mode, on the device.
        devices: of the job.
        precision: of the forward pass.
    """

    def __init__(self, model: Segmenter, devices: Devices, precision: str):
        self.model = model
        self.devices = devices
        self.precision = precision

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        """(N, K, h, w) for images (N, 3, h, w), once or twice."""
        with self.devices.autocast(self.precision):
            output = self.model(images)
        if OFFSETS in output.maps:
            return output.logits, upsample(output.maps[SCORES], images.shape[-2:])
        return (output.logits,)

    @torch.no_grad()
    def maps(self, image: Tensor, protocol: Protocol) -> dict[str, Tensor]:
        """What the paper shows in its figures, in half precision on the CPU.

        Args:
            image: (1, 3, H, W); the network sees the whole of it, at the first of the protocol's sizes.
            protocol: that the network is scored by.
        """
        size = protocol.input_sizes(*image.shape[-2:])[0]
        with self.devices.autocast(self.precision):
            output = self.model(upsample(image, size, protocol.align_corners))
        return {name: value[0].half().cpu().contiguous() for name, value in output.maps.items()}
