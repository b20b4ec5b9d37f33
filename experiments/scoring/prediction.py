"""Predictions for pictures of one's own: label files, colours, and overlays."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import ValidationError
from tqdm import tqdm

from experiments import datasets
from experiments.config.params import Params
from experiments.config.protocol import Protocol
from experiments.config.recipes import Recipe
from experiments.config.strict import ConfigError
from experiments.datasets.base import DataError, LabelClass, Pixels, read_photograph
from experiments.datasets.cityscapes import LABEL_IDS
from experiments.datasets.cityscapes_classes import CLASSES as CITYSCAPES
from experiments.datasets.preparation import resize
from experiments.running import stopping, storage
from experiments.running.devices import Devices
from experiments.running.errors import ExpectedError, StageError
from experiments.samples.network_input import NetworkInput
from experiments.scoring import networks
from experiments.scoring.networks import ScoreMaps
from experiments.scoring.pictures import coloured, label_picture, overlay
from experiments.scoring.protocols import predict
from experiments.scoring.slices import NetworkFile
from experiments.training.folder import TrainingFolder

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")
_CITYSCAPES_NAME = re.compile(r"([^_/]+_\d{6}_\d{6})(_.*)?")
_READ_AHEAD = 2


@dataclass(frozen=True)
class Predictor:
    """A network with all that it takes to use it."""

    network: NetworkFile
    classes: tuple[LabelClass, ...]
    network_input: NetworkInput
    recipe: Recipe
    """Whose protocols are used."""
    image_size: tuple[int, int] | None = None
    """Height and width that images were shrunk to for training; ``None`` if they kept their own."""

    def protocol(self, kind: str) -> Protocol:
        """The recipe's ``single`` or ``multi`` scale protocol.

        Raises:
            ConfigError: the recipe has no multi-scale one.
        """
        if kind == "single":
            return self.recipe.single_scale
        if self.recipe.multi_scale is None:
            raise ConfigError("--protocol multi: the recipe states no multi_scale protocol; take single")
        return self.recipe.multi_scale


def of_training_folder(folder: TrainingFolder) -> Predictor:
    """A trained network, from the folder of its training alone.

    Raises:
        StorageError: the folder holds no finished training.
        StageError: its ``run.json`` is of another edition.
    """
    about = folder.read_about()
    remedy = "train it again"
    try:
        classes = tuple(LabelClass(c["name"], tuple(c["colour"])) for c in about["classes"])
        network = NetworkFile(
            about["model"], about["options"], len(classes), folder.weights, released=False, remedy=remedy
        )
        network_input = NetworkInput(**about["network_input"])
        # As JSON: strict about scalars, while a list is what JSON has for a tuple.
        recipe = Recipe.model_validate(about["recipe"])
        size = about["image_size"]
        image_size = None if size is None else (int(size[0]), int(size[1]))
    except (KeyError, TypeError, ValidationError) as error:
        raise StageError(
            f"{folder.about}: does not say how to build the network ({type(error).__name__}); {remedy}"
        ) from None
    return Predictor(network, classes, network_input, recipe, image_size)


def of_checkpoint(params: Params, key: str, checkpoint: Path) -> Predictor:
    """The paper's own network, with weights that its authors released.

    Raises:
        ConfigError: there is no such experiment or file.
    """
    run = params.run(key)
    if not checkpoint.is_file():
        raise ConfigError(f"--checkpoint: no file '{checkpoint}'")
    dataset = run.experiment.dataset
    classes = datasets.classes(dataset, run.profile.datasets.get(dataset))
    remedy = f"expected a checkpoint of the network of experiment '{key}'"
    network = NetworkFile(
        run.experiment.model, run.experiment.options, len(classes), checkpoint, released=True, remedy=remedy
    )
    return Predictor(network, classes, NetworkInput.of_pretrained(run.paper_recipe), run.paper_recipe)


def find_images(given: Sequence[Path]) -> dict[Path, Path]:
    """Image files by the path, relative to the output folder and without ending, that they are written to.

    Args:
        given: files, and folders whose pictures are taken, those in folders below as well.

    Raises:
        DataError: there is no such file, no picture in a folder, or two would be written to one file.
    """
    found: dict[Path, Path] = {}
    for place in given:
        if place.is_dir():
            files = sorted(f for f in place.rglob("*") if f.suffix.lower() in _ENDINGS and f.is_file())
            if not files:
                raise DataError(f"{place}: holds no pictures; expected files ending in {', '.join(_ENDINGS)}")
        elif place.is_file():
            files = [place]
        else:
            raise DataError(f"{place}: no such file or folder")
        for file in files:
            name = (file.relative_to(place) if place.is_dir() else Path(file.name)).with_suffix("")
            if name in found:
                raise DataError(f"{file}: would be written to the same files as {found[name]}; rename one")
            found[name] = file
    return found


def predict_images(
    predictor: Predictor,
    protocol: Protocol,
    devices: Devices,
    images: dict[Path, Path],
    save: Callable[[Path, Pixels, Pixels], None],
) -> dict[Path, str]:
    """Predicts images one after the other, reading the next and writing the last ones meanwhile.

    Args:
        predictor: with what.
        protocol: how.
        devices: on which.
        images: as ``find_images`` gives them.
        save: takes a name, an image (H, W, 3) and its class indices (H, W).

    Returns:
        Why an image has no prediction, by its file; the others have been written.

    Raises:
        Stopped: it was asked to stop.
    """
    model = networks.load(predictor.network).to(devices.device)
    network = ScoreMaps(model, devices, protocol.precision)
    failed: dict[Path, str] = {}
    with ThreadPoolExecutor(2) as pool, tqdm(total=len(images), unit="image", desc="predict") as progress:
        written: deque[Future[None]] = deque()
        for name, file, reading in _read_ahead(pool, images):
            if stopping.requested():
                raise stopping.Stopped(f"after {progress.n} of {len(images)} images")
            try:
                image = reading.result()
                labels = _labels(predictor, network, protocol, devices, image)
            except ExpectedError as error:
                failed[file] = str(error)
            except (torch.OutOfMemoryError, MemoryError):
                failed[file] = f"{file}: too large for the memory of {devices.description}; make it smaller"
            else:
                written.append(pool.submit(save, name, image, labels))
            if len(written) > _READ_AHEAD:
                written.popleft().result()
            progress.update()
        for each in written:
            each.result()
    return failed


def save_pictures(out: Path, classes: Sequence[LabelClass]) -> Callable[[Path, Pixels, Pixels], None]:
    """Writes ``labels/``, ``colours/`` and ``overlays/`` below a folder."""

    def save(name: Path, image: Pixels, labels: Pixels) -> None:
        pictures = {
            "labels": label_picture(labels, classes),
            "colours": Image.fromarray(coloured(labels, classes)),
            "overlays": Image.fromarray(overlay(image, labels, classes)),
        }
        for folder, picture in pictures.items():
            _write(out / folder / name.with_name(f"{name.name}.png"), picture)

    return save


def save_for_cityscapes(
    out: Path, classes: Sequence[LabelClass], names: Sequence[Path]
) -> Callable[[Path, Pixels, Pixels], None]:
    """Writes label ids under the names that the Cityscapes test server takes.

    Raises:
        ConfigError: the network's classes are not those of Cityscapes, or a picture's name has no city,
            sequence and frame.
    """
    if [c.name for c in classes] != [c.name for c in CITYSCAPES]:
        raise ConfigError(
            f"--for cityscapes-server: the network has {len(classes)} classes that are not the "
            f"{len(CITYSCAPES)} of Cityscapes; take one that is trained on it"
        )
    for name in names:
        if not _CITYSCAPES_NAME.fullmatch(name.name):
            raise ConfigError(
                f"--for cityscapes-server: picture '{name.name}'; expected a name like "
                "berlin_000000_000019_leftImg8bit"
            )
    ids = np.array(LABEL_IDS, np.uint8)

    def save(name: Path, image: Pixels, labels: Pixels) -> None:  # noqa: ARG001 (as ``save_pictures``)
        match = _CITYSCAPES_NAME.fullmatch(name.name)
        _write(out / f"{match[1] if match else name.name}_pred_labelIds.png", Image.fromarray(ids[labels]))

    return save


def _read_ahead(
    pool: ThreadPoolExecutor, images: dict[Path, Path]
) -> Iterator[tuple[Path, Path, Future[Pixels]]]:
    waiting: deque[tuple[Path, Path, Future[Pixels]]] = deque()
    for name, file in images.items():
        waiting.append((name, file, pool.submit(read_photograph, file)))
        if len(waiting) > _READ_AHEAD:
            yield waiting.popleft()
    yield from waiting


def _labels(
    predictor: Predictor, network: ScoreMaps, protocol: Protocol, devices: Devices, image: Pixels
) -> Pixels:
    """Class indices (H, W) of an image (H, W, 3)."""
    tensor = torch.from_numpy(_as_trained(image, predictor.image_size).copy()).permute(2, 0, 1)
    inputs = predictor.network_input.normalise(tensor)[None].to(devices.device)
    scores = predict(lambda x: network(x)[0], inputs, protocol, (image.shape[0], image.shape[1]))
    labels: Any = scores[0].argmax(0).to(torch.uint8).cpu().numpy()
    return labels  # type: ignore[no-any-return]


def _as_trained(image: Pixels, size: tuple[int, int] | None) -> Pixels:
    """Shrinks an image until its short side is that of the training images; its shape stays."""
    height, width = image.shape[:2]
    factor = 1.0 if size is None else min(size) / min(height, width)
    if factor >= 1:
        return image
    shrunk = (round(height * factor), round(width * factor))
    return resize(image, shrunk, Image.Resampling.BILINEAR)


def _write(path: Path, picture: Image.Image) -> None:
    storage.write(path, lambda partial: picture.save(partial, "PNG", compress_level=1))
