"""Losses on the main logits that a recipe can name; ``LOSSES`` lists them.

``LOSSES[name](**options)`` gives a criterion: logits (N, K, H, W) of any floating type and labels
(N, H, W), ``IGNORE_LABEL`` ignored, to a scalar in float32, which is zero where nothing is labelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.config.recipes import LossSettings
from models.segmenter import IGNORE_LABEL, Criterion, cross_entropy


def plain() -> Criterion:
    """Mean cross-entropy over the labelled pixels."""
    return cross_entropy


def ohem(*, threshold: float = 0.7, min_kept: int = 100_000) -> Criterion:
    """Cross-entropy with online hard example mining (Shrivastava et al., CVPR 2016).

    The mean over the hard pixels: those whose probability of the true class is below the
    threshold, and in any case the ``min_kept`` hardest of the batch. The defaults were read in
    the repository of AlignSeg's authors.

    Args:
        threshold: probability in (0, 1].
        min_kept: pixels of a batch, at least 0; a batch with fewer labelled ones keeps them all.

    Raises:
        ValueError: a value outside these ranges.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a probability above 0 and at most 1")
    if min_kept < 0:
        raise ValueError(f"min_kept is {min_kept}; expected a number of pixels, at least 0")
    return partial(_ohem_cross_entropy, threshold=threshold, min_kept=min_kept)


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
    "class-balanced": class_balanced,
}
"""Factories of criteria, by the name that a recipe gives."""


def create_criterion(settings: LossSettings, class_counts: list[int]) -> Criterion:
    """The recipe's loss on the main logits.

    Args:
        settings: which loss, and its options.
        class_counts: labelled pixels of each class in the training split, for a loss that weighs classes.
    """
    options = settings.model_dump(exclude={"name"})
    if settings.name == "class-balanced":
        options["class_counts"] = class_counts
    return LOSSES[settings.name](**options)


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


def _ohem_cross_entropy(logits: Tensor, labels: Tensor, *, threshold: float, min_kept: int) -> Tensor:
    losses = _pixel_losses(logits, labels)
    kept = hard_pixels(losses, labels != IGNORE_LABEL, threshold, min_kept)
    return (losses * kept).sum() / kept.sum().clamp(min=1)


def _weighted_cross_entropy(logits: Tensor, labels: Tensor, *, weights: Tensor) -> Tensor:
    if logits.shape[1] != len(weights):
        raise ValueError(
            f"class_counts has {len(weights)} entries; expected one of each of {logits.shape[1]} classes"
        )
    labelled = labels != IGNORE_LABEL
    of_pixels = weights.to(logits.device)[labels.masked_fill(~labelled, 0)] * labelled
    total = of_pixels.sum()
    return (_pixel_losses(logits, labels) * of_pixels).sum() / total.clamp(min=1.0)


def _pixel_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy (N, H, W) in float32, zero where the label is ignored."""
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_LABEL, reduction="none")
