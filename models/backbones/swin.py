"""Swin Transformer as a list of stages: timm's parts and weights, padded for images of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.models import is_model_in_modules
from timm.models.swin_transformer import SwinTransformerBlock, window_partition
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.base import no_imagenet_weights
from models.backbones.hierarchical import DecoderSize, HierarchicalTransformer
from models.backbones.timm_models import timm_model
from models.parts.windows import Windows

NANO = "swin_nano"
"""This suite's own stand-in for a CPU: a Swin of width 32, depths 2 2 2 2, heads 2 4 8 16 and windows of
4 tokens, with decoders of width 64, those of masks with 32 queries and a third of the layers, trained from
scratch. It is nobody's published model."""

_NANO_DECODER = DecoderSize(width=64, queries=32, divisor=3)
"""With all layers and queries a training step of Mask2Former on CamVid took 2.7 times as long."""
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

    def forward(self, x: Tensor, windows: Windows, mask: Tensor | None) -> Tensor:
        """Token map (N, H, W, C) to one of the same shape.

        Args:
            x: the map.
            windows: of a map of this size, shifted by ``shift``.
            mask: ``shift_mask``'s; ``None`` where nothing is shifted.
        """
        x = x + self.drop_path1(self.attend(self.norm1(x), windows, mask))
        update: Tensor = self.drop_path2(self.mlp(self.norm2(x)))
        return x + update

    def attend(self, x: Tensor, windows: Windows, mask: Tensor | None) -> Tensor:
        """Self-attention within the windows; arguments as in ``forward``."""
        is_fused = x.device.type == "cpu" and not torch.is_grad_enabled()
        attention = self._attend_fused if is_fused else self.attn
        return windows.join(attention(windows.cut(x), mask))

    def _attend_fused(self, x: Tensor, mask: Tensor | None) -> Tensor:
        attn = self.attn
        query, key, value = attn.qkv(x).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = attn._get_rel_pos_bias()
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(len(x) // len(mask), 1, 1, 1)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        projected: Tensor = attn.proj(attended.transpose(1, 2).flatten(2))
        return projected


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
        size = x.shape[1], x.shape[2], self.window
        straight = Windows(*size, device=x.device), None
        shifted = Windows(*size, self.window // 2, x.device), shift_mask(*size, x)
        for block in self.blocks:
            x = block(x, *(shifted if block.shift else straight))
        return x


class Swin(HierarchicalTransformer):
    """Swin, of timm or the stand-in.

    Window attention is PyTorch's fused one in inference on a CPU, where it takes 0.7 to 0.9 of the plain
    formula's time at 512 x 512, stage by stage. Elsewhere it is timm's: fused where timm is told so
    (``TIMM_FUSED_ATTN=2``), else the plain formula, which is faster in training on a CPU: Swin-T forward and
    backward takes 1.79 s at 512 and 2.26 s at 640 pixels, fused 1.86 and 2.37 s.

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
        self.decoder_size = _NANO_DECODER if name == NANO else DecoderSize()
