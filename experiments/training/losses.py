"""Losses on class scores that a recipe can name; ``LOSSES`` lists them.

``LOSSES[name](**options)`` gives a criterion: logits (N, K, H, W) of any floating type and labels
(N, H, W), ``IGNORE_LABEL`` ignored, to a scalar in float32, which is zero where nothing is labelled. Where
these are a part of a batch, the losses of all parts add up to the loss of the batch.

A loss that compares pixels with each other cannot be cut anywhere: it is taken over groups of images, as
many as the authors had on a device, and its mean over the groups. A part has to hold whole groups, or be
the whole batch (``training/batches.py`` sees to it).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.config.recipes import LossSettings, PixelsCounted
from experiments.training.lovasz import lovasz_softmax
from models.segmenter import IGNORE_LABEL, Criterion, LabelCounts, cross_entropy, summed_cross_entropy


def plain(*, over: PixelsCounted = "labelled") -> Criterion:
    """Cross-entropy, divided by the number of labelled pixels or of all of them."""
    return cross_entropy if over == "labelled" else _cross_entropy_over_all


def ohem(*, threshold: float = 0.7, min_kept: int = 100_000, group: int | None = None) -> Criterion:
    """Cross-entropy with online hard example mining (Shrivastava et al., CVPR 2016).

    The mean over the hard pixels: those whose probability of the true class is below the
    threshold, and in any case the ``min_kept`` hardest of the group. The defaults were read in
    the repository of AlignSeg's authors.

    Args:
        threshold: probability in (0, 1].
        min_kept: pixels of a group, at least 0; a group with fewer labelled ones keeps them all.
        group: images of a group; ``None``: the whole batch is one.

    Raises:
        ValueError: a value outside these ranges.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a probability above 0 and at most 1")
    if min_kept < 0:
        raise ValueError(f"min_kept is {min_kept}; expected a number of pixels, at least 0")
    return partial(_ohem_cross_entropy, threshold=threshold, min_kept=min_kept, group=group)


def hardest(*, kept_per_image: int = 100_000, group: int | None = None) -> Criterion:
    """Cross-entropy of the pixels of greatest loss alone, divided by the number of all pixels.

    mmsegmentation's ``OHEMPixelSampler`` without a threshold gives those pixels the weight 1 and all others
    0, and its loss is the mean over all; SeMask's authors train their largest models so.

    Args:
        kept_per_image: times the images of a group: how many of its labelled pixels are kept.
        group: images of a group; ``None``: the whole batch is one.

    Raises:
        ValueError: ``kept_per_image`` is below 1.
    """
    if kept_per_image < 1:
        raise ValueError(f"kept_per_image is {kept_per_image}; expected at least 1 pixel")
    return partial(_hardest_cross_entropy, kept_per_image=kept_per_image, group=group)


def lovasz(*, weight: float = 0.8, group: int | None = None) -> Criterion:
    """Mean cross-entropy over the labelled pixels plus ``weight`` times the Lovasz-softmax loss.

    What the option ``--ohem`` of AlignSeg's authors trains, whose weight is the default.

    Args:
        weight: at least 0.
        group: images whose pixels are one set of the Lovasz-softmax loss; ``None``: the whole batch.

    Raises:
        ValueError: a negative weight.
    """
    if weight < 0:
        raise ValueError(f"weight is {weight}; expected at least 0")
    return partial(_lovasz_and_cross_entropy, weight=weight, group=group)


def class_balanced(*, class_counts: Sequence[int]) -> Criterion:
    """Cross-entropy that weighs a pixel by how rare its class is in the training set.

    The weight of a class with share p of the pixels is 1 / ln(1.02 + p) (Paszke et al., ENet,
    arXiv 1606.02147), which stays below 51 for a class that never occurs; the weighted sum is
    divided by the sum of the weights. Equal counts give plain cross-entropy.

    Args:
        class_counts: labelled pixels of each of the K classes.

    Raises:
        ValueError: a negative count, or no pixel at all; and, when the criterion is called, a
            number of counts other than K.
    """
    total = sum(class_counts)
    if total <= 0 or min(class_counts) < 0:
        raise ValueError(f"class_counts are {list(class_counts)}; expected pixels per class, not all zero")
    weights = torch.tensor([1 / math.log(1.02 + count / total) for count in class_counts])
    return partial(_weighted_cross_entropy, weights=weights)


LOSSES: Mapping[str, Callable[..., Criterion]] = {
    "cross-entropy": plain,
    "ohem": ohem,
    "hardest": hardest,
    "lovasz": lovasz,
    "class-balanced": class_balanced,
}
"""Factories of criteria, by the name that a recipe gives."""


