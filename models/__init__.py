"""Networks only: no data, no files, no training loop.

``names()`` lists the models, ``create()`` builds one. A model is one file of this package whose
name is the model's name and which defines ``MODEL``, a ``Segmenter`` class.
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
    # Looked up in the text: importing every file to see whether it is a model costs seconds.
    return sorted(
        path.stem for path in Path(__file__).parent.glob("*.py") if "\nMODEL = " in path.read_text()
    )


def model_class(name: str) -> type[Segmenter]:
    """The class behind a model's name.

    Raises:
        ValueError: the name is not one of ``names()``; the message gives the nearest one.
    """
    if name not in names():
        raise ValueError(f"unknown model {name!r}; {nearest(name, names())}")
    cls: type[Segmenter] = importlib.import_module(f"models.{name}").MODEL
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

    Args:
        model: a model built by ``create`` in the configuration of the checkpoint.
        state_dict: the checkpoint's tensors, in the authors' names.

    Raises:
        ValueError: the authors released no checkpoint for this model, or a tensor is missing, is
            left over or has another shape; the message names it. The model is then unchanged.
    """
    rename = getattr(model, "released_names", None)
    if rename is None:
        raise ValueError(f"{type(model).__name__}: its authors' checkpoint format is not known")
    renamed = {}
    for key, tensor in state_dict.items():
        ours = rename(key)
        if ours is None:
            raise ValueError(f"released checkpoint: {key!r} has no counterpart in {type(model).__name__}")
        if ours:  # not "": a tensor that follows from the configuration, such as an index table
            renamed[ours] = tensor
    own = model.state_dict()
    for key, tensor in own.items():
        if key.endswith("num_batches_tracked"):  # absent from checkpoints older than PyTorch 0.4.1
            renamed.setdefault(key, tensor)
        if key not in renamed:
            raise ValueError(f"released checkpoint: nothing in it for {key!r}")
        if renamed[key].shape != tensor.shape:
            raise ValueError(
                f"released checkpoint: {key!r} has shape {tuple(renamed[key].shape)}, "
                f"the model needs {tuple(tensor.shape)} ({model.num_classes} classes)"
            )
    for key in renamed:
        if key not in own:
            raise ValueError(f"released checkpoint: {key!r} is not part of the model")
    model.load_state_dict(renamed)


def nearest(word: str, valid: list[str]) -> str:
    """``did you mean 'x'?`` for the likeliest of the valid words, or all of them."""
    close = difflib.get_close_matches(word, valid, n=1)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid)}"
