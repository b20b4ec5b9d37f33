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
from numpy.typing import NDArray

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
BATCHES = 10
INSTEAD = {"peers-half": "deeplab"}
"""The experiment that is trained in place of a recipe's first. CRF-RNN's mean field starts from a trained FCN
in its paper; from nothing its loss rises for 100 steps at the recipe's rate, and at a tenth of it."""
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
    return given | {"augmentation": augmentation, "loss": loss, "batch_size": 2}


def falls(params: Params, name: str, steps: int, folder: Path) -> NDArray[np.float64]:
    """By how much some steps of a recipe, with the first experiment that uses it, lower each batch's loss.

    Of the first batches: as they were learnt from, and at the end again.
    """
    first_key = next(key for key, experiment in params.experiments.items() if experiment.recipe == name)
    key = INSTEAD.get(name, first_key)
    run: Run = params.run(key)
    size = tuple(tenth(list(TYPICAL_SIZES[run.dataset])))
    run.profile = run.profile.model_copy(update={"image_size": size})
    recipe = changed(run.recipe, scaled(run.recipe.model_dump(mode="json")) | {"steps": steps})
    run.recipe = recipe
    torch.set_num_threads(1)
    data, devices = generated_data(run, folder, 12), Devices(torch.device("cpu"))
    setup = set_up(run, data, 0, devices, pretrained=False)
    stream = part_batches(TrainingSamples(data, recipe, 0), recipe, setup.cut, devices, 0, 0)
    first = [next(stream)[:2] for _ in range(BATCHES)]
    before = [take_step(setup, [batch], learning_rate(step, recipe)) for step, batch in enumerate(first)]
    for step in range(BATCHES, steps):
        take_step(setup, [next(stream)[:2]], learning_rate(step, recipe))
    after = [take_step(setup, [batch], 0.0) for batch in first]
    return np.array([b["loss"].item() - a["loss"].item() for b, a in zip(before, after, strict=True)])


@pytest.mark.recipes
@pytest.mark.parametrize("name", RECIPES)
def test_a_hundred_steps_lower_the_loss(params: Params, name: str, tmp_path: Path) -> None:
    fall = falls(params, name, 100, tmp_path)
    # Rates are meant for pretrained weights, and these networks start from nothing: some lose 2 % only. So
    # the question is whether the loss falls by more than it does by chance.
    assert fall.mean() > 3 * fall.std(ddof=1) / math.sqrt(BATCHES)
