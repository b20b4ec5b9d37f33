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
from models.backbones.swin import SwinBlock
from models.gun import FusionModule, GuidanceFusion
from models.parts.alignment import OffsetBranch
from models.parts.layers import upsample
from models.parts.semantic_layer import SemanticLayer
from models.parts.windows import Windows
from models.semask import SeMaskEncoder


def write_as_published(network: nn.Module) -> str:
    """Makes a network compute as published, in place.

    Args:
        network: on any device; its parameters and their names stay.

    Returns:
        Which multiply-accumulates differ from the implementation's, in words; empty where none do.
    """
    notes = []
    for module in network.modules():
        for kind, (forward, note) in _FORMULATIONS.items():
            if isinstance(module, kind):
                module.forward = partial(forward, module)
                notes.append(note)
        if isinstance(module, SeMaskEncoder):
            module.register_forward_hook(_lay_out_channels_first)
    if isinstance(network, AlignSeg) and network.auxiliary_head is not None:
        network.align_fa["16"].register_forward_hook(partial(_run_auxiliary_head, network.auxiliary_head))
        notes.append("the auxiliary head runs in inference too")
    return "; ".join(dict.fromkeys(filter(None, notes)))


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


def _swin_block(block: SwinBlock, x: Tensor, _: Windows, mask: Tensor | None) -> Tensor:
    windows, grid = _cut(block.norm1(x), block.window, block.shift)
    x = x + block.drop_path1(_join(block.attn(windows, mask), grid, x.shape, block.shift))
    out: Tensor = x + block.drop_path2(block.mlp(block.norm2(x)))
    return out


def _semantic_layer(layer: SemanticLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    if layer.window is None:
        return SemanticLayer.forward(layer, x)
    windows, grid = _cut(layer.norm(x), layer.window, shift=0)
    out, prior = (_join(y, grid, x.shape, shift=0) for y in layer.attention(windows))
    return out, prior.permute(0, 3, 1, 2)


def _cut(x: Tensor, side: int, shift: int) -> tuple[Tensor, tuple[int, ...]]:
    """Pads, shifts and cuts (N, H, W, C), one after the other, as in the code of Swin's authors."""
    right, bottom = -x.shape[2] % side, -x.shape[1] % side
    x = F.pad(x, (0, 0, 0, right, 0, bottom))
    x = x.roll((-shift, -shift), dims=(1, 2)) if shift else x
    grid = (len(x), x.shape[1] // side, side, x.shape[2] // side, side)
    return x.view(*grid, -1).transpose(2, 3).reshape(-1, side * side, x.shape[-1]), grid


def _join(windows: Tensor, grid: tuple[int, ...], size: torch.Size, shift: int) -> Tensor:
    """Inverse of ``_cut``, for a map of this size without its padding."""
    batch, rows, side, columns, _ = grid
    cut = windows.view(batch, rows, columns, side, side, -1)
    x = cut.transpose(2, 3).reshape(batch, rows * side, columns * side, -1)
    x = x.roll((shift, shift), dims=(1, 2)) if shift else x
    return x[:, : size[1], : size[2]].contiguous()


def _lay_out_channels_first(
    _: nn.Module, __: Any, outputs: tuple[list[Tensor], dict[int, Tensor]]
) -> tuple[list[Tensor], dict[int, Tensor]]:
    """The copies with which transformers hand their maps to convolutions."""
    features, priors = outputs
    return [x.contiguous() for x in features], {stage: prior.contiguous() for stage, prior in priors.items()}


def _run_auxiliary_head(head: nn.Module, step: nn.Module, inputs: Any, outputs: Any) -> None:  # noqa: ARG001
    if not step.training:  # in training the implementation runs it as well
        head(outputs[0])


_FORMULATIONS: dict[type[nn.Module], tuple[Callable[..., Any], str]] = {
    OffsetBranch: (_offset_branch, "1x1 convolutions of the offset branches after the upsampling"),
    FusionModule: (_fusion_module, "1x1 convolutions of the fusion after the upsampling"),
    GuidanceFusion: (_guidance_fusion, "1x1 convolutions of the guidance after the upsampling"),
    SwinBlock: (_swin_block, ""),
    SemanticLayer: (_semantic_layer, ""),
}
"""The forward pass of a kind of module as published, and what differs in its multiply-accumulates."""
