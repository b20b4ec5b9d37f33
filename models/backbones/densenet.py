"""DenseNets that stop shrinking at a given stride and dilate instead; timm's have no such option."""

from __future__ import annotations

from collections.abc import Sequence

from timm.models.densenet import DenseBlock, DenseTransition
from torch import nn

from models.backbones.timm_models import TimmBackbone


class DilatedDenseNet(TimmBackbone):
    """A DenseNet whose last transitions do not pool.

    The convolutions of the blocks behind a transition that does not pool are dilated by twice as much as
    before it, so that they see what they saw in the ImageNet training, whose weights stay valid.

    Args:
        name: of a timm DenseNet.
        levels: feature levels to return, out of 0 to 4.
        pretrained: see ``models.backbones.create``.
        output_stride: 8, 16 or 32: input pixels per pixel of the deepest feature.
    """

    def __init__(self, name: str, levels: Sequence[int], pretrained: bool | str, output_stride: int):
        super().__init__(name, levels, pretrained)
        stride, dilation = 4, 1
        for part in self.trunk.children():
            if isinstance(part, DenseTransition):
                if stride == output_stride:
                    part.pool = nn.Identity()
                    dilation *= 2
                else:
                    stride *= 2
            elif isinstance(part, DenseBlock):
                for module in part.modules():
                    if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                        module.dilation = module.padding = (dilation, dilation)
        self.strides = [min(stride, output_stride) for stride in self.strides]
