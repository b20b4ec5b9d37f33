"""Activation checkpointing that leaves batch norm's running statistics as they would be without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute_in_backward


def run_checkpointed(module: nn.Module, *inputs: Tensor, checkpoint: bool) -> Tensor:
    """``module(*inputs)``; with ``checkpoint``, its activations are recomputed in the backward pass."""
    output: Tensor = recomputed(module, module, *inputs) if checkpoint else module(*inputs)
    return output


def recomputed(forward: Callable[..., Any], module: nn.Module, *inputs: Any) -> Any:
    """``forward(*inputs)``, of which only the inputs are kept for the backward pass.

    Args:
        forward: the module, or what it does.
        module: whose buffers a second forward pass must not change again.
        inputs: of the forward pass.
    """
    if not torch.is_grad_enabled():
        return forward(*inputs)
    if torch.compiler.is_compiling():  # a compiled graph updates buffers once, whatever it recomputes
        return recompute_in_backward(forward, *inputs, use_reentrant=False)
    return recompute_in_backward(
        forward, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), buffers_kept(module))
    )


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Undoes what a forward pass does to the module's buffers.

    Else the second forward pass of a recomputed segment would count its batch twice in batch norm's
    running statistics.
    """
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
