"""A model of each family with its loss, and whether a batch that is cut gives the gradient of the whole one.

``torchrun --nproc-per-node 2 tests/gradient_cases.py`` compares two processes with one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import models
from experiments.config.recipes import Recipe
from experiments.running.devices import Devices, open_devices
from experiments.training.batches import Cut
from experiments.training.losses import create_auxiliary_criterion, create_criterion
from experiments.training.optimizers import create_optimizer, parameter_groups
from experiments.training.parallel import wrap
from experiments.training.setup import Setup
from experiments.training.step import add_gradients
from models import Segmenter

CLASSES = 5
SEMASK = {"backbone": "swin_nano", "drop_path": 0.0}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "spgnet": ("spgnet", {"backbone": "resnet18"}, {"name": "cross-entropy"}),
    "gun": ("gun", {"backbone": "drn_d_14_narrow"}, {"name": "class-balanced"}),
    "semask-fpn": ("semask", SEMASK, {"name": "hardest", "kept_per_image": 500, "group": 2}),
    "semask-maskformer": ("semask", SEMASK | {"decoder": "maskformer"}, {"name": "masks"}),
    "semask-mask2former": ("semask", SEMASK | {"decoder": "mask2former"}, {"name": "masks"}),
    "alignseg-lovasz": ("alignseg", {"backbone": "resnet18s"}, {"name": "lovasz", "group": 2}),
    "alignseg-ohem": ("alignseg", {"backbone": "resnet18s"}, {"name": "ohem", "min_kept": 900, "group": 2}),
}
"""By name: model, options, and the recipe's loss."""


def batch() -> tuple[Tensor, Tensor]:
    """Four images (4, 3, 64, 64) and their labels, with unequal numbers of ignored pixels and classes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(4, 3, 64, 64, generator=generator)
    labels = torch.randint(CLASSES, (4, 8, 8), generator=generator).repeat_interleave(8, 1)
    labels = labels.repeat_interleave(8, 2)
    labels[0, :40] = 255
    labels[1, :, :16] = 255
    labels[3] = labels[3].clamp(max=1)
    return images, labels


def create(case: str) -> tuple[Segmenter, Recipe]:
    """A model whose forward pass draws nothing at random, and its recipe."""
    name, options, loss = CASES[case]
    values = {"optimizer": "sgd", "learning_rate": 0.1, "steps": 1, "batch_size": 4, "crop": [64, 64]}
    recipe = Recipe.model_validate({**values, "input_size": [64, 64], "loss": loss})
    torch.manual_seed(0)
    model = models.create(name, CLASSES, **options).train()
    for parameter in model.parameters():
        if not parameter.any():
            # Offsets that start at zero sample just where bilinear interpolation has a kink, and what
            # starts at zero behind others lets no gradient through.
            nn.init.normal_(parameter, std=0.02)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.p = 0.0
        for attribute in ("dropout", "attention_dropout", "activation_dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    if name != "semask":
        # Through a hundred batch norms of few values each, the last digit of a float32 becomes the third.
        model.double()
    if loss["name"] != "masks":
        model.criterion = create_criterion(recipe.loss, [50, 20, 20, 9, 1])
        model.auxiliary_criterion = create_auxiliary_criterion(recipe.loss)
    return model, recipe


def set_up(model: Segmenter, recipe: Recipe, devices: Devices, part: int) -> Setup:
    groups = parameter_groups(model, recipe)
    return Setup(
        recipe=recipe,
        precision="float32",
        channels_last=False,
        devices=devices,
        cut=Cut(recipe.batch_size, devices.world_size, part),
        model=model,
        parallel=wrap(model, devices).train(),
        groups=groups,
        optimizer=create_optimizer(groups, recipe),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
    )


def gradients(setup: Setup, freeze_norms: bool) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The loss terms of the batch and its gradient, of this process's parts of it."""
    if freeze_norms:
        for module in setup.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()
    images, labels = batch()
    images = images.to(next(setup.model.parameters()).dtype)
    share = len(images) // setup.devices.world_size
    mine = slice(setup.devices.rank * share, (setup.devices.rank + 1) * share)
    parts = list(zip(images[mine].split(setup.cut.part), labels[mine].split(setup.cut.part), strict=True))
    terms = add_gradients(setup, parts)
    found = {n: p.grad for n, p in setup.model.named_parameters() if p.grad is not None}
    return {name: term.item() for name, term in terms.items()}, found


def same_points(rand: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """In place of ``torch.rand``: the same points for every mask, however many there are.

    Mask2Former samples the points of its loss at random, in the order in which masks come.
    """

    def drawn(*shape: int, **options: Any) -> Tensor:
        if len(shape) != 3:
            return rand(*shape, **options)
        with torch.random.fork_rng():
            torch.manual_seed(7)
            return rand(1, *shape[1:], **options).expand(shape).contiguous()

    return drawn


def greatest_difference(case: str, devices: Devices, part: int, *, freeze_norms: bool) -> float:
    """Between the gradients of a cut batch and of the whole one on one device, over the gradient's length."""
    model, recipe = create(case)
    whole = set_up(deepcopy(model), recipe, Devices(torch.device("cpu")), part=4)
    expected_terms, expected = gradients(whole, freeze_norms)
    terms, found = gradients(set_up(model, recipe, devices, part), freeze_norms)
    assert found.keys() == expected.keys()
    assert terms.keys() == expected_terms.keys()
    for name, value in terms.items():
        assert abs(value - expected_terms[name]) < 1e-5 * max(1, abs(value)), (name, value, expected_terms)
    length = math.sqrt(sum(gradient.square().sum().item() for gradient in expected.values()))
    differences = [(found[name] - expected[name]).norm().item() for name in expected]
    return float(max(differences) / length)


def main() -> None:
    torch.rand = same_points(torch.rand)
    with open_devices() as devices:
        for case in CASES:
            difference = greatest_difference(case, devices, 2, freeze_norms=False)
            if devices.is_main:
                print(f"{case}: {difference:.1e}")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
