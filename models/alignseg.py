"""AlignSeg: Feature-Aligned Segmentation Networks (Huang et al., TPAMI 2021, arXiv 2003.00872).

The architecture was read in the authors' repository, parameter by parameter; a checkpoint that
they released loads by ``models.load_released``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from torch import Tensor, nn

from models import backbones
from models.parts.alignment import Alignment, FeatureAlignment
from models.parts.context import ContextKind, create_context, leaky_relu
from models.parts.layers import ConvNormAct, upsample
from models.released import ReleasedFormat
from models.segmenter import Prediction, Segmenter, check_images

Shifted = Literal["both", "deep", "none"]
"""Which features AlignFA shifts before it adds them."""


class ResidualRefinement(nn.Module):
    """Brings a feature to C channels and refines it, before and after every aggregation.

    1x1 convolution, a residual of two 3x3 convolutions through C/4 channels, norm, leaky ReLU.
    """

    def __init__(self, in_channels: int, channels: int):
        super().__init__()
        self.unify = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.residual = nn.Sequential(
            ConvNormAct(channels, channels // 4, 3, activation=leaky_relu),
            nn.Conv2d(channels // 4, channels, 3, padding=1, bias=False),
        )
        self.norm = nn.BatchNorm2d(channels)
        self.activation = leaky_relu()

    def forward(self, features: Tensor) -> Tensor:
        """Features (N, in_channels, h, w) to (N, C, h, w)."""
        features = self.unify(features)
        residual = self.residual(features)
        residual += features  # in place: at 1024 x 2048 a fresh 135 MB costs more than the sum
        refined: Tensor = self.activation(self.norm(residual))
        return refined


class AlignFA(nn.Module):
    """One step of Aligned Feature Aggregation: takes a deeper feature into the running one.

    Args:
        in_channels: of the deeper feature.
        channels: C, of the running feature.
        shifted: which of the two features is shifted; ``none`` leaves bilinear upsampling.
        alignment: unit and grid of the offsets.
    """

    def __init__(self, in_channels: int, channels: int, shifted: Shifted, alignment: Alignment):
        super().__init__()
        features: dict[Shifted, tuple[Literal["deep", "shallow"], ...]] = {
            "both": ("deep", "shallow"),
            "deep": ("deep",),
            "none": (),
        }
        self.refine_deep = ResidualRefinement(in_channels, channels)
        self.align = FeatureAlignment(channels, features[shifted], alignment)
        self.refine_sum = ResidualRefinement(channels, channels)

    def forward(self, running: Tensor, deep: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Running (N, C, H, W) and deep (N, in_channels, h, w) to the next running feature.

        Returns:
            (N, C, H, W), and the offset maps (N, 2, H, W) of the ``deep`` and the ``shallow``
            (running) feature in pixels of the running feature.
        """
        total, offsets = self.align(running, self.refine_deep(deep))
        return self.refine_sum(total), offsets


