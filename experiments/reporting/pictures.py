"""Predictions as pictures in the page: of a baseline and of a paper's model, and where the two differ."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file

from experiments.config.params import Params
from experiments.datasets.base import IGNORE_LABEL, LabelClass, Pixels, read_image, read_labels
from experiments.reporting import maps
from experiments.reporting.evidence import Source
from experiments.reporting.papers import PaperPage
from experiments.samples.identity import Identities, identities_or_reason
from experiments.scoring.counts import digest_of
from experiments.scoring.pictures import label_picture

IMAGES = 2
"""Of each paper: enough to see, few enough for the page to open at once."""

_NONE_KEPT = "no predictions are kept; run 'python -m experiments.evaluate'"

_WIDEST = 640
"""Pixels across; the page shows a picture at 320 or more."""
_CROP = 4
"""A crop is so many times smaller than the picture along each side."""
_BAND = 4
"""Pixels from a boundary within which a crop looks for differences: the width that the claims are about."""

_OUTCOMES = ((232, 232, 232), (213, 94, 0), (255, 255, 255))
"""Of an error map: right, wrong, not labelled."""
_SIDES = ((232, 232, 232), (0, 114, 178), (213, 94, 0), (150, 150, 150), (255, 255, 255))
"""Of where two differ: both right, the model alone, the baseline alone, both wrong, not labelled."""


@dataclass(frozen=True)
class Picture:
    """A picture in the page."""

    title: str
    uri: str
    """Its content, so that the page loads nothing."""
    width: int
    """Pixels."""
    height: int


@dataclass(frozen=True)
class Comparison:
    """One image: what a baseline and a paper's model make of it, and a crop where they differ most."""

    image: str
    model: str
    baseline: str
    photograph: Picture
    labels: Picture
    predictions: list[Picture]
    """The baseline's and the model's."""
    errors: list[Picture]
    difference: Picture
    crops: list[Picture]
    """Image, labels, the baseline's and the model's."""
    classes: list[tuple[str, str]]
    """Names and colours of the classes that occur."""
    wrong: list[float]
    """Share of the labelled pixels that each gets wrong, in per cent: the baseline's and the model's."""


@dataclass(frozen=True)
class Gallery:
    """The pictures of one paper."""

    conditions: str
    comparisons: list[Comparison]
    maps_title: str
    maps_of: str
    maps: list[Picture]
    """What the model computes on the way to its prediction of the first image, which comes first."""
    classes: list[tuple[str, str]]
    missing: str
    """Why there is nothing to see."""


def galleries(params: Params, run: Source, papers: Sequence[PaperPage]) -> dict[str, Gallery]:
    """The pictures of papers, by paper: of this run, as references keep none, and of its first seed alone."""
    identities, problem = identities_or_reason(params.runs(), params.seeds[:1])
    return {page.key: _gallery(params, run, page, identities or problem) for page in papers}


def _gallery(params: Params, run: Source, page: PaperPage, identities: Identities | str) -> Gallery:
    """The pictures of one paper; without ``identities``, why there can be none."""

    def nothing(reason: str) -> Gallery:
        return Gallery(run.conditions, [], page.maps_title, page.model, [], [], reason)

    if isinstance(identities, str):
        return nothing(identities)
    if not _is_pictured(params, page.model, identities):
        scored = run.own(page.model) is not None
        return nothing(_NONE_KEPT if scored else f"{page.model}: {run.missing(page.model)}")
    data = identities.data[params.run(page.model).dataset]
    places = {key: params.paths.predictions(key) for key in (page.baseline, page.model) if key}
    shown = [
        sample
        for sample in data.val.samples
        if all((place / f"{sample.name}.png").is_file() for place in places.values())
    ]
    # The first and the last of those that are kept: neighbours in a film look alike.
    shown = [shown[place] for place in sorted({0, len(shown) - 1})][:IMAGES] if shown else []
    comparisons = []
    comparable = bool(page.baseline) and _is_pictured(params, page.baseline, identities)
    for sample in shown if comparable else []:
        labels, photograph = read_labels(sample.labels), read_image(sample.image)
        predicted = [read_labels(place / f"{sample.name}.png") for place in places.values()]
        comparisons.append(compare(sample.name, photograph, labels, predicted, list(places), data.classes))
    computed: list[Picture] = []
    present: list[tuple[str, str]] = []
    for sample in shown[:1]:
        file = places[page.model] / f"{sample.name}.safetensors"
        if file.is_file():
            labels = read_labels(sample.labels)
            predicted_labels = read_labels(places[page.model] / f"{sample.name}.png")
            own = maps.pictures(_wanted(load_file(file), page), labels, data.classes)
            computed = [
                _photograph("image", read_image(sample.image)),
                _indexed("prediction", predicted_labels, data.classes),
                *(_png(title.replace("\n", " "), Image.fromarray(rgb)) for title, rgb in own.items()),
            ]
            present = _occurring([labels, predicted_labels], data.classes)
            if not own:
                computed = []
    missing = "" if shown else _NONE_KEPT
    return Gallery(run.conditions, comparisons, page.maps_title, page.model, computed, present, missing)


def _is_pictured(params: Params, key: str, identities: Identities) -> bool:
    """Whether an experiment's pictures are its own, and of the present settings: those of its first seed."""
    identity = identities.of(key, params.seeds[0])
    if identities.same_scores_as(key, identity.seed) is not None:
        return False
    return digest_of(params.paths.counts(key, identity.seed)) == identity.scoring


