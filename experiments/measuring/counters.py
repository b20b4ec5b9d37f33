"""Two independent counters of multiply-accumulates, both of shapes alone.

``count_operators`` counts what PyTorch dispatches, the operators below every function, by the formulas of
its ``FlopCounterMode``. ``count_calls`` counts what a model calls, the functions above, by formulas of this
module. Both see the network on the meta device at its full input size, so nothing is computed or scaled up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision  # noqa: F401 (registers torch.ops.torchvision)
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry, sdpa_flop_count

_DEFORMABLE = torch.ops.torchvision.deform_conv2d


def _deformable_flops(_: Any, weight: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:  # noqa: ARG001
    """Floating-point operations of the convolution itself, as torch's formulas have it."""
    flops: int = 2 * math.prod(out_shape) * math.prod(weight[1:])
    return flops


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:  # noqa: ARG001
    return int(sdpa_flop_count(query, key, value))


FORMULAS: dict[Any, Callable[..., int]] = {
    _DEFORMABLE: _deformable_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}
"""What torch's registry lacks: deformable convolution, and the fused attention of a CPU."""

# fmt: off
_MOVES_DATA = frozenset({
    "cat", "clone", "copy_", "_to_copy", "constant_pad_nd", "roll", "index", "index_select", "index_copy",
    "index_fill_", "stack",
    "fill_", "zero_", "empty", "_unsafe_view", "embedding", "sort", "topk", "argmax", "gather",
    "scatter", "slice_scatter", "repeat", "reflection_pad2d", "replication_pad2d",
})
# fmt: on
"""Operators without arithmetic, which nobody counts."""

_PER_VALUE = {
    "native_batch_norm": 1, "_native_batch_norm_legit_no_training": 1, "native_layer_norm": 3,
    "native_group_norm": 3, "_softmax": 3, "upsample_bilinear2d": 4,
}  # fmt: skip
"""Multiply-adds for each value of the larger of input and output, of operators that no counter counts; 1 of
those not named here. An estimate, to tell what matters from what does not."""


@dataclass
class OperatorCounts:
    """What one forward pass dispatches."""

    macs: int
    """Of convolutions, matrix products and attention."""
    sampling: int
    """Multiply-adds of bilinear sampling at predicted places: 4 for each value that ``grid_sample`` or a
    tap of a deformable convolution reads, 8 in three dimensions."""
    activations: int
    """Values that the counted operators put out (Radosavovic et al., CVPR 2020)."""
    uncounted: dict[str, int]
    """The other operators with arithmetic: how often each runs ..."""
    uncounted_macs: dict[str, int]
    """... and an estimate of its multiply-adds."""
    by_module: dict[str, int]
    """Multiply-accumulates of each module, by its path; the network itself is ``""``."""


def count_operators(network: nn.Module, size: tuple[int, int]) -> OperatorCounts:
    """Counts one image.

    Args:
        network: on the meta device, where an operator has a shape but no cost, without gradients: torch's
            counter follows these, and fails on a parameter that is passed between modules.
        size: height and width of the input.
    """
    image = torch.empty(1, 3, *size, device="meta")
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with counter, _Operators() as seen, torch.no_grad():
        network(image)
    root = type(network).__name__
    found = {
        name.removeprefix(root).removeprefix("."): sum(flops.values()) // 2
        for name, flops in counter.get_flop_counts().items()
        if name == root or name.startswith(f"{root}.")
    }
    return OperatorCounts(
        counter.get_total_flops() // 2,
        seen.sampling,
        seen.activations,
        dict(seen.uncounted),
        dict(seen.uncounted_macs),
        # In an order of its own: torch's counter keeps the modules that run at a time in a set.
        dict(sorted(found.items())),
    )


