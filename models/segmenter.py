"""The one interface of every model: images in, a ``Prediction`` out, named losses from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import backbones
from models.parts.folding import fold_norms

IGNORE_LABEL = 255
"""Pixels with this label take part in no loss and in no metric."""

OFFSETS = "offsets"
"""The map (N, 2, H, W) of a learned upsampling: where each pixel of the output took its scores from, x
before y, in pixels of the output, relative to its own place. A model that has it has ``SCORES`` too."""
SCORES = "scores"
"""The map (N, K, h, w) of class scores that a learned upsampling sampled. Bilinear upsampling of it is
the same network without the offsets."""

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Logits (N, K, H, W) and labels (N, H, W) to a scalar loss."""


@dataclass
class Prediction:
    """What a model says about a batch of images (N, 3, H, W)."""

    logits: Tensor
    """(N, K, H, W) class scores at the input's own resolution."""
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    """Class scores (N, K, h, w) that only training supervises, at their own resolution. Empty
    in evaluation mode."""
    maps: dict[str, Tensor] = field(default_factory=dict)
    """What the paper shows in its figures: attention, offsets in output pixels, priors. ``OFFSETS`` and
    ``SCORES`` are the names that other code looks for."""


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled pixels, in float32; zero where none is labelled.

    ``F.cross_entropy`` divides by the number of labelled pixels and gives NaN for a crop in which
    every pixel is ignored, which random crops of real data do produce.

    Args:
        logits: (N, K, H, W), any floating type.
        labels: (N, H, W) int64 in [0, K) or ``IGNORE_LABEL``.
    """
    valid = (labels != IGNORE_LABEL).sum()
    logits = logits.float()
    if logits.is_contiguous(memory_format=torch.channels_last):
        # As rows of classes, because torch transposes a copy of a channels-last map: a transformer's
        # loss at 512 x 512 with 150 classes took half the time, forward and backward.
        logits, labels = logits.movedim(1, -1).flatten(0, -2), labels.flatten()
    total = F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="sum")
    return total / valid.clamp(min=1)


class Segmenter(nn.Module):
    """Base of every model.

    A model implements ``forward`` and names, in ``auxiliary_weights``, which of its auxiliary maps
    are supervised and how much. A model whose training objective is not a sum of per-pixel losses
    overrides ``loss``.

    Args:
        num_classes: K, at least 1.
        auxiliary_weights: weight of the loss on each map in ``Prediction.auxiliary``, by name.
    """

    training_only: ClassVar[frozenset[str]] = frozenset()
    """Options that the network at test does not depend on, such as the weight of a loss."""
    inference_only: ClassVar[frozenset[str]] = frozenset()
    """Options that training does not depend on."""

    def __init__(self, num_classes: int, auxiliary_weights: Mapping[str, float] | None = None):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; a model needs at least 1 class")
        self.num_classes = num_classes
        self.auxiliary_weights = dict(auxiliary_weights or {})
        self.criterion: Criterion = cross_entropy
        """Loss on the main logits; a recipe may name another (OHEM, class-balanced)."""

    @classmethod
    def check_backbone(cls, name: str) -> None:
        """Raises ``ValueError``, with the nearest valid name, unless the model knows the backbone."""
        backbones.check_name(name)

    @classmethod
    def settled_options(cls, num_classes: int, **options: Any) -> dict[str, Any]:  # noqa: ARG003
        """The options with every default, and without those that have no effect beside the others.

        Two sets of options that settle to the same are the same network. A model with options that
        silence each other overrides this.

        Args:
            num_classes: K.
            options: some of the constructor's keywords.
        """
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(cls).parameters.items()
            if name not in ("num_classes", "pretrained")
        }
        return defaults | options

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        raise NotImplementedError

    def for_inference(self) -> Self:
        """The network in evaluation mode, batch norms folded: it neither trains nor loads a state now.

        Weights are laid out channels last: a convolution on a CPU otherwise reorders what it reads and
        writes. Of AlignSeg on a ResNet-101 that is a fifth of the time.
        """
        fold_norms(self.eval())
        return self.to(memory_format=torch.channels_last)

    def loss(self, prediction: Prediction, labels: Tensor) -> dict[str, Tensor]:
        """Named loss terms, already weighted: their sum is what training minimises.

        Args:
            prediction: what ``forward`` returned in training mode.
            labels: (N, H, W) int64 at the input's resolution, ``IGNORE_LABEL`` ignored.
        """
        terms = {"main": self.criterion(prediction.logits, labels)}
        for name, logits in prediction.auxiliary.items():
            weight = self.auxiliary_weights.get(name, 0.0)
            if weight:
                # Scores go up to the labels rather than labels down to the scores: shrinking
                # labels would drop exactly the thin classes that these papers are about.
                logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
                terms[name] = weight * cross_entropy(logits, labels)
        if OFFSETS in prediction.maps:
            # Guided upsampling samples somewhere whatever the offset: without this term, which is 0 or
            # NaN, the loss would look sound.
            terms["offsets"] = (prediction.maps[OFFSETS].detach() * 0).sum()
        return terms


def check_images(images: Tensor) -> None:
    """Raises ``ValueError`` unless ``images`` is a float batch (N, 3, H, W)."""
    if images.ndim != 4 or images.shape[1] != 3 or not torch.is_floating_point(images):
        raise ValueError(
            f"images have shape {tuple(images.shape)} and type {images.dtype}; "
            "expected normalised RGB of shape (N, 3, H, W) in a floating type"
        )
