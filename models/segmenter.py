"""The one interface of every model: images in, a ``Prediction`` out, named losses from it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models import backbones
from models.parts.folding import fold_norms, pack_weights
from models.released import ReleasedFormat

IGNORE_LABEL = 255
"""Pixels with this label take part in no loss and in no metric."""

OFFSETS = "offsets"
"""The map (N, 2, H, W) of a learned upsampling: where each pixel of the output took its scores from, x
before y, in pixels of the output, relative to its own place. A model that has it has ``SCORES`` too."""
SCORES = "scores"
"""The map (N, K, h, w) of class scores that a learned upsampling sampled. Bilinear upsampling of it is
the same network without the offsets."""


@dataclass(frozen=True)
class LabelCounts:
    """How much there is in a batch of labels: what losses are divided by.

    Counts of the parts of a batch add up to those of the whole. A loss of a part that is divided by what the
    whole holds is a summand of the whole batch's loss, wherever the batch is cut.
    """

    images: Tensor
    """Scalar, float32, as all of them."""
    pixels: Tensor
    """All of them, ignored ones too."""
    of_class: Tensor
    """(K,) pixels of each class."""
    masks: Tensor
    """Pairs of an image and a class that occurs in it."""

    @classmethod
    def of(cls, labels: Tensor, num_classes: int) -> LabelCounts:
        """Counts labels (N, H, W) in [0, num_classes) or ``IGNORE_LABEL``."""
        width = max(num_classes, IGNORE_LABEL + 1)
        place = torch.arange(len(labels), device=labels.device)[:, None] * width
        counts = (labels.flatten(1) + place).flatten().bincount(minlength=len(labels) * width)
        by_image = counts.view(len(labels), width)[:, :num_classes].clone()
        if num_classes > IGNORE_LABEL:
            by_image[:, IGNORE_LABEL] = 0
        return cls(
            images=torch.tensor(float(len(labels)), device=labels.device),
            pixels=torch.tensor(float(labels.numel()), device=labels.device),
            of_class=by_image.sum(dim=0).float(),
            masks=(by_image > 0).sum().float(),
        )

    @property
    def labelled(self) -> Tensor:
        """Pixels that are not ignored."""
        return self.of_class.sum()

    def flat(self) -> Tensor:
        """All counts in one tensor (K + 3,), to be summed with those of other parts."""
        return torch.cat((torch.stack((self.images, self.pixels, self.masks)), self.of_class))

    @classmethod
    def from_flat(cls, flat: Tensor) -> LabelCounts:
        """What ``flat`` gave, or a sum of such."""
        return cls(images=flat[0], pixels=flat[1], masks=flat[2], of_class=flat[3:])


class Criterion(Protocol):
    """A loss on class scores."""

    def __call__(self, logits: Tensor, labels: Tensor, whole: LabelCounts | None = None) -> Tensor:
        """Logits (N, K, H, W) and labels (N, H, W) to a scalar loss in float32.

        Args:
            logits: any floating type.
            labels: int64 in [0, K) or ``IGNORE_LABEL``.
            whole: of the batch of which these are a part; ``None``: these are all of it.
        """


@dataclass
class Prediction:
    """What a model says about a batch of images (N, 3, H, W)."""

    logits: Tensor
    """(N, K, H, W) class scores at the input's own resolution."""
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    """Class scores (N, K, h, w) that only training supervises, at their own resolution; of a model with a
    ``loss`` of its own, what that takes. Empty in evaluation mode."""
    maps: dict[str, Tensor] = field(default_factory=dict)
    """What the paper shows in its figures: attention, offsets in output pixels, priors. ``OFFSETS`` and
    ``SCORES`` are the names that other code looks for."""


class PredictionError(ValueError):
    """A model predicts something else than ``Segmenter`` promises; the message says what."""


