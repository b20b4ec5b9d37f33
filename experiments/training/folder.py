"""The folder of a training, ``results/<profile>/train/<experiment>/seed-<n>/``, and when it is done.

A finished training is never deleted by a stage. One of other settings that is in the way is moved to
``earlier/`` beside it, and comes back when the settings do.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.running import storage

EARLIER = "earlier"
"""Folder, beside an experiment's seeds, of its finished trainings of other settings."""


@dataclass(frozen=True)
class TrainingFolder:
    """Where a training keeps its files."""

    path: Path

    @property
    def about(self) -> Path:
        """Provenance and digest; written last, so that a folder that has it is complete."""
        return self.path / "run.json"

    @property
    def weights(self) -> Path:
        """The trained weights."""
        return self.path / "weights.safetensors"

    @property
    def history(self) -> Path:
        """Loss terms and learning rate; grows while it trains."""
        return self.path / "history.csv"

    @property
    def checkpoint(self) -> Path:
        """Of a training that is not done."""
        return self.path / "checkpoint.pt"

    @property
    def previous_checkpoint(self) -> Path:
        """The one before, for when the newest is damaged."""
        return self.path / "checkpoint-previous.pt"

    def digest(self) -> str | None:
        """Digest of the finished training that the folder holds; ``None`` if it holds none."""
        try:
            digest = storage.read_json(self.about, "")["digest"]
        except (storage.StorageError, KeyError, TypeError):
            return None
        return digest if isinstance(digest, str) and self.weights.is_file() else None

    def read_about(self) -> dict[str, Any]:
        """What ``run.json`` says.

        Raises:
            StorageError: it is missing or broken.
        """
        about: dict[str, Any] = storage.read_json(self.about, "train it again")
        return about

    def make_room(self, digest: str) -> None:
        """Moves a finished training of another digest out of the way."""
        found = self.digest()
        if found is None or found == digest:
            return
        earlier = self.path.parent / EARLIER
        earlier.mkdir(exist_ok=True)
        storage.replace_folder(self.path, earlier / f"{self.path.name}-{found[:16]}")

    def bring_back(self, found: TrainingFolder) -> None:
        """Takes the place of this folder with a training that had been moved out of the way."""
        if self.path.exists():
            self.make_room(digest="")
        if self.path.exists():
            storage.replace_folder(found.path, self.path)  # what is there was never finished
        else:
            os.replace(found.path, self.path)


class Trainings:
    """The finished trainings of a profile, found by their digests.

    Args:
        place: the profile's folder of trainings.
    """

    def __init__(self, place: Path):
        self.place = place
        self._by_digest: dict[str, TrainingFolder] = {}
        for pattern in (f"*/{EARLIER}/*/run.json", "*/seed-*/run.json"):
            for about in sorted(place.glob(pattern)):
                folder = TrainingFolder(about.parent)
                digest = folder.digest()
                if digest is not None:
                    self._by_digest[digest] = folder

    def find(self, digest: str) -> TrainingFolder | None:
        """The finished training of this digest, wherever it is."""
        return self._by_digest.get(digest)

    def earlier(self) -> list[TrainingFolder]:
        """Those of other settings than they were last asked for."""
        return [folder for folder in self._by_digest.values() if folder.path.parent.name == EARLIER]
