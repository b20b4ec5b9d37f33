"""Pairs that are decoded once: the store that every training of a machine reads from."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torchvision import tv_tensors

from experiments.datasets.base import DataError, read_image, read_labels
from experiments.datasets.preparation import checksum
from experiments.running import paths, storage
from experiments.samples.prepared import REMEDY, PreparedSplit, Sample

_IN_A_FOLDER = 1000
"""Files; whoever writes one lists those beside it."""

_LEFT_FREE = 2 << 30
"""Bytes of the disk that the store leaves to others."""

Pair = tuple[tv_tensors.Image, tv_tensors.Mask]
"""Image (3, H, W) and labels (H, W), both uint8."""


class DecodedPairs:
    """The pairs of a split, which are decoded when they are first asked for and then kept on disk.

    A kept pair is mapped into memory: the operating system reads the parts that are used, and holds as many
    pairs as there is room for, once for all processes. Where the disk is nearly full, that is told, and pairs
    are decoded each time from then on: what is left is for checkpoints.

    Args:
        split: whose pairs; its content names the folder.
        keep: whether to keep them.
    """

    def __init__(self, split: PreparedSplit, keep: bool):
        self.samples = split.samples
        self._folder = paths.DECODED / split.digest[:32] if keep else None

    def read(self, index: int) -> Pair:
        """A pair, by its place in the split. Nothing may change it in place.

        Raises:
            DataError: a file has gone or does not decode since it was prepared, or has other pixels.
        """
        if self._folder is None:
            return read_pair(self.samples[index])
        path = self._folder / str(index // _IN_A_FOLDER) / f"{index}.safetensors"
        try:
            with safe_open(path, "pt") as kept:
                return _pair(kept.get_tensor("image"), kept.get_tensor("labels"))
        except (OSError, SafetensorError):  # there is none yet, or a broken one
            image, labels = _decode(self.samples[index])
        _check_pixels(self.samples[index], image, labels)
        try:
            _check_room(self._folder)
            storage.write_bytes(path, save({"image": image, "labels": labels}))
        except storage.StorageError as error:
            print(f"{error}; until then pairs are decoded each time", flush=True)
            self._folder = None
        return _pair(image, labels)


def read_pair(sample: Sample) -> Pair:
    """Decodes a pair.

    Raises:
        DataError: a file has gone or does not decode since it was prepared.
    """
    return _pair(*_decode(sample))


def _decode(sample: Sample) -> tuple[Tensor, Tensor]:
    """Image (H, W, 3) and labels (H, W)."""
    image, labels = read_image(sample.image), read_labels(sample.labels)
    return torch.from_numpy(image.copy()), torch.from_numpy(labels.copy())


def _check_pixels(sample: Sample, image: Tensor, labels: Tensor) -> None:
    """A pair that is kept is read for as long as the split has its digest, so it has to be the split's."""
    if sample.checksums is None:
        return
    for path, pixels, known in zip(
        (sample.image, sample.labels), (image, labels), sample.checksums, strict=True
    ):
        if checksum(pixels.numpy()) != known:
            raise DataError(f"{path}: has changed since it was prepared; {REMEDY}")


def _check_room(folder: Path) -> None:
    if folder.exists() and shutil.disk_usage(folder).free < _LEFT_FREE:
        raise storage.StorageError(
            f"{folder}: less than {_LEFT_FREE >> 30} GiB of the disk are free; remove what is not needed"
        )


def _pair(image: Tensor, labels: Tensor) -> Pair:
    return tv_tensors.Image(image.permute(2, 0, 1)), tv_tensors.Mask(labels)
