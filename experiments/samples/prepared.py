"""Prepared data: what ``prepare`` wrote, as the other stages read it.

``data/prepared/<profile>/<data set>/manifest.json`` lists the samples with their checksums.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from experiments.config.run import Run
from experiments.datasets.base import SPLITS, DataError, LabelClass
from experiments.datasets.preparation import settings_digest, stamp
from experiments.running import digests, storage

T = TypeVar("T")

REMEDY = "run 'python -m experiments.prepare'"
_READ_ALL = "run 'python -m experiments.prepare --again'"


@dataclass(frozen=True)
class Sample:
    """A checked pair: an RGB image, and labels as one channel of class indices."""

    name: str
    image: Path
    labels: Path
    checksums: tuple[str, str] | None = None
    """Of the pixels of both, as ``prepare`` found them; ``None`` for a pair that it has not seen."""


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
                classes=tuple(
                    LabelClass(_check_type(c["name"], str), _colour(c["colour"])) for c in manifest["classes"]
                ),
                mean=_three(train["mean"]),
                std=_three(train["std"]),
                train=_split(folder, train),
                val=_split(folder, manifest["splits"]["val"]),
                _folder=folder,
                _manifest=manifest,
            )
        except (KeyError, TypeError, AttributeError, ValueError, IndexError):
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
                        raise DataError(f"{self._folder / sample[kind]}: has gone; {_READ_ALL}")


def _split(folder: Path, described: dict[str, Any]) -> PreparedSplit:
    """A split of a manifest; what is wrong with it raises one of the errors that ``load`` tells."""
    samples = described["samples"]
    for sample in samples:
        for path, size, time, content in sample["files"]:
            _check_type(path, str), _check_type(size, int), _check_type(time, int), _check_type(content, str)
    if not samples:
        raise ValueError
    return PreparedSplit(
        _check_type(described["released"], str),
        _check_type(described["digest"], str),
        [_check_type(count, int) for count in described["class_pixels"]],
        [
            # An image that needed no change stays where the data set keeps it.
            Sample(
                _check_type(s["name"], str),
                _inside(folder, s["image"]) if "image" in s else Path(s["files"][0][0]),
                _inside(folder, s["labels"]),
                (_check_type(s["image_sha256"], str), _check_type(s["labels_sha256"], str)),
            )
            for s in samples
        ],
    )


def _three(values: Any) -> tuple[float, float, float]:
    first, second, third = (float(_check_type(value, float)) for value in values)
    return first, second, third


def _colour(values: Any) -> tuple[int, int, int]:
    red, green, blue = (_check_type(value, int) for value in values)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError
    return red, green, blue


def _inside(folder: Path, name: Any) -> Path:
    """A path below the folder, which a manifest from elsewhere may not leave."""
    path = Path(name)
    if ".." in path.parts or path.is_absolute():
        raise ValueError
    return folder / path


def _check_type(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError
    return value