def cross_entropy(logits: Tensor, labels: Tensor, whole: LabelCounts | None = None) -> Tensor:
    """Mean cross-entropy over the labelled pixels, in float32; zero where none is labelled.

    ``F.cross_entropy`` divides by the number of labelled pixels and gives NaN for a crop in which
    every pixel is ignored, which random crops of real data do produce.

    Args:
        logits: (N, K, H, W), any floating type.
        labels: (N, H, W) int64 in [0, K) or ``IGNORE_LABEL``.
        whole: of the batch of which these are a part; ``None``: these are all of it.
    """
    counted = (labels != IGNORE_LABEL).sum() if whole is None else whole.labelled
    return summed_cross_entropy(logits, labels) / counted.clamp(min=1)


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the labelled pixels, in float32; arguments as in ``cross_entropy``."""
    logits = logits.float()
    if logits.is_contiguous(memory_format=torch.channels_last):
        # As rows of classes, because torch transposes a copy of a channels-last map: a transformer's
        # loss at 512 x 512 with 150 classes took half the time, forward and backward.
        logits, labels = logits.movedim(1, -1).flatten(0, -2), labels.flatten()
    return F.cross_entropy(logits, labels, ignore_index=IGNORE_LABEL, reduction="sum")


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
    backbone_modules: ClassVar[frozenset[str]] = frozenset({"backbone"})
    """Attributes that hold the backbone, whose learning rate a recipe may lower."""

    def __init__(self, num_classes: int, auxiliary_weights: Mapping[str, float] | None = None):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}; a model needs at least 1 class")
        self.num_classes = num_classes
        self.auxiliary_weights = dict(auxiliary_weights or {})
        self.criterion: Criterion = cross_entropy
        """Loss on the main logits; a recipe may name another (OHEM, class-balanced)."""
        self.auxiliary_criterion: Criterion = cross_entropy
        """Loss on each auxiliary map of class scores."""

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

    def released_format(self) -> ReleasedFormat | None:
        """How this model reads its authors' checkpoints; ``None`` where they have released none.

        Raises:
            ValueError: an option that their checkpoints were not trained with.
        """
        return None

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        raise NotImplementedError

    def check_prediction(self, prediction: Prediction, images: Tensor) -> None:
        """Raises ``PredictionError`` unless there is a score of each class for each pixel of the images.

        No loss notices a class too many: the network would train to the end, and not be scored.
        """
        expected = (len(images), self.num_classes, *images.shape[-2:])
        if tuple(prediction.logits.shape) != expected:
            raise PredictionError(
                f"class scores have shape {tuple(prediction.logits.shape)}; expected {expected}: images, "
                "classes, and the images' height and width"
            )

    @property
    def predicts_masks(self) -> bool:
        """Whether its loss is one on a set of masks, for which ``criterion`` has no meaning."""
        return False

    def for_inference(self) -> Self:
        """The network in evaluation mode, norms folded, weights packed: it neither trains nor loads now.

        Weights are laid out channels last: a convolution on a CPU otherwise reorders what it reads and
        writes. Of AlignSeg on a ResNet-101 that is a fifth of the time.
        """
        fold_norms(self.eval())
        pack_weights(self)
        return self.to(memory_format=torch.channels_last)

    def loss(
        self, prediction: Prediction, labels: Tensor, whole: LabelCounts | None = None
    ) -> dict[str, Tensor]:
        """Named loss terms, already weighted: their sum is what training minimises.

        Args:
            prediction: what ``forward`` returned in training mode.
            labels: (N, H, W) int64 at the input's resolution, ``IGNORE_LABEL`` ignored.
            whole: of the batch of which these are a part, so that the terms of all parts add up to the
                batch's; ``None``: these are all of it.

        Raises:
            PredictionError: auxiliary scores have a name without a weight, or are not of as many classes.
        """
        terms = {"main": self.criterion(prediction.logits, labels, whole)}
        for name, logits in prediction.auxiliary.items():
            weight = self._auxiliary_weight(name, logits)
            if weight:
                # Scores go up to the labels rather than labels down to the scores: shrinking
                # labels would drop exactly the thin classes that these papers are about.
                logits = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
                terms[name] = weight * self.auxiliary_criterion(logits, labels, whole)
        if OFFSETS in prediction.maps:
            # Guided upsampling samples somewhere whatever the offset: without this term, which is 0 or
            # NaN, the loss would look sound.
            terms["offsets"] = (prediction.maps[OFFSETS].detach() * 0).sum()
        return terms

    def _auxiliary_weight(self, name: str, logits: Tensor) -> float:
        if name not in self.auxiliary_weights:  # misspelt, it would be left out without a word
            raise PredictionError(
                f"auxiliary scores '{name}' have no weight; auxiliary_weights has "
                f"{sorted(self.auxiliary_weights)}"
            )
        if logits.shape[1] != self.num_classes:
            raise PredictionError(
                f"auxiliary scores '{name}' are of {logits.shape[1]} classes; expected {self.num_classes}"
            )
        return self.auxiliary_weights[name]


def check_images(images: Tensor) -> None:
    """Raises ``ValueError`` unless ``images`` is a float batch (N, 3, H, W)."""
    if images.ndim != 4 or images.shape[1] != 3 or not torch.is_floating_point(images):
        raise ValueError(
            f"images have shape {tuple(images.shape)} and type {images.dtype}; "
            "expected normalised RGB of shape (N, 3, H, W) in a floating type"
        )