def segmentation_head(channels: int, num_classes: int) -> nn.Sequential:
    """3x3 convolution, norm, leaky ReLU, dropout of whole channels, 1x1 convolution to classes."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        leaky_relu(),
        nn.Dropout2d(0.1),
        nn.Conv2d(channels, num_classes, 1),
    )


class AlignSeg(Segmenter):
    """Aggregates backbone features from shallow to deep, and a context last, all at 1/4 size.

    ``maps`` holds the offset fields (N, 2, h, w) of every step, x before y, in pixels of the
    step's output: ``offset_<level>_deep`` and ``offset_<level>_shallow`` of the AlignFA steps
    (level ``8``, ``16``, ``32``, ``context``) in pixels of the 1/4 map, ``offset_aligncm`` in
    pixels of the 1/32 map.

    Any height and width works in evaluation mode. In training, batch norm needs more than one value per
    channel: a batch of one has to be larger than 32 pixels on a side, and a context that pools the map to
    one pixel (``gap``, ``ppm``, ``aspp``, ``context_size=1``) takes two images or more.

    Args:
        num_classes: K, at least 1.
        backbone: with the deep stem of the authors (``resnet101s``, ``resnet50s``, ``resnet18s``)
            this is their network; any backbone with features at strides 4, 8, 16 and 32 works.
        pretrained: ImageNet weights of the backbone: from the hub, or from the file at a path.
        align_fa: which features AlignFA shifts; ``none`` puts plain bilinear upsampling in its
            place, ``deep`` leaves the shallow feature where it is.
        context: the module on the deepest feature; ``aligned`` is AlignCM.
        context_size: rows and columns that AlignCM pools its context to; no other context uses it.
        alignment: ``corrected`` makes an offset of one a pixel of the output; ``released`` is the
            form that the authors' checkpoints were trained with.
        auxiliary_weight: of the loss on the prediction after the 1/16 level (the authors: 0.1,
            with OHEM 0.4); 0 builds no auxiliary head.
        channels: C, width of the decoder; by default an eighth of the deepest feature's, which is
            the authors' 256 on a ResNet-50 or -101 and 64 on a ResNet-18.

    Raises:
        ValueError: a value outside these ranges, named.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet101s",
        pretrained: bool | str = False,
        align_fa: Shifted = "both",
        context: ContextKind = "aligned",
        context_size: int = 3,
        alignment: Alignment = "corrected",
        auxiliary_weight: float = 0.1,
        channels: int | None = None,
    ):
        _check_options(align_fa, context, context_size, alignment, auxiliary_weight, channels)
        super().__init__(num_classes, {"auxiliary": auxiliary_weight})
        self.alignment = alignment
        self.backbone = backbones.create(backbone, pretrained=pretrained)
        for module in self.backbone.modules():
            if isinstance(module, nn.MaxPool2d):
                module.ceil_mode = True
        if self.backbone.strides != [4, 8, 16, 32]:
            raise ValueError(
                f"backbone is {backbone!r} with features at strides {self.backbone.strides}; "
                "expected one with strides [4, 8, 16, 32]"
            )
        shallowest, *deeper = self.backbone.channels
        channels = deeper[-1] // 8 if channels is None else channels

        self.context = create_context(context, deeper[-1], channels, context_size, alignment)
        levels = dict(zip(("8", "16", "32"), deeper, strict=True))
        if self.context is not None:
            levels["context"] = channels
        self.refine = ResidualRefinement(shallowest, channels)
        self.align_fa = nn.ModuleDict(
            {level: AlignFA(width, channels, align_fa, alignment) for level, width in levels.items()}
        )
        self.auxiliary_head = segmentation_head(channels, num_classes) if auxiliary_weight else None
        self.head = segmentation_head(channels, num_classes)

    @classmethod
    def settled_options(cls, num_classes: int, **options: Any) -> dict[str, Any]:
        """See ``Segmenter``. Only AlignCM pools its context to a size; without offsets there is no unit."""
        settled = super().settled_options(num_classes, **options)
        silent = set()
        if settled["context"] != "aligned":
            silent.add("context_size")
            if settled["align_fa"] == "none":
                silent.add("alignment")
        return {name: value for name, value in settled.items() if name not in silent}

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width.

        In training mode ``auxiliary`` has the scores after the 1/16 level, at the images' size.
        """
        check_images(images)
        size = images.shape[-2:]
        features = self.backbone(images)
        maps: dict[str, Tensor] = {}
        auxiliary: dict[str, Tensor] = {}
        if self.context is not None:
            context, offsets = self.context(features[-1])
            features.append(context)
            maps.update((f"offset_{name}", field.detach()) for name, field in offsets.items())

        # Features leave the list as they are used: at 1024 x 2048 each is up to 135 MB.
        running = self.refine(features.pop(0))
        for level, step in self.align_fa.items():
            running, offsets = step(running, features.pop(0))
            maps.update((f"offset_{level}_{name}", field.detach()) for name, field in offsets.items())
            if level == "16" and self.auxiliary_head is not None and self.training:
                # Upsampled here because the authors align the corners, which the loss does not.
                auxiliary["auxiliary"] = upsample(self.auxiliary_head(running), size, align_corners=True)
        return Prediction(upsample(self.head(running), size, align_corners=True), auxiliary, maps)

    def released_format(self) -> ReleasedFormat:
        """See ``Segmenter``.

        The norms of the authors' network, the backbone's included, scale by |weight| + eps (they are in-place
        activated ones). That is what a weight becomes here, negative or not; training it further may take it
        through zero, which theirs never gets to.
        """
        if self.alignment != "released":
            raise ValueError(
                f"AlignSeg: alignment is {self.alignment!r}, and the authors' checkpoints were trained with "
                "'released'; create the model with alignment='released'"
            )
        return ReleasedFormat(
            {
                r"layer(\d)": "backbone.trunk.layer{0}",  # timm names the inside of a ResNet's stages alike
                **{re.escape(theirs): ours for theirs, ours in _RELEASED_MODULES.items()},
            },
            self._released_value,
            {r"^(auxiliary_)?head\.4\.": ("num_classes", 0)},
        )

    def _released_value(self, name: str, tensor: Tensor) -> Tensor:
        module, _, kind = name.rpartition(".")
        norm = self.get_submodule(module)
        if kind == "weight" and isinstance(norm, nn.BatchNorm2d):
            return tensor.abs() + norm.eps
        return tensor


def _check_options(
    align_fa: str,
    context: str,
    context_size: int,
    alignment: str,
    auxiliary_weight: float,
    channels: int | None,
) -> None:
    for option, value, choices in (
        ("align_fa", align_fa, Shifted),
        ("context", context, ContextKind),
        ("alignment", alignment, Alignment),
    ):
        if value not in get_args(choices):
            raise ValueError(f"{option} is {value!r}; expected one of {', '.join(get_args(choices))}")
    if context_size < 1:
        raise ValueError(f"context_size is {context_size}; expected at least 1 row and column")
    if auxiliary_weight < 0:
        raise ValueError(f"auxiliary_weight is {auxiliary_weight}; expected 0 (no auxiliary head) or more")
    if channels is not None and channels < 4:
        raise ValueError(
            f"channels is {channels}; expected at least 4, or none for an eighth of the backbone's"
        )


def _released_modules() -> dict[str, str]:
    """The authors' modules outside the backbone's stages, and what they are called here."""
    embedding = {"0": "0.0", "1": "0.1", "2": "1.0", "3": "1.1"}
    pooled_embedding = {"1": "1.0", "2": "1.1", "3": "2.0", "4": "2.1"}
    branch = {"0": "reduce", "1": "norm", "2": "predict"}
    refinement = {
        "unify": "unify",
        "residual.0": "residual.0.0",
        "residual.1": "residual.0.1",
        "residual.2": "residual.1",
        "norm": "norm",
    }
    head = {"0": "0", "1": "1", "3": "4"}
    blocks: list[tuple[str, str, Mapping[str, str]]] = [
        ("CAM.pool", "context.context", pooled_embedding),
        ("CAM.adapt", "context.local", embedding),
        ("CAM.delta_gen", "context.offset", branch),
        ("RRB1a", "refine", refinement),
        ("dsn", "auxiliary_head", head),
        ("head", "head", head),
    ]
    for number, level in enumerate(("8", "16", "32", "context"), start=2):
        step = f"align_fa.{level}"
        blocks += [
            (f"RRB{number}a", f"{step}.refine_deep", refinement),
            (f"RRB{number}b", f"{step}.refine_sum", refinement),
            (f"CAB{number}.delta_gen1", f"{step}.align.branches.deep", branch),
            (f"CAB{number}.delta_gen2", f"{step}.align.branches.shallow", branch),
        ]
    stem = {"conv1": "conv1.0", "bn1": "conv1.1", "conv2": "conv1.3", "bn2": "conv1.4", "conv3": "conv1.6"}
    stem["bn3"] = "bn1"
    return {theirs: f"backbone.trunk.{ours}" for theirs, ours in stem.items()} | {
        f"{block}.{theirs}": f"{here}.{ours}"
        for block, here, inside in blocks
        for theirs, ours in inside.items()
    }


_RELEASED_MODULES = _released_modules()

MODEL = AlignSeg
