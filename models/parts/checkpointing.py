"""Activation checkpointing that leaves batch norm's running statistics as they would be without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute_in_backward


def run_checkpointed(module: nn.Module, *inputs: Tensor, checkpoint: bool) -> Tensor:
    """``module(*inputs)``; with ``checkpoint``, its activations are recomputed in the backward pass."""
    output: Tensor
    if not (checkpoint and torch.is_grad_enabled()):
        output = module(*inputs)
    elif torch.compiler.is_compiling():  # a compiled graph updates buffers once, whatever it recomputes
        output = recompute_in_backward(module, *inputs, use_reentrant=False)
    else:
        output = recompute_in_backward(
            module, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), buffers_kept(module))
        )
    return output


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
