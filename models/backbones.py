"""Feature extractors: timm wherever timm has it, dilated residual networks beside it.

``create(name)`` gives a module that maps images (N, 3, H, W) to a list of features, shallow to
deep, with their ``channels`` and ``strides``.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from torch import Tensor, nn


class Backbone(nn.Module):
    """A trunk and what its feature levels look like."""

    channels: list[int]
    """Channels of each level, shallow to deep."""
    strides: list[int]
    """Input pixels per feature pixel of each level."""

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) to features (N, channels[i], ~H / strides[i], ~W / strides[i])."""
        raise NotImplementedError


class TimmBackbone(Backbone):
    """Any timm model with ``features_only``."""

    def __init__(self, name: str, levels: Sequence[int], pretrained: bool | str, **options: Any):
        super().__init__()
        self.trunk = timm_features(name, levels, pretrained, **options)
        feature_info: Any = self.trunk.feature_info
        self.channels = list(feature_info.channels())
        self.strides = list(feature_info.reduction())

    def forward(self, images: Tensor) -> list[Tensor]:
        features: list[Tensor] = self.trunk(images)
        return features


_DEEP_STEM = {f"resnet{depth}s": f"resnet{depth}" for depth in (18, 34)}
"""timm has the 64-64-128 deep stem from ResNet-50 up (``resnet50s``); these are the shallow ones."""


def check_name(name: str) -> None:
    """Raises ``ValueError``, with the nearest valid name, unless ``create`` knows the backbone."""
    own = (*_DEEP_STEM, *_drn().NAMES)
    if name in own or timm.is_model(name):
        return
    known = [*timm.list_models(), *own]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else "any model of timm.list_models() is valid"
    raise ValueError(f"unknown backbone {name!r}; {hint}")


def create(
    name: str,
    *,
    levels: Sequence[int] = (1, 2, 3, 4),
    pretrained: bool | str = False,
    **options: Any,
) -> Backbone:
    """Builds a backbone.

    Args:
        name: a timm model, ``resnet18s`` / ``resnet34s`` (deep stem), or one of ``drn.NAMES``.
        levels: indices of the feature levels to return; 1 to 4 are strides 4 to 32 of a ResNet, and
            4, 8, 8 and 8 of a DRN.
        pretrained: ImageNet weights from the hub (``True``) or from a local file (its path).
        options: further keywords of the timm model; a DRN has none.

    Raises:
        ValueError: unknown name, a model without these feature levels, or a weight file of another
            model.
        FileNotFoundError: no weight file at the path.
        ConnectionError: the hub cannot be reached.
    """
    check_name(name)
    drn = _drn()
    if name in drn.NAMES:
        if options:
            raise ValueError(f"backbone {name!r} has no option {next(iter(options))!r}")
        network: Backbone = drn.DRN(name, levels, pretrained)
        return network
    if name in _DEEP_STEM:
        if pretrained is True:
            raise no_imagenet_weights(name)
        options = {"stem_type": "deep", "stem_width": 64, **options}
        name = _DEEP_STEM[name]
    return TimmBackbone(name, levels, pretrained, **options)


def timm_features(name: str, levels: Sequence[int], pretrained: bool | str, **options: Any) -> nn.Module:
    """A timm model as feature extractor; the arguments and errors are ``create``'s."""
    try:
        return timm_model(name, pretrained, features_only=True, out_indices=tuple(levels), **options)
    except (IndexError, AssertionError, RuntimeError) as error:
        if isinstance(error, ConnectionError):
            raise
        raise ValueError(f"backbone {name!r} has no feature levels {list(levels)}: {error}") from error


def timm_model(name: str, pretrained: bool | str, **options: Any) -> nn.Module:
    """``timm.create_model`` with ImageNet weights from the hub, from a local file, or none.

    Raises:
        ValueError: the file cannot be read or holds the weights of another model, or timm knows no
            weights of this one.
        FileNotFoundError: ``pretrained`` is a path and there is no file.
        ConnectionError: ``pretrained`` is true and the hub cannot be reached.
    """
    if isinstance(pretrained, str):
        read_weights(pretrained)
        _check_fits(name, pretrained, options)
        options["pretrained_cfg_overlay"] = {"file": pretrained}
    elif pretrained and not timm.is_model_pretrained(name):
        raise no_imagenet_weights(name)
    try:
        model: nn.Module = timm.create_model(name, pretrained=bool(pretrained), **options)
    except Exception as error:
        # The hub client's own errors differ between versions and fill a screen.
        if pretrained is True and not isinstance(error, (ValueError, TypeError)):
            raise unreachable_hub(name, error) from error
        raise
    return model


def read_weights(path: str) -> dict[str, Tensor]:
    """The tensors of a local weight file, by name.

    Raises:
        FileNotFoundError: there is no file at the path.
        ValueError: it cannot be read as weights.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"backbone weights: no file {path!r}")
    try:
        tensors: dict[str, Tensor] = load_state_dict(path)
    except Exception as error:  # what a broken file raises depends on how it is broken
        raise ValueError(f"backbone weights: {path!r} cannot be read as weights") from error
    return tensors


def _check_fits(name: str, path: str, options: dict[str, Any]) -> None:
    """Raises ``ValueError``, with the first tensor that differs, unless the file is of this model.

    timm itself is strict with whole classifiers alone, and takes what fits of any file for the rest.
    """
    whole = {k: v for k, v in options.items() if k not in ("features_only", "out_indices", "num_classes")}
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that nothing is copied to this device
            timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": path}, **whole)
    except (RuntimeError, AttributeError, KeyError) as error:
        problems = [" ".join(line.split()) for line in str(error).splitlines()]
        # The first line of load_state_dict's error only announces the others. Before it, timm looks
        # for the first convolution, which a deep stem has inside another module.
        problem = (
            "the stem differs" if not isinstance(error, RuntimeError) else problems[min(1, len(problems) - 1)]
        )
        classifier = timm.get_pretrained_cfg_value(name, "classifier")
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier or ())
        missing = re.findall(r'"([^"]+)"', problem) if problem.startswith("Missing key") else []
        if missing and len(problems) == 2 and all(key.startswith(heads) for key in missing):
            return  # only the classifier, which nothing here uses
        found = problem.rstrip(".") if len(problem) < 160 else f"{problem[:150]} ..."
        raise ValueError(
            f"backbone weights: {path!r} does not hold the weights of {name!r} ({found}); "
            "give the file of this backbone, or set 'pretrained' to false"
        ) from error


def no_imagenet_weights(name: str) -> ValueError:
    """What to raise when nobody has published ImageNet weights of ``name``."""
    return ValueError(f"there are no ImageNet weights of {name!r}; set 'pretrained' to false")


def unreachable_hub(name: str, error: Exception) -> ConnectionError:
    """What to raise when the ImageNet weights of ``name`` could not be fetched."""
    return ConnectionError(
        f"ImageNet weights of {name!r} could not be fetched from the model hub "
        f"({type(error).__name__}); download the file elsewhere and give its path as "
        "'pretrained', or set it to false"
    )


def _drn() -> ModuleType:
    """The module of dilated residual networks, which itself needs ``Backbone`` from here."""
    from models.parts import drn

    return drn
