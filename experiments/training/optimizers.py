"""Optimizers by recipe."""

from __future__ import annotations

from torch import nn, optim
from torch.nn.modules.batchnorm import _BatchNorm

from experiments.config.recipes import Recipe

_NORMS = (nn.LayerNorm, nn.GroupNorm, _BatchNorm)


def create_optimizer(model: nn.Module, recipe: Recipe) -> optim.Optimizer:
    """SGD with momentum or AdamW over all parameters that need a gradient.

    Without ``recipe.decay_norms``, norms and position embeddings are free of weight decay.
    """
    of_norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NORMS)
        for parameter in module.parameters(recurse=False)
    }
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_position = "relative_position_bias" in name or "absolute_pos" in name or "pos_embed" in name
        exempt = not recipe.decay_norms and (id(parameter) in of_norms or is_position)
        (free if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": free, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum)
    return optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)
