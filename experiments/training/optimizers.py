"""Optimizers by recipe, and which parameters are treated apart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn, optim
from torch.nn.modules.batchnorm import _BatchNorm

from experiments.config.recipes import ParameterKind, Recipe
from models import Segmenter

_POSITIONS = ("relative_position_bias", "absolute_pos", "pos_embed")
"""In the names of what a transformer adds by position; a plain parameter, which no module's type tells."""


@dataclass
class Group:
    """Parameters with the same rate and decay."""

    in_backbone: bool
    kind: ParameterKind | None
    """``None`` for all other weights and biases."""
    factor: float
    """Of the recipe's learning rate."""
    weight_decay: float
    parameters: dict[str, nn.Parameter] = field(default_factory=dict)
    """By name."""

    def described(self) -> dict[str, Any]:
        """A row of the table of groups."""
        return {
            "part": "backbone" if self.in_backbone else "rest",
            "kind": self.kind or "other weights",
            "tensors": len(self.parameters),
            "parameters": sum(parameter.numel() for parameter in self.parameters.values()),
            "rate_factor": self.factor,
            "weight_decay": self.weight_decay,
        }


def parameter_groups(model: Segmenter, recipe: Recipe) -> list[Group]:
    """All parameters that need a gradient, by part of the network and by kind.

    Raises:
        ValueError: the recipe lowers the rate of a backbone, and the model has none.
    """
    groups: dict[tuple[bool, ParameterKind | None], Group] = {}
    for name, parameter, kind in _with_kinds(model):
        in_backbone = name.split(".")[0] in model.backbone_modules
        if (in_backbone, kind) not in groups:
            groups[in_backbone, kind] = Group(
                in_backbone,
                kind,
                recipe.backbone_factor if in_backbone else 1.0,
                0.0 if kind in recipe.no_decay else recipe.weight_decay,
            )
        groups[in_backbone, kind].parameters[name] = parameter
    if recipe.backbone_factor != 1 and not any(group.in_backbone for group in groups.values()):
        raise ValueError(
            f"the recipe's backbone_factor is {recipe.backbone_factor:g}, and {type(model).__name__} names "
            "no backbone; set it to 1"
        )
    return list(groups.values())


def create_optimizer(groups: list[Group], recipe: Recipe) -> optim.Optimizer:
    """SGD with momentum or AdamW. The key ``factor`` of a group multiplies the schedule's rate.

    AdamW is fused. SGD is not: where a first step in float16 overflows, and is skipped, torch's fused SGD
    keeps a momentum that nothing was written to.
    """
    given = [
        {
            "params": list(group.parameters.values()),
            "lr": recipe.learning_rate * group.factor,
            "factor": group.factor,
            "weight_decay": group.weight_decay,
        }
        for group in groups
    ]
    if recipe.optimizer == "sgd":
        return optim.SGD(given, lr=recipe.learning_rate, momentum=recipe.momentum)
    return optim.AdamW(given, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def _with_kinds(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, ParameterKind | None]]:
    """Every parameter that needs a gradient once, with its name and kind."""
    seen: set[int] = set()
    for place, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            yield f"{place}.{name}" if place else name, parameter, _kind(module, name)


def _kind(module: nn.Module, name: str) -> ParameterKind | None:
    if any(position in name for position in _POSITIONS):
        return "position-biases"
    if isinstance(module, nn.LayerNorm):
        return "layer-norms"
    if isinstance(module, nn.GroupNorm):
        return "group-norms"
    if isinstance(module, _BatchNorm):
        return "batch-norms"
    return "embeddings" if isinstance(module, nn.Embedding) else None
