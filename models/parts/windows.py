"""Non-overlapping windows of a token map of any size: what Swin and the Semantic Layer attend within."""

from __future__ import annotations

from timm.models.swin_transformer import window_partition, window_reverse
from torch import Tensor
from torch.nn import functional as F


def pad_to_windows(x: Tensor, window: int) -> Tensor:
    """Zero-pads a map (N, H, W, C) at the right and bottom to multiples of ``window``."""
    right, bottom = -x.shape[2] % window, -x.shape[1] % window
    return F.pad(x, (0, 0, 0, right, 0, bottom)) if right or bottom else x


def to_windows(x: Tensor, window: int) -> Tensor:
    """Map (N, H, W, C), padded where needed, to windows (B, window * window, C)."""
    return window_partition(pad_to_windows(x, window), (window, window)).flatten(1, 2)


def from_windows(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Inverse of ``to_windows``: the map (N, height, width, C) without its padding."""
    padded = (height + -height % window, width + -width % window)
    x: Tensor = window_reverse(windows, (window, window), *padded)
    return x[:, :height, :width]
