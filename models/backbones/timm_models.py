"""Backbones that timm has, with weights from its hub or from a local file."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from models.backbones.base import Backbone, no_imagenet_weights, read_weights, unreachable_hub


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