def create_criterion(settings: LossSettings, class_counts: list[int]) -> Criterion:
    """The recipe's loss on the main logits.

    Args:
        settings: which loss, and its options; not ``masks``, which is the model's own.
        class_counts: labelled pixels of each class in the training split, for a loss that weighs classes.
    """
    options = settings.model_dump(exclude={"name"})
    if settings.name == "class-balanced":
        options["class_counts"] = class_counts
    return LOSSES[settings.name](**options)


def create_auxiliary_criterion(settings: LossSettings) -> Criterion:
    """The loss on auxiliary scores: cross-entropy, divided by the pixels that the main loss is divided by."""
    over_all = settings.name == "hardest" or (settings.name == "cross-entropy" and settings.over == "all")
    return plain(over="all" if over_all else "labelled")


def hard_pixels(losses: Tensor, labelled: Tensor, threshold: float, min_kept: int) -> Tensor:
    """Which pixels online hard example mining keeps.

    Args:
        losses: cross-entropy of each pixel, any shape.
        labelled: boolean, same shape; other pixels are never kept.
        threshold: probability of the true class below which a pixel is hard.
        min_kept: how many of the labelled pixels are kept at least, hardest first.

    Returns:
        Boolean, the shape of ``losses``.
    """
    ranked = losses.detach().masked_fill(~labelled, -1.0).flatten()  # unlabelled ones come last
    # topk selects without sorting the rest, and without a wait for the device, which counting the
    # pixels below the threshold first would need.
    hardest = ranked.topk(min(min_kept, ranked.numel()), sorted=False).indices
    kept = (ranked > -math.log(threshold)).scatter(0, hardest, True)
    return kept.view_as(losses) & labelled


def _cross_entropy_over_all(logits: Tensor, labels: Tensor, whole: LabelCounts | None = None) -> Tensor:
    return summed_cross_entropy(logits, labels) / (labels.numel() if whole is None else whole.pixels)


def _ohem_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    whole: LabelCounts | None = None,
    *,
    threshold: float,
    min_kept: int,
    group: int | None,
) -> Tensor:
    total = logits.new_zeros((), dtype=torch.float32)
    for some_logits, some_labels in _groups(logits, labels, group):
        losses = _pixel_losses(some_logits, some_labels)
        kept = hard_pixels(losses, some_labels != IGNORE_LABEL, threshold, min_kept)
        total = total + (losses * kept).sum() / kept.sum().clamp(min=1) * len(some_labels)
    return total / (len(labels) if whole is None else whole.images)


def _hardest_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    whole: LabelCounts | None = None,
    *,
    kept_per_image: int,
    group: int | None,
) -> Tensor:
    total = logits.new_zeros((), dtype=torch.float32)
    for some_logits, some_labels in _groups(logits, labels, group):
        losses = _pixel_losses(some_logits, some_labels).flatten()  # an ignored pixel's is 0
        kept = min(kept_per_image * len(some_labels), losses.numel())
        total = total + losses.topk(kept, sorted=False).values.sum()
    return total / (labels.numel() if whole is None else whole.pixels)


def _lovasz_and_cross_entropy(
    logits: Tensor, labels: Tensor, whole: LabelCounts | None = None, *, weight: float, group: int | None
) -> Tensor:
    total = logits.new_zeros((), dtype=torch.float32)
    for some_logits, some_labels in _groups(logits, labels, group):
        total = total + lovasz_softmax(some_logits, some_labels) * len(some_labels)
    surrogate = total / (len(labels) if whole is None else whole.images)
    return cross_entropy(logits, labels, whole) + weight * surrogate


def _weighted_cross_entropy(
    logits: Tensor, labels: Tensor, whole: LabelCounts | None = None, *, weights: Tensor
) -> Tensor:
    if logits.shape[1] != len(weights):
        raise ValueError(
            f"class_counts has {len(weights)} entries; expected one of each of {logits.shape[1]} classes"
        )
    labelled = labels != IGNORE_LABEL
    weights = weights.to(logits.device)
    of_pixels = weights[labels.masked_fill(~labelled, 0)] * labelled
    total = of_pixels.sum() if whole is None else weights @ whole.of_class
    return (_pixel_losses(logits, labels) * of_pixels).sum() / total.clamp(min=1.0)


def _groups(logits: Tensor, labels: Tensor, group: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Consecutive images whose pixels are compared with each other."""
    size = len(labels) if group is None else group
    yield from zip(logits.split(size), labels.split(size), strict=True)


def _pixel_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (N, H, W) in float32, zero where the label is ignored."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_LABEL, reduction="none")
