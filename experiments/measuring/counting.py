"""Counts parameters and multiply-accumulates of a network without running it."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import models
from experiments.running import storage
from experiments.running.errors import StageError
from experiments.running.work import Context

_CHECK_SIZE = (128, 256)
"""fvcore has to compute what it counts, so it counts a small input."""

_PRODUCTS = ("conv", "linear", "matmul", "addmm", "bmm", "baddbmm", "einsum", "attention")
"""Of fvcore's operators, those that torch's counter counts too."""

# fmt: off
_MOVES_DATA = frozenset({
    "cat", "clone", "copy_", "_to_copy", "constant_pad_nd", "roll", "index", "index_select", "stack",
    "fill_", "zero_", "empty", "_unsafe_view", "embedding", "sort", "topk", "argmax", "gather",
    "scatter", "slice_scatter", "repeat", "reflection_pad2d", "replication_pad2d",
})
# fmt: on
"""Operators without arithmetic, which nobody counts."""


def count(
    context: Context,  # noqa: ARG001 (counting takes a second and says nothing)
    network: dict[str, Any],
    num_classes: int,
    size: tuple[int, int],
    digest: str,
    path: Path,
) -> str:
    """Counts one network and writes what was counted.

    Args:
        context: of the job.
        network: ``model`` and ``options``.
        num_classes: K.
        size: height and width of the input.
        digest: of all that the counts depend on.
        path: where to.

    Returns:
        What to say when it is done.

    Raises:
        StageError: the network cannot be built.
    """
    torch.set_num_threads(1)
    try:
        with torch.device("meta"):
            # Torch's counter follows gradients, and fails on a parameter that is passed between modules.
            on_meta = models.create(network["model"], num_classes, **network["options"])
    except ValueError as error:
        raise StageError(str(error)) from None
    on_meta.eval().requires_grad_(False)
    macs, uncounted = count_macs(on_meta, size)
    parameters = count_parameters(on_meta)
    counts = {
        "parameters": parameters,
        "macs": macs,
        "macs_check": _check_macs(network["model"], network["options"], num_classes, on_meta, macs),
        "height": size[0],
        "width": size[1],
        "num_classes": num_classes,
        "uncounted": "; ".join(f"{name} x{count}" for name, count in sorted(uncounted.items())),
    }
    storage.write_json(path, {"digest": digest, "counts": counts})
    return f"{parameters / 1e6:.3g} M parameters, {macs / 1e9:.4g} G multiply-accumulates"


def count_parameters(network: nn.Module) -> int:
    """Scalars in all parameters; shared ones count once."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_macs(network: nn.Module, size: tuple[int, int]) -> tuple[int, Counter[str]]:
    """Multiply-accumulates of one image, and the operators with arithmetic that are not in them.

    Convolutions, matrix products and attention are counted, as in the papers. The operators beside
    them (norms, resizing, sampling, pooling, softmax) are named with how often they run.

    Args:
        network: on the meta device, where an operator has a shape but no cost.
        size: height and width of the input.
    """
    image = torch.empty(1, 3, *size, device="meta")
    with FlopCounterMode(display=False) as counter, UncountedOperators() as seen, torch.no_grad():
        network(image)
    return counter.get_total_flops() // 2, seen.uncounted


class UncountedOperators(TorchDispatchMode):
    """Notes the operators that compute something but have no entry in torch's FLOP registry."""

    def __init__(self) -> None:
        super().__init__()
        self.uncounted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        counted = func.overloadpacket in flop_registry
        takes_tensors = any(isinstance(a, Tensor) or (isinstance(a, list) and a) for a in args)
        pointwise = torch.Tag.pointwise in func.tags
        if takes_tensors and not (counted or pointwise or func.is_view or name in _MOVES_DATA):
            self.uncounted[name] += 1
        return func(*args, **(kwargs or {}))


def _check_macs(
    model: str, options: dict[str, Any], num_classes: int, on_meta: nn.Module, macs: int
) -> int | None:
    """The same count by fvcore; ``None`` where fvcore is not installed.

    fvcore counts a small input, and its share of the first counter's count there is applied to the
    full size. Where the two see the same operators the result equals ``macs``.
    """
    counter = _fvcore_counter()
    if counter is None:
        return None
    network = models.create(model, num_classes, **options).eval()
    small, _ = count_macs(on_meta, _CHECK_SIZE)
    counted: int = counter(network, torch.zeros(1, 3, *_CHECK_SIZE))
    return round(macs * counted / small)


def _fvcore_counter() -> Any:
    """A function (network, image) -> multiply-accumulates, or ``None`` without fvcore."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of what fvcore uses of torch
            from fvcore.nn import FlopCountAnalysis
    except ImportError:
        return None

    class Tensors(nn.Module):
        """fvcore traces: a trace returns tensors, and leaves out what none of them needs."""

        def __init__(self, network: nn.Module):
            super().__init__()
            self.network = network

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            prediction = self.network(images)
            return prediction.logits, *prediction.maps.values()

    def attention(inputs: Any, outputs: Any) -> Counter[str]:  # noqa: ARG001
        """Both products of an attention: queries by keys, and the result by values."""
        query, key, value = (tensor.type().sizes() for tensor in inputs[:3])
        batch = int(torch.Size(query[:-2]).numel())
        return Counter(attention=batch * query[-2] * key[-2] * (query[-1] + value[-1]))

    def count(network: nn.Module, image: Tensor) -> int:
        analysis = FlopCountAnalysis(Tensors(network), image)
        analysis.set_op_handle("aten::scaled_dot_product_attention", attention)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracing: sizes become constants, as they should here
            by_operator = analysis.by_operator()
        return int(sum(by_operator[name] for name in _PRODUCTS))

    return count
