"""The Lovasz-softmax loss (Berman et al., CVPR 2018): a convex surrogate of the mean Jaccard loss."""

from __future__ import annotations

import torch
from torch import Tensor

from models.segmenter import IGNORE_LABEL


def lovasz_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the classes that occur of the Lovasz extension of their Jaccard loss.

    The errors of a class are |1 or 0 - its probability| at every labelled pixel; where all errors are 0 or 1
    the loss is one minus the class's intersection over union, with the labelled pixels of all images in one
    set.

    Args:
        logits: (N, K, H, W), any floating type.
        labels: (N, H, W) in [0, K) or ``IGNORE_LABEL``, which is left out.

    Returns:
        A scalar in float32, 0 where nothing is labelled.
    """
    num_classes = logits.shape[1]
    labelled = (labels != IGNORE_LABEL).flatten()
    probabilities = logits.float().softmax(dim=1).movedim(1, 0).flatten(1)  # (K, pixels)
    true = labels.flatten() == torch.arange(num_classes, device=labels.device)[:, None]
    # An ignored pixel of error 0 comes last and moves nothing, so that no pixels need be gathered, whose
    # number the host would have to wait for.
    errors = (true.float() - probabilities).abs() * labelled
    errors, order = errors.sort(dim=1, descending=True)
    losses = (
        errors * _steps_of_the_jaccard_loss(true.gather(1, order), labelled.expand_as(order).gather(1, order))
    ).sum(dim=1)
    occurs = true.any(dim=1)
    total: Tensor = (losses * occurs).sum() / occurs.sum().clamp(min=1)
    return total


def _steps_of_the_jaccard_loss(true: Tensor, labelled: Tensor) -> Tensor:
    """How much the Jaccard loss of a class grows as one pixel after the other is mistaken.

    Args:
        true: (K, pixels), whether a pixel is of the class, in the order in which pixels are mistaken.
        labelled: (K, pixels), the same order.

    Returns:
        (K, pixels) in float32, 0 for pixels that are not labelled.
    """
    wrong = (labelled & ~true).float()
    right = (labelled & true).float()
    count = right.sum(dim=1, keepdim=True)
    intersection = count - right.cumsum(dim=1)
    union = count + wrong.cumsum(dim=1)
    loss = 1 - intersection / union.clamp(min=1)
    return torch.diff(loss, dim=1, prepend=torch.zeros_like(count))
