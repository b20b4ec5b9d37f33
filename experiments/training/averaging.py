"""The average of a training's weights over its last part, which moves less from seed to seed than the last
weights do (Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_swa_multi_avg_fn

from experiments.config.recipes import Recipe

_move = get_swa_multi_avg_fn()


class WeightAverage:
    """The mean of the weights after each of a training's last steps.

    The running statistics of batch norm are averaged as the weights are. The paper measures them again for
    the averaged weights, which takes a further pass over the data; here over a short last part of a schedule
    that ends at zero, where weights move little. The two were not compared.

    Args:
        model: that is trained.
        recipe: says over which share of the steps.
    """

    def __init__(self, model: nn.Module, recipe: Recipe):
        self._model = model
        self._first = recipe.steps - round(recipe.average_last * recipe.steps)
        self._count = 0
        self._mean: dict[str, Tensor] = {}

    def add(self, step: int) -> None:
        """Takes the weights after a step, counted from 0, into the mean if it is one of the last."""
        if step < self._first:
            return
        now = self._weights()
        if self._count == 0:
            self._mean = {name: tensor.clone() for name, tensor in now.items()}
        else:
            by_type: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
            for name, mean in self._mean.items():
                means, tensors = by_type.setdefault(mean.dtype, ([], []))
                means.append(mean)
                tensors.append(now[name])
            for means, tensors in by_type.values():
                _move(means, tensors, self._count)
        self._count += 1

    def give_to_model(self) -> None:
        """Replaces the model's weights by their mean, if there is one."""
        now = self._weights()
        with torch.no_grad():
            for name, mean in self._mean.items():
                now[name].copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"count": self._count, "mean": self._mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where a checkpoint was written.

        Raises:
            ValueError: it is of another model.
        """
        now = self._weights()
        if state["count"] and state["mean"].keys() != now.keys():
            raise ValueError("its averaged weights are another model's")
        self._count = int(state["count"])
        self._mean = {name: mean.to(now[name]) for name, mean in state["mean"].items()}

    def _weights(self) -> dict[str, Tensor]:
        # Counters, which are whole numbers, stay the model's own.
        state = self._model.state_dict()
        return {name: tensor.detach() for name, tensor in state.items() if tensor.is_floating_point()}
