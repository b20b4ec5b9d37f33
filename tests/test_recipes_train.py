"""Every recipe trains, at a tenth of its size, on generated pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT

from experiments.config.params import Params, load_params
from experiments.config.recipes import changed
from experiments.config.run import Run
from experiments.reporting.generated import TYPICAL_SIZES, generated_data
from experiments.running.devices import Devices
from experiments.samples.stream import TrainingSamples
from experiments.training.batches import part_batches
from experiments.training.schedules import learning_rate
from experiments.training.setup import set_up
from experiments.training.step import take_step

pytest.importorskip("transformers")
RECIPES = list(yaml.safe_load((ROOT / "params.yaml").read_text())["recipes"])


def tenth(pixels: Any) -> Any:
    return [max(1, round(side / 10)) for side in pixels] if isinstance(pixels, list) else round(pixels / 10)


@pytest.fixture(scope="module")
def params(tmp_path_factory: pytest.TempPathFactory) -> Params:
    """The project's own, with the small backbones and the pictures' sizes divided by ten."""
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    profile = values["profiles"]["paper"]
    profile["backbones"] = dict(values["profiles"]["quick"]["backbones"])
    profile["recipe"] = {"pretrained": False}
    profile["training"] = {"precision": "float32", "threads": 1}
    path = tmp_path_factory.mktemp("recipes") / "params.yaml"
    path.write_text(yaml.safe_dump(values | {"profile": "paper"}))
    return load_params(path)


def scaled(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What changes in a recipe at a tenth of its size: every number of pixels."""
    augmentation, loss = dict(recipe["augmentation"]), dict(recipe["loss"])
    for key in ("short_sides", "longest_side"):
        augmentation[key] = tenth(augmentation[key]) if augmentation[key] else None
    for key in ("min_kept", "kept_per_image"):
        if key in loss:
            loss[key] = loss[key] // 100
    given = {key: tenth(recipe[key]) for key in ("crop", "short_side")}
    return given | {"augmentation": augmentation, "loss": loss, "batch_size": 4}


def losses(params: Params, name: str, steps: int, folder: Path) -> list[float]:
    """Of some steps of a recipe with the first experiment that uses it."""
    key = next(key for key, experiment in params.experiments.items() if experiment.recipe == name)
    run: Run = params.run(key)
    size = tuple(tenth(list(TYPICAL_SIZES[run.dataset])))
    run.profile = run.profile.model_copy(update={"image_size": size})
    recipe = changed(run.recipe, scaled(run.recipe.model_dump(mode="json")) | {"steps": steps})
    run.recipe = recipe
    torch.set_num_threads(1)
    data, devices = generated_data(run, folder, 12), Devices(torch.device("cpu"))
    setup = set_up(run, data, 0, devices, pretrained=False)
    parts = part_batches(TrainingSamples(data, recipe, 0), recipe, setup.cut, devices, 0, 0)
    return [
        take_step(setup, [next(parts)[:2]], learning_rate(step, recipe))["loss"].item()
        for step in range(steps)
    ]


@pytest.mark.recipes
@pytest.mark.parametrize("name", RECIPES)
def test_a_hundred_steps_lower_the_loss(params: Params, name: str, tmp_path: Path) -> None:
    found = np.array(losses(params, name, 100, tmp_path))
    first, last = found[:20], found[-20:]
    # Rates are meant for pretrained weights, and these networks start from nothing: some lose 2 % only. So
    # the question is whether the loss falls by more than it varies from step to step.
    error = np.hypot(first.std(), last.std()) / math.sqrt(20)
    assert last.mean() < first.mean() - 3 * error


@pytest.mark.parametrize(
    "name", ["spgnet", "gun", "semask-fpn-ade20k-large", "semask-mask2former", "alignseg-lovasz"]
)
def test_two_steps_of_a_recipe_of_every_kind(params: Params, name: str, tmp_path: Path) -> None:
    found = losses(params, name, 2, tmp_path)
    assert torch.tensor(found).isfinite().all()
    assert found[0] != found[1]
