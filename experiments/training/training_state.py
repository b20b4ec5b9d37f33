"""What a training needs to go on where it stopped, and its checkpoint file."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, optim

from experiments.running import storage
from experiments.running.devices import Devices
from models import Segmenter


class TrainingState:
    """Model, optimizer, step, history and random generators, with one checkpoint file.

    Args:
        path: of the checkpoint.
        identity: digests of the run's configuration and code; a checkpoint of others is not resumed.
        model: whose weights are saved and restored.
        optimizer: likewise.
        scaler: of the loss in half precision, likewise.
        devices: where the model is.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, str],
        model: Segmenter,
        optimizer: optim.Optimizer,
        scaler: torch.amp.GradScaler,
        devices: Devices,
    ):
        self.path = path
        self.identity = identity
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self.devices = devices
        self.step = 0
        """Steps taken so far."""
        self.history: list[dict[str, float]] = []
        """Rows of ``history.csv``."""
        self.recent: list[dict[str, Tensor]] = []
        """Loss terms of the steps since the last row, scalars on the device."""

    def save(self) -> None:
        """Writes the checkpoint; the old one stays whole until the new one is."""
        on_gpu = self.devices.device.type == "cuda"
        state = {
            "identity": self.identity,
            "step": self.step,
            "history": self.history,
            "recent": self.recent,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.devices.device) if on_gpu else None,
        }
        # Through memory: torch's own file writer does not say that a disk is full.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        storage.write(self.path, lambda partial: partial.write_bytes(buffer.getbuffer()))

    def resume(self) -> int:
        """Restores the checkpoint if there is one of this very run; the number of steps it holds."""
        try:
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return 0
        if state["identity"] != self.identity:
            return 0
        self.step = state["step"]
        self.history = state["history"]
        self.recent = [
            {name: term.to(self.devices.device) for name, term in terms.items()} for terms in state["recent"]
        ]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"] is not None and self.devices.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_random"], self.devices.device)
        return self.step

    def forget(self) -> None:
        """Removes the checkpoint of a training that is complete."""
        self.path.unlink(missing_ok=True)
