"""SeMask's Semantic Layer: attention in the space of the classes, after a stage's transformer blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from models.parts.layers import upsample
from models.parts.windows import Windows

SemanticStart = Literal["drawn", "zero"]
"""How the weights of a Semantic Layer start; its biases and its lambda start at zero.

``drawn`` is what the authors' Semantic FPN models start from: a truncated normal of 0.02 for every linear
layer. ``zero`` is what their detectron2 models (MaskFormer, Mask2Former, FaPN, MSFaPN) start from: a normal
distribution with variance 2 / C for query, key and value, and a projection of zero. Lambda and projection
then multiply each other's gradient by zero, so that neither ever moves. The attention never feeds anything
back, and what a Semantic Layer adds to the plain transformer is its layer norm and a supervised prior map."""


class SemanticAttention(nn.Module):
    """Attention whose queries and keys are class scores.

    ``query`` and ``key`` map C channels to K classes, ``value`` C to C; the scores
    softmax(query key^T) are not scaled. The result, projected by C to C and dropped out at 0.1, is
    added to the input with a weight lambda that starts at 0. Read in the authors' repository.

    The plain formula stays, measured on a CPU at 512 and 640 pixels with 19 and 150 classes, forward and
    backward: PyTorch's fused attention, which has no kernel there for values that are wider or narrower than
    the keys, takes 1.2 to 1.4 times as long within windows and up to 1.1 times over the whole map, and 1.01
    to 1.31 times the peak memory. Padded to one width it does reach the kernel, and takes 1.2 to 3 times as
    long; its memory is 1.8 to 3.7 times as much, but for the whole map of stage 3, where 17 MiB replace 34.

    Args:
        channels: C.
        num_classes: K.
        fixed_lambda: value of lambda; ``None`` makes it a parameter.
        start: see ``SemanticStart``; biases start at zero in either.
    """

    lambda_: Tensor

    def __init__(
        self,
        channels: int,
        num_classes: int,
        fixed_lambda: float | None = None,
        start: SemanticStart = "drawn",
    ):
        super().__init__()
        self.query = nn.Linear(channels, num_classes)
        self.key = nn.Linear(channels, num_classes)
        self.value = nn.Linear(channels, channels)
        self.projection = nn.Linear(channels, channels)
        self.dropout = nn.Dropout(0.1)
        if fixed_lambda is None:
            self.lambda_ = nn.Parameter(torch.zeros(1))
        else:
            self.register_buffer("lambda_", torch.full((1,), fixed_lambda), persistent=False)
        for layer in (self.query, self.key, self.value, self.projection):
            if start == "drawn":
                trunc_normal_(layer.weight, std=0.02)
            else:
                nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        if start == "zero":
            nn.init.zeros_(self.projection.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, n, C) to tokens of the same shape and their class scores (B, n, K)."""
        query = self.query(x)
        scores = (query @ self.key(x).transpose(-2, -1)).softmax(dim=-1)
        attended = self.dropout(self.projection(scores @ self.value(x)))
        return self.lambda_ * attended + x, query


class SemanticLayer(nn.Module):
    """Layer norm, then semantic attention, within windows or over the whole map.

    Args:
        channels: C of the stage.
        num_classes: K.
        window: side of the non-overlapping windows in tokens; ``None`` attends over the whole map.
            A map that does not divide is padded with zeros, after the norm, at the right and bottom,
            and the padding takes part in the attention (read in the authors' repository).
        fixed_lambda: value of lambda; ``None`` makes it a parameter that starts at 0.
        start: of the attention's weights.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        window: int | None,
        fixed_lambda: float | None = None,
        start: SemanticStart = "drawn",
    ):
        super().__init__()
        self.window = window
        self.norm = nn.LayerNorm(channels)
        self.attention = SemanticAttention(channels, num_classes, fixed_lambda, start)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Token map (N, H, W, C) to one of the same shape and the stage's prior map (N, K, H, W)."""
        height, width = x.shape[1:3]
        x = self.norm(x)
        if self.window is None:
            x, prior = (y.unflatten(1, (height, width)) for y in self.attention(x.flatten(1, 2)))
        else:
            windows = Windows(height, width, self.window, device=x.device)
            x, prior = (windows.join(y) for y in self.attention(windows.cut(x)))
        return x, prior.permute(0, 3, 1, 2)


def semantic_decoder(priors: Mapping[int, Tensor], sizes: Sequence[Sequence[int]]) -> Tensor:
    """Sum of the stages' prior maps at 1/4, each upsampled bilinearly by 2 step by step.

    It has no parameters; training supervises what it returns. Read in the authors' repository, in the
    code of Semantic FPN; that of the mask decoders aligns corners, this never does. As the steps are linear,
    a map is added to the next shallower one before the two go up together.

    Args:
        priors: (N, K, ~H / 2^(i - 1), ~W / 2^(i - 1)) of stage i, counted from 1; at least one.
        sizes: height and width of every stage's maps.

    Returns:
        (N, K, H, W), the resolution of stage 1.
    """
    stages = range(max(priors), 0, -1)
    total = priors[stages[0]]
    for stage in stages[1:]:
        total = upsample(total, sizes[stage - 1])
        if stage in priors:
            total = total + priors[stage]
    return total
