"""Activation checkpointing of any model: the blocks of its backbone compute their activations twice."""

from __future__ import annotations

from functools import partial

from torch import nn

from models.parts.checkpointing import recomputed

_BLOCKS = {"BasicBlock", "Bottleneck", "SwinBlock", "SegformerLayer"}
"""Types of the blocks of timm's residual networks and of ours (DRN), of Swin and of Mix Transformer, by name:
importing all that defines them takes seconds."""


def recompute_blocks(model: nn.Module) -> None:
    """Makes the blocks of a model's backbone keep their inputs alone for the backward pass.

    Names and values of the state stay as they are.

    Raises:
        ValueError: the model has none of the blocks that are known.
    """
    blocks = [module for module in model.modules() if type(module).__name__ in _BLOCKS]
    if not blocks:
        known = ", ".join(sorted(_BLOCKS))
        raise ValueError(
            f"training.recompute is true, and {type(model).__name__} has none of {known}; set it to false"
        )
    for block in blocks:
        block.forward = partial(recomputed, block.forward, block)
