"""What a training needs to go on where it stopped, and its checkpoint files."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from collections.abc import Callable
from operator import index
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, optim

from experiments.running import storage
from experiments.running.devices import Devices
from experiments.running.errors import StageError
from experiments.training.averaging import WeightAverage
from experiments.training.folder import TrainingFolder
from models import Segmenter

_DIGEST_LENGTH = hashlib.sha256().digest_size
_KEYS = {
    "digest",
    "step",
    "history",
    "stretches",
    "recent",
    "model",
    "average",
    "optimizer",
    "scaler",
    "random",
    "cuda_random",
}


class TrainingState:
    """Model, optimizer, step, history and random generators, and how they are kept.

    Args:
        folder: of the training.
        digest: of all that the training is a function of; a checkpoint of another one is not resumed.
        model: whose weights are saved and restored.
        average: of the weights, likewise.
        optimizer: likewise.
        scaler: of the loss in half precision, likewise.
        devices: where the model is.
    """

    def __init__(
        self,
        folder: TrainingFolder,
        digest: str,
        model: Segmenter,
        average: WeightAverage,
        optimizer: optim.Optimizer,
        scaler: torch.amp.GradScaler,
        devices: Devices,
    ):
        self.folder = folder
        self.digest = digest
        self.model = model
        self.average = average
        self.optimizer = optimizer
        self.scaler = scaler
        self.devices = devices
        self.step = 0
        """Steps taken so far."""
        self.history: list[dict[str, float]] = []
        """Rows of ``history.csv``."""
        self.stretches: list[tuple[int, int]] = []
        """First step and number of processes of each stretch in which as many did the training."""
        self.recent: list[dict[str, Tensor]] = []
        """Loss terms of the steps since the last row, scalars on the device."""

    def save(self) -> None:
        """Writes a checkpoint, and keeps the one before."""
        state = {
            "digest": self.digest,
            "step": self.step,
            "history": self.history,
            "stretches": self.stretches,
            "recent": self.recent,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.devices.device) if self.devices.on_gpu else None,
        }
        # Through memory: torch's own file writer does not say that a disk is full.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        if self.folder.checkpoint.is_file():
            os.replace(self.folder.checkpoint, self.folder.previous_checkpoint)

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                file.write(hashlib.sha256(content).digest())
                file.write(content)

        storage.write(self.folder.checkpoint, write)

    def resume(self, say: Callable[[str], None]) -> int:
        """Restores the newest whole checkpoint of this very training, if there is one.

        Args:
            say: is told of a checkpoint that is damaged.

        Returns:
            The number of steps that it holds, 0 without one.

        Raises:
            StageError: a checkpoint holds something else than its digest promises.
        """
        for path in (self.folder.checkpoint, self.folder.previous_checkpoint):
            try:
                state = read_checkpoint(path)
            except FileNotFoundError:
                continue
            except ValueError as error:
                say(f"{path}: {error}; going on from the one before it, or from the beginning")
                continue
            if state["digest"] == self.digest:
                try:
                    self._restore(state)
                except Exception as error:  # its checksum is right: somebody made it so
                    problem = f"does not fit this training ({storage.reason(error)}); remove it"
                    raise StageError(f"{path}: {problem}") from None
                return self.step
        return 0

    def begin_stretch(self) -> None:
        """Notes how many processes do what follows: sums over a batch depend on it in their last digits."""
        if not self.stretches or self.stretches[-1][1] != self.devices.world_size:
            self.stretches.append((self.step, self.devices.world_size))

    def _restore(self, state: dict[str, Any]) -> None:
        self.step = index(state["step"])
        self.history = [{**row, "loss": float(row["loss"])} for row in state["history"]]
        self.stretches = [(index(first), index(processes)) for first, processes in state["stretches"]]
        self.recent = [
            {name: term.to(self.devices.device) for name, term in terms.items()} for terms in state["recent"]
        ]
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"] is not None and self.devices.on_gpu:
            torch.cuda.set_rng_state(state["cuda_random"], self.devices.device)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What ``TrainingState.save`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ValueError(f"cannot be read ({storage.reason(error)})") from None
    if hashlib.sha256(content[_DIGEST_LENGTH:]).digest() != content[:_DIGEST_LENGTH]:
        raise ValueError("is damaged")
    file = io.BytesIO(content[_DIGEST_LENGTH:])
    try:
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ValueError("is compressed, which could fill the memory")
        file.seek(0)
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        if not (isinstance(state, dict) and set(state) >= _KEYS):
            raise ValueError("lacks a part")
    except Exception as error:  # what reading raises depends on what somebody put there
        raise ValueError(f"is no checkpoint of this edition ({storage.reason(error)})") from None
    return state
