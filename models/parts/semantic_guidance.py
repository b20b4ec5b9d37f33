"""What re-weights features between stages: SPGNet's Semantic Prediction Guidance and its rivals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Excitation = Literal["sigmoid", "softmax", "tanh", "relu", "none"]

GATHER_EXTENT = 8
"""Gather-and-Excite's extent in pixels at 1/4, one of those that its paper tries. Inferred."""
REDUCTION = 16
"""Squeeze-and-Excite's channel reduction, its paper's default. Inferred."""

EXCITATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "softmax": lambda x: x.softmax(dim=1),  # channels compete at each pixel; inferred
    "tanh": torch.tanh,
    "relu": torch.relu,
    "none": lambda x: x,
}


class Guidance(nn.Module):
    """What every re-weighting shares: excitation and identity path.

    Args:
        excitation: a key of ``EXCITATIONS``.
        identity: add the features to the re-weighted ones.
    """

    def __init__(self, excitation: Excitation, identity: bool):
        super().__init__()
        self.excitation = excitation
        self.identity = identity

    def excite(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features F and raw mask, both (N, C, h, w), to the guided features and the excited mask M."""
        mask = EXCITATIONS[self.excitation](mask)
        # F + F * M in one pass over the largest features of the network
        guided = torch.addcmul(features, features, mask) if self.identity else features * mask
        return guided, mask


class SemanticPredictionGuidance(Guidance):
    """Supervise and excite: class scores make the mask that re-weights the features (figure 1c).

    Args:
        num_classes: K, channels of the scores.
        width: C, channels of the features.
        excitation, identity: see ``Guidance``.
    """

    def __init__(self, num_classes: int, width: int, excitation: Excitation, identity: bool):
        super().__init__(excitation, identity)
        self.to_mask = nn.Conv2d(num_classes, width, 1)

    def forward(self, features: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, C, h, w) and scores (N, K, h, w) to guided features and mask (N, C, h, w)."""
        return self.excite(features, self.to_mask(logits))

    @torch.no_grad()
    def per_class(self, mask: Tensor) -> Tensor:
        """Reduces a mask (N, C, h, w) to one map per class (N, K, h, w) that a person can read.

        Map k is the mask's mean over the channels that class k excites, each weighted with the positive
        part of its weight from k's score, so it has the mask's range (zero for a class that excites no
        channel). Inferred: the sources show maps and do not say how they were reduced.
        """
        weight = self.to_mask.weight.clamp(min=0).transpose(0, 1)  # (K, C, 1, 1)
        total = weight.sum(dim=1, keepdim=True)
        return F.conv2d(mask, weight / total.clamp(min=torch.finfo(total.dtype).tiny))


class PooledGuidance(Guidance):
    """Squeeze-and-Excite (figure 1a) or Gather-and-Excite (figure 1b) in the guidance's place.

    Both pool the features themselves, one globally and one locally, and make the mask from the pooled
    ones with two 1x1 convolutions; the class scores are not used.

    Args:
        width: C, channels of the features.
        excitation, identity: see ``Guidance``.
        extent: stride of the local pooling, over windows of 2 * extent - 1 pixels; ``None`` is global.
    """

    def __init__(self, width: int, excitation: Excitation, identity: bool, extent: int | None):
        super().__init__(excitation, identity)
        self.pool: nn.Module = (
            nn.AdaptiveAvgPool2d(1)
            if extent is None
            else nn.AvgPool2d(2 * extent - 1, extent, padding=extent - 1, count_include_pad=False)
        )
        hidden = max(1, width // REDUCTION)
        self.to_mask = nn.Sequential(nn.Conv2d(width, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, width, 1))

    def forward(self, features: Tensor, logits: Tensor | None) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Features (N, C, h, w) to re-weighted features and mask (N, C, h, w)."""
        mask = self.to_mask(self.pool(features))
        return self.excite(features, F.interpolate(mask, features.shape[-2:], mode="nearest"))
