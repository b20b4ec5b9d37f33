"""Feature extractors: timm wherever timm has it, dilated residual networks beside it.

``create(name)`` gives a module that maps images (N, 3, H, W) to a list of features, shallow to
deep, with their ``channels`` and ``strides``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import timm
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
        FileNotFoundError: ``pretrained`` is a path and there is no file.
        ConnectionError: ``pretrained`` is true and the hub cannot be reached.
    """
    if isinstance(pretrained, str):
        check_weight_file(pretrained)
        options["pretrained_cfg_overlay"] = {"file": pretrained}
    try:
        model: nn.Module = timm.create_model(name, pretrained=bool(pretrained), **options)
    except Exception as error:
        # The hub client's own errors differ between versions and fill a screen.
        if pretrained is True and not isinstance(error, (ValueError, TypeError)):
            raise unreachable_hub(name, error) from error
        raise
    return model


def check_weight_file(path: str) -> None:
    """Raises ``FileNotFoundError`` unless there is a file of backbone weights at the path."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"backbone weights: no file {path!r}")


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
