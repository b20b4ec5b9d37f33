"""Swin Transformer as a list of stages: timm's parts and weights, padded for images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import is_model_in_modules
from timm.models.swin_transformer import SwinTransformerBlock, window_partition
from torch import Tensor, nn

from models.backbones.base import no_imagenet_weights
from models.backbones.hierarchical import HierarchicalTransformer
from models.backbones.timm_models import timm_model
from models.parts.windows import from_windows, pad_to_windows, to_windows

NANO = "swin_nano"
"""This suite's own stand-in for a CPU: a Swin of width 32, depths 2 2 2 2, heads 2 4 8 16 and windows of
4 tokens, with decoders of width 64, trained from scratch. It is nobody's published model."""

_NANO_OPTIONS = {"embed_dim": 32, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16), "window_size": 4}


def is_swin(name: str) -> bool:
    """Whether ``Swin`` can build a backbone of this name."""
    return name == NANO or (timm.is_model(name) and is_model_in_modules(name, "swin_transformer"))


class SwinBlock(nn.Module):
    """A block of timm's, with its windows padded before they are shifted.

    timm shifts first and pads then, which gives another result wherever the map does not divide into
    windows. Weights that were trained on images of any size, the SeMask authors' among them, expect
    this order.
    """

    def __init__(self, block: SwinTransformerBlock):
        super().__init__()
        self.norm1 = block.norm1
        self.attn = block.attn
        self.drop_path1 = block.drop_path1
        self.norm2 = block.norm2
        self.mlp = block.mlp
        self.drop_path2 = block.drop_path2
        self.window: int = block.window_size[0]
        self.shift: int = block.shift_size[0]

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Token map (N, H, W, C) to one of the same shape; the mask is ``shift_mask``'s."""
        x = x + self.drop_path1(self.attend(self.norm1(x), mask))
        update: Tensor = self.drop_path2(self.mlp(self.norm2(x)))
        return x + update

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        """Self-attention within the windows, shifted in every second block."""
        height, width = x.shape[1:3]
        if not self.shift:
            return from_windows(self.attn(to_windows(x, self.window)), self.window, height, width)
        x = pad_to_windows(x, self.window).roll((-self.shift, -self.shift), dims=(1, 2))
        padded = x.shape[1:3]
        x = from_windows(self.attn(to_windows(x, self.window), mask), self.window, *padded)
        return x.roll((self.shift, self.shift), dims=(1, 2))[:, :height, :width]


def shift_mask(height: int, width: int, window: int, like: Tensor) -> Tensor:
    """What keeps tokens apart that a cyclic shift by half a window brought into one window.

    Args:
        height: of the token map, before padding.
        width: likewise.
        window: side of a window.
        like: gives type and device.

    Returns:
        (windows, window * window, window * window), 0 or -100, to be added to attention scores.
    """

    def region(size: int) -> Tensor:  # 0, 1 or 2 for each token along one axis
        padded = size + -size % window
        position = torch.arange(padded, device=like.device)
        return (position >= padded - window).int() + (position >= padded - window // 2).int()

    regions = 3 * region(height)[:, None] + region(width)
    windows = window_partition(regions[None, :, :, None], (window, window)).flatten(1)
    return (windows[:, None] != windows[:, :, None]).to(like.dtype) * -100.0


class SwinStage(nn.Module):
    """Patch embedding or patch merging, then the blocks of one resolution."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[SwinTransformerBlock]):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(SwinBlock(block) for block in blocks)
        self.window = blocks[0].window_size[0]

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W), or the previous stage's (N, H, W, C), to tokens (N, H', W', C')."""
        x = self.downsample(x)
        mask = shift_mask(x.shape[1], x.shape[2], self.window, x)
        for block in self.blocks:
            x = block(x, mask)
        return x


class Swin(HierarchicalTransformer):
    """Swin, of timm or the stand-in.

    Window attention is timm's: fused where timm is told so (``TIMM_FUSED_ATTN=2``), else the plain formula,
    which is faster on a CPU: Swin-T forward and backward takes 1.79 s at 512 and 2.26 s at 640 pixels,
    fused 1.86 and 2.37 s, with peaks of memory within 1 % of each other.

    Args:
        name: a Swin of timm, with or without the tag of its weights, or ``swin_nano``.
        pretrained: ImageNet weights from the hub (``True``), from a local file, or none.
        drop_path: rate of stochastic depth in the last block; it grows linearly from 0.

    Raises:
        ValueError: ``swin_nano`` with weights from the hub, which has none for it.
    """

    norms_on_path = False

    def __init__(self, name: str, pretrained: bool | str = False, drop_path: float = 0.0):
        super().__init__()
        if name == NANO and pretrained is True:
            raise no_imagenet_weights(NANO)
        model: Any = timm_model(
            "swin_tiny_patch4_window7_224" if name == NANO else name,
            pretrained,
            num_classes=0,
            drop_path_rate=drop_path,
            # Windows and shifts stay as they are where a map is no larger than one window.
            always_partition=True,
            strict_img_size=False,
            **(_NANO_OPTIONS if name == NANO else {}),
        )
        model.patch_embed.dynamic_img_pad = True  # at the right and bottom
        self.stages = nn.ModuleList(
            SwinStage(model.patch_embed if i == 0 else layer.downsample, layer.blocks)
            for i, layer in enumerate(model.layers)
        )
        self.channels = [info["num_chs"] for info in model.feature_info]
        self.windows = [layer.blocks[0].window_size[0] for layer in model.layers]
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in self.channels)
        # The authors' rule is by width: T, S and L do. The stand-in does as T does.
        self.prefers_global = name == NANO or self.channels[0] in (96, 192)
        self.decoder_width = 64 if name == NANO else 256
