"""A network for inference alone: batch norms become part of convolutions, and weights are packed."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F
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


def pack_weights(network: nn.Module) -> int:
    """Has convolutions and linear layers on a CPU keep their weights in the order of its kernels, in place.

    Otherwise they are brought into that order at each call: of AlignSeg on a ResNet-101 at 384 x 768 that is
    a tenth of the time. A linear layer also takes over the GELU that follows it in a transformer's ``Mlp``.

    Args:
        network: which neither trains nor loads a state afterwards.

    Returns:
        How many layers it has.
    """
    packed = 0
    for module in list(network.modules()):
        children = dict(module.named_children())
        if isinstance(module, Mlp) and type(module.act) is nn.GELU and module.act.approximate == "none":
            assert isinstance(module.fc1, nn.Linear)
            module.fc1, module.act = PackedLinear(module.fc1, gelu=True), nn.Identity()
            packed += 1
        for name, child in children.items():
            if getattr(module, name) is not child:
                continue
            if (
                type(child) is nn.Conv2d
                and child.padding_mode == "zeros"
                and not isinstance(child.padding, str)
            ):
                setattr(module, name, PackedConv2d(child))
                packed += 1
            elif type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child))
                packed += 1
    return packed


class PackedConv2d(nn.Conv2d):
    """A convolution for inference. Its scores are a function of weights and images, not of earlier calls.

    Args:
        convolution: whose weights it takes over.
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,  # type: ignore[arg-type]
            convolution.stride,  # type: ignore[arg-type]
            convolution.padding,  # type: ignore[arg-type]
            convolution.dilation,  # type: ignore[arg-type]
            convolution.groups,
            convolution.bias is not None,
            device="meta",
        )
        self.weight, self.bias = convolution.weight, convolution.bias
        self._packed: tuple[torch.Size, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not _can_pack(input, self.weight):
            return super().forward(input)
        # The order that is best depends on the input's size. Weights in another's would do, with other last
        # digits: what an image scores would depend on the image before it.
        if self._packed is None or self._packed[0] != input.shape:
            weight = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, self.padding, self.stride, self.dilation, self.groups, list(input.shape)
            )
            self._packed = (input.shape, weight)
        found: Tensor = torch.ops.mkldnn._convolution_pointwise(
            input, self._packed[1], self.bias, self.padding, self.stride, self.dilation, self.groups,
            "none", [], "",
        )  # fmt: skip
        return found

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # which no copy can be made of


class PackedLinear(nn.Linear):
    """A linear layer for inference, and the GELU behind it. A function of weights and input alone, as above.

    Args:
        linear: whose weights it takes over.
        gelu: whether the exact GELU of the result is wanted.
    """

    def __init__(self, linear: nn.Linear, gelu: bool = False):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.gelu = gelu
        self._packed: tuple[int, Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not _can_pack(input, self.weight):
            found = super().forward(input)
            return F.gelu(found) if self.gelu else found
        rows = input.shape[:-1].numel()
        if self._packed is None or self._packed[0] != rows:
            self._packed = rows, torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)
        activation, kind = ("gelu", "none") if self.gelu else ("none", "")
        product: Tensor = torch.ops.mkldnn._linear_pointwise(
            input, self._packed[1], self.bias, activation, [], kind
        )
        return product

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None}  # which no copy can be made of


def _can_pack(x: Tensor, weight: Tensor) -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