def compare(
    name: str,
    photograph: Pixels,
    labels: Pixels,
    predicted: Sequence[Pixels],
    keys: Sequence[str],
    classes: Sequence[LabelClass],
) -> Comparison:
    """The pictures of one image.

    Args:
        name: of the image.
        photograph: (h, w, 3), at any size.
        labels: (H, W) class indices.
        predicted: the baseline's and the model's (H, W).
        keys: of the two experiments, likewise.
        classes: of the data set.
    """
    known = labels != IGNORE_LABEL
    right = [prediction == labels for prediction in predicted]
    errors = [np.where(known, np.where(hit, 0, 1), 2).astype(np.uint8) for hit in right]
    sides = np.where(right[0], np.where(right[1], 0, 2), np.where(right[1], 1, 3))
    difference = np.where(known, sides, 4).astype(np.uint8)
    top, left, height, width = most_different(labels, right[0] != right[1])
    box = (slice(top, top + height), slice(left, left + width))
    scale = photograph.shape[0] / labels.shape[0], photograph.shape[1] / labels.shape[1]
    photo_box = tuple(
        slice(round(part.start * factor), max(round(part.stop * factor), round(part.start * factor) + 1))
        for part, factor in zip(box, scale, strict=True)
    )
    titles = [f"{kind}: {key}" for kind, key in zip(("baseline", "model"), keys, strict=True)]
    return Comparison(
        image=name,
        model=keys[1],
        baseline=keys[0],
        photograph=_photograph("image", photograph),
        labels=_indexed("labels", labels, classes),
        predictions=[
            _indexed(title, prediction, classes) for title, prediction in zip(titles, predicted, strict=True)
        ],
        errors=[
            _flat(f"wrong pixels, {title}", error, _OUTCOMES)
            for title, error in zip(titles, errors, strict=True)
        ],
        difference=_flat("where one of the two is right", difference, _SIDES),
        crops=[
            _photograph("crop: image", photograph[photo_box]),
            _indexed("crop: labels", labels[box], classes),
            *(
                _indexed(f"crop, {title}", prediction[box], classes)
                for title, prediction in zip(titles, predicted, strict=True)
            ),
        ],
        classes=_occurring([labels, *predicted], classes),
        wrong=[100 * float((~hit & known).sum() / max(1, known.sum())) for hit in right],
    )


def most_different(labels: Pixels, differs: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The crop (top, left, height, width) with the most pixels near boundaries on which two disagree.

    Args:
        labels: (H, W) class indices.
        differs: (H, W) where exactly one of two predictions is right.
    """
    height, width = (max(1, size // _CROP) for size in labels.shape)
    counted = (differs & near_boundary(labels)).astype(np.int64)
    sums = np.pad(counted, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    boxes = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(int(boxes.argmax()), boxes.shape)
    return int(top), int(left), height, width


def near_boundary(labels: Pixels) -> NDArray[np.bool_]:
    """Pixels (H, W) at most ``_BAND`` steps from a boundary of two classes; none beside ignored pixels."""
    edge = np.zeros(labels.shape, np.bool_)
    for axis in (0, 1):
        low, high = (
            tuple(slice(*ends) if place == axis else slice(None) for place in (0, 1))
            for ends in ((None, -1), (1, None))
        )
        crossing = (labels[low] != labels[high]) & (labels[low] != IGNORE_LABEL)
        crossing &= labels[high] != IGNORE_LABEL
        edge[low] |= crossing
        edge[high] |= crossing
    for _ in range(_BAND - 1):
        grown = edge.copy()
        grown[1:] |= edge[:-1]
        grown[:-1] |= edge[1:]
        grown[:, 1:] |= edge[:, :-1]
        grown[:, :-1] |= edge[:, 1:]
        edge = grown
    return edge


def _wanted(computed: Mapping[str, Any], page: PaperPage) -> dict[str, Any]:
    """The maps that the paper shows."""
    return {name: values for name, values in computed.items() if not page.maps or name.startswith(page.maps)}


def _occurring(shown: Sequence[Pixels], classes: Sequence[LabelClass]) -> list[tuple[str, str]]:
    found = np.unique(np.concatenate([np.unique(labels) for labels in shown]))
    return [
        (classes[index].name, "#{:02x}{:02x}{:02x}".format(*classes[index].colour))
        for index in found
        if index < len(classes)
    ]


def _indexed(title: str, labels: Pixels, classes: Sequence[LabelClass]) -> Picture:
    return _png(title, label_picture(_thinned(labels), classes))


def _flat(title: str, indices: Pixels, colours: Sequence[tuple[int, int, int]]) -> Picture:
    picture = Image.fromarray(_thinned(indices))
    picture.putpalette([channel for colour in colours for channel in colour])
    return _png(title, picture)


def _thinned(labels: Pixels) -> Pixels:
    """A label map of at most ``_WIDEST`` pixels across, without mixing classes."""
    step = -(-labels.shape[1] // _WIDEST)
    return np.ascontiguousarray(labels[::step, ::step])


def _png(title: str, picture: Image.Image) -> Picture:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return _embedded(title, picture, "image/png", buffer)


def _photograph(title: str, pixels: Pixels) -> Picture:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if picture.width > _WIDEST:
        picture = picture.resize(
            (_WIDEST, round(picture.height * _WIDEST / picture.width)), Image.Resampling.LANCZOS
        )
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=88)
    return _embedded(title, picture, "image/jpeg", buffer)


def _embedded(title: str, picture: Image.Image, kind: str, buffer: io.BytesIO) -> Picture:
    uri = f"data:{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(title, uri, picture.width, picture.height)
