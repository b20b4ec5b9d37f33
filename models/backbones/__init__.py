"""Feature extractors: timm wherever timm has it, and beside it what timm has not.

``create(name)`` gives a module that maps images (N, 3, H, W) to a list of features, shallow to
deep, with their ``channels`` and ``strides``.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import timm

from models.backbones import drn
from models.backbones.base import Backbone, no_imagenet_weights
from models.backbones.densenet import DilatedDenseNet
from models.backbones.timm_models import TimmBackbone

__all__ = ["Backbone", "TimmBackbone", "check_name", "create"]

_HALF_AS_WIDE = {"channels": (32, 64, 128, 256), "stem_width": 32}
_DEEP = {"stem_type": "deep", "stem_width": 64}
_RESNETS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet18s": ("resnet18", _DEEP),
    "resnet34s": ("resnet34", _DEEP),
    "resnet18_narrow": ("resnet18", _HALF_AS_WIDE),
    "resnet18s_narrow": ("resnet18", _DEEP | _HALF_AS_WIDE),
}
"""timm has the 64-64-128 deep stem from ResNet-50 up (``resnet50s``), here are the shallow ones; and this
suite's own for runs on a CPU, half as wide. By name: timm's name and its options."""


def check_name(name: str) -> None:
    """Raises ``ValueError``, with the nearest valid name, unless ``create`` knows the backbone."""
    own = (*_RESNETS, *drn.NAMES)
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
    output_stride: int | None = None,
    **options: Any,
) -> Backbone:
    """Builds a backbone.

    Args:
        name: a timm model, ``resnet18s`` / ``resnet34s`` (deep stem), ``resnet18_narrow`` /
            ``resnet18s_narrow`` (half as wide), or one of ``drn.NAMES``.
        levels: indices of the feature levels to return; 1 to 4 are strides 4 to 32 of a ResNet, and
            4, 8, 8 and 8 of a DRN.
        pretrained: ImageNet weights from the hub (``True``) or from a local file (its path).
        output_stride: 8 or 16: the stride that the deepest features stop at, with dilation in place of the
            strides that are left out. By default the model's own, and a DRN always keeps its 8.
        options: further keywords of the timm model; a DRN has none.

    Raises:
        ValueError: unknown name, a model without these feature levels or this output stride, or a weight
            file of another model.
        FileNotFoundError: no weight file at the path.
        ConnectionError: the hub cannot be reached.
    """
    check_name(name)
    if name in drn.NAMES:
        if options:
            raise ValueError(f"backbone {name!r} has no option {next(iter(options))!r}")
        network: Backbone = drn.DRN(name, levels, pretrained)
        return network
    if output_stride is not None:
        if output_stride not in (8, 16):
            raise ValueError(f"output_stride is {output_stride!r}; expected 8 or 16")
        if name.startswith("densenet"):
            return DilatedDenseNet(name, levels, pretrained, output_stride)
        options["output_stride"] = output_stride
    if name in _RESNETS:
        if pretrained is True:
            raise no_imagenet_weights(name)
        name, own_options = _RESNETS[name]
        options = own_options | options
    try:
        return TimmBackbone(name, levels, pretrained, **options)
    except TypeError as error:
        if "output_stride" not in str(error):
            raise
        raise ValueError(f"backbone {name!r} cannot stop at stride {output_stride}: {error}") from error