class ShapeRules(TorchDispatchMode):
    """Gives the outputs of some operators on the meta device by a rule for their shapes.

    PyTorch finds these by running the operators' arithmetic step by step in Python: 1 to 24 ms a call, two
    thirds of the time of a pass through the networks here.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rule = _SHAPES.get(func.overloadpacket.__name__)
        if rule is not None and args[0].is_meta:
            return rule(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _empty(like: Tensor, size: Sequence[int]) -> Tensor:
    """A map of this size in the memory layout of another."""
    is_last = not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if is_last else torch.contiguous_format
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=layout)


def _resized(x: Tensor, size: Sequence[int] | None, align_corners: bool, *scales: Any) -> Tensor:  # noqa: ARG001
    if size is None:
        size = [int(side * scale) for side, scale in zip(x.shape[-2:], scales[0], strict=True)]
    return _empty(x, (*x.shape[:2], *size))


def _sampled(x: Tensor, grid: Tensor, *options: Any) -> Tensor:  # noqa: ARG001
    return x.new_empty(*x.shape[:2], *grid.shape[1:3])


def _layer_normed(x: Tensor, shape: Sequence[int], *parameters: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    kept = x.shape[: x.ndim - len(shape)] + (1,) * len(shape)
    return x.new_empty(x.shape), x.new_empty(kept), x.new_empty(kept)


def _batch_normed(x: Tensor, *parameters: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    """In evaluation mode, which saves no statistics."""
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


_SHAPES: dict[str, Callable[..., Any]] = {
    "upsample_bilinear2d": _resized,
    "grid_sampler_2d": _sampled,
    "native_layer_norm": _layer_normed,
    "native_batch_norm": _batch_normed,
    "gelu": lambda x, **kwargs: torch.empty_like(x),  # noqa: ARG005
}
"""What ``ShapeRules`` knows."""


class _Operators(ShapeRules):
    """Notes what torch's counter does not: outputs, sampling, and operators that it has no formula for."""

    def __init__(self) -> None:
        super().__init__()
        self.sampling = 0
        self.activations = 0
        self.uncounted: Counter[str] = Counter()
        self.uncounted_macs: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        packet = func.overloadpacket
        name = packet.__name__
        out = result[0] if isinstance(result, tuple | list) and result else result
        takes_tensors = any(isinstance(a, Tensor) or _holds_tensors(a) for a in args)
        if packet in flop_registry or packet in FORMULAS:
            self.activations += out.numel()
            if packet is _DEFORMABLE:
                image, weight = args[:2]
                self.sampling += 4 * image.shape[1] * math.prod(weight.shape[2:]) * out[:, 0].numel()
        elif name in ("grid_sampler_2d", "grid_sampler_3d"):
            is_bilinear = args[2] == 0  # ATen's number of the mode
            self.sampling += out.numel() * 2 ** (out.ndim - 2) * is_bilinear
        elif takes_tensors and not (torch.Tag.pointwise in func.tags or func.is_view or name in _MOVES_DATA):
            values = max([out.numel(), *(a.numel() for a in args if isinstance(a, Tensor))])
            if name.startswith("_embedding_bag"):  # adds up a row of its table for each index
                values = args[1].numel() * args[0].shape[1]
            self.uncounted[name] += 1
            self.uncounted_macs[name] += _PER_VALUE.get(name, 1) * values
        return result


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(each, Tensor) for each in value)


def count_calls(network: nn.Module, size: tuple[int, int]) -> int:
    """Multiply-accumulates of one image, counted where the model calls a function that multiplies.

    Args:
        network: on the meta device.
        size: height and width of the input.
    """
    image = torch.empty(1, 3, *size, device="meta")
    with torch.no_grad(), ShapeRules(), CallCounter() as called:
        network(image)
    macs: int = called.macs
    return macs


class CallCounter(TorchFunctionMode):
    """Sums up ``_CALLS`` over the functions that are called while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = _CALLS.get(func)
        if formula is not None:
            self.macs += formula(result, *args, **kwargs)
        return result


def _convolution(out: Tensor, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> int:  # noqa: ARG001
    return out.numel() * weight[0].numel()


def _transposed(out: Tensor, x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> int:  # noqa: ARG001
    return x.numel() * weight[0].numel()


def _product(out: Tensor, left: Tensor, *args: Any, **kwargs: Any) -> int:  # noqa: ARG001
    return out.numel() * left.shape[-1]


def _added_product(out: Tensor, added: Tensor, left: Tensor, *args: Any, **kwargs: Any) -> int:  # noqa: ARG001
    return out.numel() * left.shape[-1]


def _einsum(out: Tensor, equation: str, *tensors: Any) -> int:  # noqa: ARG001
    """A product of two tensors: every letter is a loop."""
    sizes: dict[str, int] = {}
    for letters, tensor in zip(equation.replace(" ", "").split("->")[0].split(","), tensors, strict=True):
        sizes |= dict(zip(letters, tensor.shape, strict=True))
    return math.prod(sizes.values())


def _attention(out: Tensor, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> int:  # noqa: ARG001
    """Queries by keys, and the result by values."""
    return query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _multi_head_attention(
    out: Any,  # noqa: ARG001
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    *args: Any,  # noqa: ARG001
    **kwargs: Any,  # noqa: ARG001
) -> int:
    """``nn.MultiheadAttention`` of tokens (L, N, width): four projections and both products."""
    projected = 2 * query[..., 0].numel() + key[..., 0].numel() + value[..., 0].numel()
    return width * (width * projected + 2 * query[..., 0].numel() * key.shape[0])


_CALLS: dict[Any, Callable[..., int]] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), _transposed),
    **dict.fromkeys(
        (
            F.linear,
            torch.matmul,
            torch.bmm,
            torch.mm,
            Tensor.matmul,
            Tensor.__matmul__,
            Tensor.bmm,
            Tensor.mm,
        ),
        _product,
    ),
    **dict.fromkeys((torch.baddbmm, torch.addmm, Tensor.baddbmm, Tensor.addmm), _added_product),
    torch.einsum: _einsum,
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _multi_head_attention,
    _DEFORMABLE: _convolution,
}
"""Multiply-accumulates of a call, from its result and its arguments."""
