"""Prepared data: what ``prepare`` wrote, as the other stages read it.

``data/prepared/<profile>/<data set>/manifest.json`` lists the samples with their checksums.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.run import Run
from experiments.datasets.base import SPLITS, DataError, LabelClass
from experiments.datasets.preparation import settings_digest, stamp
from experiments.running import digests, storage

REMEDY = "run 'python -m experiments.prepare'"


@dataclass(frozen=True)
class Sample:
    """A checked pair: an RGB image, and labels as one channel of class indices."""

    name: str
    image: Path
    labels: Path


@dataclass(frozen=True)
class PreparedSplit:
    """The samples of one split."""

    released: str
    """The name under which the data set was released with them."""
    digest: str
    """SHA-256: two splits with the same digest hold the same pixels and classes."""
    class_pixels: list[int]
    samples: list[Sample]


@dataclass(frozen=True)
class PreparedDataset:
    """A data set that ``prepare`` has checked."""

    name: str
    classes: tuple[LabelClass, ...]
    mean: tuple[float, float, float]
    """Of the training images' channels, in [0, 1]."""
    std: tuple[float, float, float]
    train: PreparedSplit
    val: PreparedSplit
    _folder: Path
    _manifest: dict[str, Any]

    @classmethod
    def load(cls, run: Run, name: str | None = None) -> PreparedDataset:
        """Reads the manifest of a data set.

        Args:
            run: under whose profile it is prepared.
            name: of the data set; ``None`` takes the one that the run uses.

        Raises:
            DataError: ``prepare`` has not prepared this data set, or not as params.yaml has it now.
            StorageError: the manifest is broken.
        """
        name = name or run.dataset
        folder = run.paths.prepared / name
        if not (folder / "manifest.json").is_file():
            raise DataError(f"{folder}: data set '{name}' is not prepared; {REMEDY} first")
        manifest = storage.read_json(folder / "manifest.json", f"{REMEDY} again")
        profile = run.profile
        settings = settings_digest(name, profile.datasets[name], profile.image_size)
        try:
            if manifest["made_from"]["settings"] != settings:
                raise DataError(f"{folder}: prepared from other settings than params.yaml has now; {REMEDY}")
            train = manifest["splits"]["train"]
            return cls(
                name=name,
                classes=tuple(LabelClass(c["name"], tuple(c["colour"])) for c in manifest["classes"]),
                mean=tuple(train["mean"]),
                std=tuple(train["std"]),
                train=_split(folder, train),
                val=_split(folder, manifest["splits"]["val"]),
                _folder=folder,
                _manifest=manifest,
            )
        except (KeyError, TypeError, AttributeError):
            raise DataError(f"{folder / 'manifest.json'}: not a manifest of this edition; {REMEDY}") from None

    def check_unchanged(self) -> None:
        """Looks at size and time of every file that the data came from, and at the content where they differ.

        Raises:
            DataError: a file has changed or gone since it was prepared.
        """
        for split in SPLITS:
            for sample in self._manifest["splits"][split]["samples"]:
                for path, size, time, content in sample["files"]:
                    now = stamp(Path(path))
                    if now == [path, size, time]:
                        continue
                    if now[1] is None:
                        raise DataError(f"{path}: has gone since it was prepared; {REMEDY}")
                    if now[1] != size or digests.of_file(Path(path)) != content:
                        raise DataError(f"{path}: has changed since it was prepared; {REMEDY}")
                for kind in ("image", "labels"):
                    if kind in sample and not (self._folder / sample[kind]).is_file():
                        raise DataError(f"{self._folder / sample[kind]}: has gone; {REMEDY} --again")


def _split(folder: Path, described: dict[str, Any]) -> PreparedSplit:
    return PreparedSplit(
        described["released"],
        described["digest"],
        described["class_pixels"],
        [
            # An image that needed no change stays where the data set keeps it.
            Sample(
                s["name"],
                folder / s["image"] if "image" in s else Path(s["files"][0][0]),
                folder / s["labels"],
            )
            for s in described["samples"]
        ],
    )
