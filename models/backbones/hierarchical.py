"""What SeMask needs to know of a hierarchical transformer, whichever it is."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class DecoderSize(NamedTuple):
    """How large a decoder is; the defaults are those of every published model."""

    width: int = 256
    """Channels."""
    queries: int = 100
    """Of a decoder of masks: the masks that it predicts."""
    divisor: int = 1
    """The layers of a decoder of masks are the published number divided by this."""


class HierarchicalTransformer(nn.Module):
    """Four stages, each at half the resolution of the one before, for something to be put between them."""

    stages: nn.ModuleList
    """The first maps images (N, 3, H, W), every other the tokens before it (N, H, W, C), to tokens
    (N, H', W', C'); the first stage's are at 1/4."""
    norms: nn.ModuleList
    """The layer norm of each stage's output."""
    norms_on_path: bool
    """Whether the next stage takes the output with its norm (true), or only the decoder does."""
    channels: list[int]
    """Of each stage's tokens, shallow to deep."""
    windows: list[int]
    """Side of each stage's attention windows, in tokens."""
    prefers_global: bool
    """Whether SeMask's authors let stages 3 and 4 attend over the whole map where classes are many."""
    decoder_size: DecoderSize
    """Of a decoder on top."""
