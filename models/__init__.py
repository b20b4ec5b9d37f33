"""Networks only: no data, no files, no training loop.

``names()`` lists the models, ``create()`` builds one. A model is one file of this package, or of ``peers`` if
it is a system that a paper's table compares with. Its name is the model's name, and it defines ``MODEL``, a
``Segmenter`` class.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from models.segmenter import IGNORE_LABEL, Prediction, Segmenter

__all__ = [
    "IGNORE_LABEL",
    "Prediction",
    "Segmenter",
    "create",
    "load_released",
    "model_class",
    "names",
]


@cache
def names() -> list[str]:
    """Names that ``create`` takes, sorted."""
    return sorted(_modules())


@cache
def _modules() -> dict[str, str]:
    """The module of each model, by its name."""
    # Looked up in the text: importing every file to see whether it is a model costs seconds.
    folder = Path(__file__).parent
    return {
        path.stem: ".".join(("models", *path.relative_to(folder).with_suffix("").parts))
        for path in (*folder.glob("*.py"), *folder.glob("peers/*.py"))
        if not path.name.startswith("_") and "\nMODEL = " in path.read_text()
    }


def model_class(name: str) -> type[Segmenter]:
    """The class behind a model's name.

    Raises:
        ValueError: the name is not one of ``names()``; the message gives the nearest one.
    """
    if name not in names():
        raise ValueError(f"unknown model {name!r}; {nearest(name, names())}")
    cls: type[Segmenter] = importlib.import_module(_modules()[name]).MODEL
    return cls


def create(name: str, num_classes: int, **options: Any) -> Segmenter:
    """Builds a model.

    Args:
        name: one of ``names()``.
        num_classes: K, at least 1.
        options: keywords of the model's constructor, such as an experiment's ``options``. Every
            model takes ``pretrained``: ``False`` (default), ``True`` (ImageNet weights from the
            hub) or the path of a local weight file for the backbone.

    Raises:
        ValueError: unknown model or option, or a value that the model cannot take.
    """
    cls = model_class(name)
    valid = [option for option in inspect.signature(cls).parameters if option != "num_classes"]
    for option in options:
        if option not in valid:
            raise ValueError(f"model {name!r} has no option {option!r}; {nearest(option, valid)}")
    return cls(num_classes, **options)


def load_released(model: Segmenter, state_dict: dict[str, Tensor]) -> None:
    """Loads a checkpoint that the paper's authors released, under their parameter names.

    The images have to be what the authors feed theirs: for SeMask RGB with ImageNet's mean and deviation,
    for AlignSeg BGR from 0 to 255 less the mean (104.00698793, 116.66876762, 122.67891434) alone.

    Args:
        model: a model built by ``create`` in the configuration of the checkpoint. AlignSeg needs
            ``alignment="released"``; SeMask's COCO-Stuff checkpoints have 171 classes and
            ``prior_classes=150``.
        state_dict: the checkpoint's tensors, in the authors' names.

    Raises:
        ValueError: the authors released no checkpoint for this model or for its options, or a tensor is
            missing, is left over or has another shape; the message names it. The model is then unchanged.
    """
    name = type(model).__name__
    released = model.released_format()
    if released is None:
        raise ValueError(f"{name}: its authors' checkpoint format is not known")
    model.load_state_dict(released.translate(state_dict, model.state_dict(), name))


def nearest(word: str, valid: list[str]) -> str:
    """``did you mean 'x'?`` for the likeliest of the valid words, or all of them."""
    close = difflib.get_close_matches(word, valid, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid)}"
