"""A network for inference alone: batch norms become part of the convolutions before them."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_norms(network: nn.Module) -> int:
    """Folds every batch norm that follows a convolution into its weights, in place.

    A norm in evaluation mode is a multiplication and an addition for each channel, which the convolution does
    with no extra pass over its output. Scores change in their last digits. Afterwards the network neither
    trains nor loads a state.

    A norm follows a convolution where both stand side by side in an ``nn.Sequential``, or as ``conv1`` and
    ``bn1`` in a block that is named as ResNet's are. What does not, such as a norm after a sum or one that
    two branches share, stays.

    Args:
        network: in evaluation mode.

    Returns:
        How many norms were folded.

    Raises:
        ValueError: the network is in training mode.
    """
    if network.training:
        raise ValueError("the network is in training mode; call eval() first")
    folded = 0
    for module in list(network.modules()):
        children = dict(module.named_children())
        for conv_name, norm_name in _neighbours(module, list(children)):
            conv, norm = children.get(conv_name), children.get(norm_name)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
                folded += 1
    return folded


def _neighbours(module: nn.Module, names: list[str]) -> list[tuple[str, str]]:
    """Pairs of children of which the second runs on what the first puts out."""
    if isinstance(module, nn.Sequential):
        return list(pairwise(names))
    return [(name, name.replace("conv", "bn")) for name in names if name in ("conv1", "conv2", "conv3")]
