"""The published formulation of what this suite computes in another order with the same result.

A count and a time are of an implementation, and a reader compares them with a paper. So a network can be
written as its paper, or its authors' code, has it: ``macs_as_published`` counts that, and the benchmarks time
the networks beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.alignseg import AlignSeg
from models.gun import FusionModule, GuidanceFusion
from models.parts.alignment import OffsetBranch
from models.parts.layers import upsample


def write_as_published(network: nn.Module) -> str:
    """Makes a network compute as published, in place.

    Args:
        network: on any device; its parameters and their names stay.

    Returns:
        What differs from the implementation, in words; empty where nothing does.
    """
    notes = []
    for module in network.modules():
        for kind, (forward, note) in _FORMULATIONS.items():
            if isinstance(module, kind):
                module.forward = partial(forward, module)
                notes.append(note)
    if isinstance(network, AlignSeg) and network.auxiliary_head is not None:
        network.align_fa["16"].register_forward_hook(partial(_run_auxiliary_head, network.auxiliary_head))
        notes.append("the auxiliary head runs in inference too")
    return "; ".join(dict.fromkeys(notes))


def _offset_branch(branch: OffsetBranch, fine: Tensor, coarse: Tensor) -> Tensor:
    coarse = upsample(coarse, fine.shape[-2:], align_corners=True)
    hidden = branch.norm(branch.reduce(torch.cat((fine, coarse), dim=1)))
    offsets: Tensor = branch.predict(branch.activation(hidden))
    return offsets


def _fusion_module(fusion: FusionModule, branches: list[Tensor]) -> Tensor:
    size = branches[-1].shape[-2:]
    projected = [
        project(upsample(branch, size)) for project, branch in zip(fusion.project, branches, strict=True)
    ]
    joined = torch.cat(projected, dim=1) if fusion.kind == "concat" else reduce(torch.add, projected)
    refined: Tensor = fusion.refine(F.relu(joined))
    return refined


def _guidance_fusion(module: GuidanceFusion, deep: Tensor, early: Tensor) -> Tensor:
    return F.relu(module.early(early) + module.deep(upsample(deep, early.shape[-2:])))


def _run_auxiliary_head(head: nn.Module, step: nn.Module, inputs: Any, outputs: Any) -> None:  # noqa: ARG001
    if not step.training:  # in training the implementation runs it as well
        head(outputs[0])


_FORMULATIONS: dict[type[nn.Module], tuple[Callable[..., Tensor], str]] = {
    OffsetBranch: (_offset_branch, "1x1 convolutions of the offset branches after the upsampling"),
    FusionModule: (_fusion_module, "1x1 convolutions of the fusion after the upsampling"),
    GuidanceFusion: (_guidance_fusion, "1x1 convolutions of the guidance after the upsampling"),
}
"""The forward pass of a kind of module as published, and what is different in it."""
