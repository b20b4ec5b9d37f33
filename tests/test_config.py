from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, World, tiny_params

import models
from experiments import datasets
from experiments.config import params as config
from experiments.config.strict import ConfigError


def load(params: dict[str, Any], folder: Path) -> config.Params:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    return config.load(path)


def at(params: dict[str, Any], path: str) -> dict[str, Any]:
    for key in path.split("/"):
        params = params[key]
    return params


Change = Callable[[dict[str, Any]], object]

REFUSED: list[tuple[str, Change, str, str]] = [
    (
        "an unknown key of a profile",
        lambda p: at(p, "profiles/tiny").update(bakbones={}),
        "profiles.tiny.bakbones",
        "did you mean 'backbones'",
    ),
    ("an unknown key at the top", lambda p: p.update(seed=[1]), "seed", "did you mean 'seeds'"),
    (
        "an unknown key of an experiment",
        lambda p: at(p, "experiments/gun-small").update(option={}),
        "experiments.gun-small.option",
        "did you mean 'options'",
    ),
    (
        "an unknown profile",
        lambda p: p.update(profile="tyni"),
        "profile",
        "unknown profile 'tyni'; did you mean 'tiny'",
    ),
    (
        "an unknown model",
        lambda p: at(p, "experiments/gun-small").update(model="gunn"),
        "experiments.gun-small.model",
        "did you mean 'gun'",
    ),
    (
        "an unknown option",
        lambda p: at(p, "experiments/spgnet-small/options").update(stage=2),
        "experiments.spgnet-small.options.stage",
        "did you mean 'stages'",
    ),
    (
        "an option of a wrong type",
        lambda p: at(p, "experiments/spgnet-small/options").update(stages="two"),
        "experiments.spgnet-small.options.stages",
        "valid integer, found 'two'",
    ),
    (
        "a choice that does not exist",
        lambda p: at(p, "experiments/spgnet-small/options").update(excitation="sigmoidal"),
        "experiments.spgnet-small.options.excitation",
        "'sigmoid'",
    ),
    (
        "an unknown backbone",
        lambda p: at(p, "experiments/spgnet-small/options").update(backbone="resnet5O"),
        "experiments.spgnet-small.options.backbone",
        "did you mean 'resnet50'",
    ),
    (
        "an unknown smaller backbone",
        lambda p: at(p, "profiles/tiny/backbones").update(resnet50="resnet_18"),
        "profiles.tiny.backbones.resnet50",
        "did you mean 'resnet18'",
    ),
    (
        "an unknown data set",
        lambda p: at(p, "experiments/gun-small").update(dataset="cityscape"),
        "experiments.gun-small.dataset",
        "did you mean 'cityscapes'",
    ),
    (
        "an unknown data set of the profile",
        lambda p: at(p, "profiles/tiny/datasets").update(scene={}),
        "profiles.tiny.datasets.scene",
        "did you mean 'scenes'",
    ),
    (
        "an unknown option of a data set",
        lambda p: at(p, "profiles/tiny/datasets/scenes").update(colour=1),
        "profiles.tiny.datasets.scenes.colour",
        "unknown key; valid: height, seed, train, val, width",
    ),
    (
        "a stand-in that is not prepared",
        lambda p: at(p, "profiles/tiny").update(stand_in="camvid"),
        "profiles.tiny.stand_in",
        "not among the profile's data sets",
    ),
    (
        "a data set that the profile does not have",
        lambda p: at(p, "profiles/tiny").update(stand_in=None),
        "experiments.spgnet-small.dataset",
        "no stand-in",
    ),
    (
        "an unknown recipe",
        lambda p: at(p, "experiments/gun-small").update(recipe="plane"),
        "experiments.gun-small.recipe",
        "did you mean 'plain'",
    ),
    (
        "an unknown loss",
        lambda p: at(p, "recipes/plain").update(loss={"name": "ohm"}),
        "recipes.plain.loss.name",
        "did you mean 'ohem'",
    ),
    (
        "a loss's option of a wrong type",
        lambda p: at(p, "recipes/plain").update(loss={"name": "ohem", "options": {"threshold": "high"}}),
        "recipes.plain.loss.options.threshold",
        "valid number, found 'high'",
    ),
    (
        "no steps",
        lambda p: at(p, "profiles/tiny/recipe").update(steps=0),
        "profiles.tiny.recipe.steps",
        "greater than or equal to 1, found 0",
    ),
    (
        "a crop of three numbers",
        lambda p: at(p, "recipes/plain").update(crop=[1, 2, 3]),
        "recipes.plain.crop",
        "2 items",
    ),
    (
        "a missing key",
        lambda p: at(p, "recipes/plain").pop("optimizer"),
        "recipes.plain.optimizer",
        "missing",
    ),
    (
        "scale factors the wrong way round",
        lambda p: at(p, "recipes/plain/augmentation").update(scale=[2.0, 0.5]),
        "recipes.plain.augmentation",
        "smaller factor first",
    ),
    ("no seeds", lambda p: p.update(seeds=[]), "seeds", "at least 1 item"),
    ("a seed twice", lambda p: p.update(seeds=[1, 1]), "seeds", "names a seed twice"),
    (
        "a key with a dot",
        lambda p: p["experiments"].update({"a.b": p["experiments"].pop("gun-small")}),
        "experiments.a.b",
        "hyphen",
    ),
]


@pytest.mark.parametrize(("change", "key", "message"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_refuses(tmp_path: Path, change: Change, key: str, message: str) -> None:
    params = tiny_params()
    change(params)
    with pytest.raises(ConfigError) as refused:
        load(params, tmp_path)
    text = str(refused.value)
    assert text.startswith(f"{tmp_path / 'params.yaml'}: {key}: ")
    assert message in text
    assert "\n" not in text


def test_refuses_a_file_that_is_not_yaml(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("profile: quick\nseeds: [0\nprofiles: {}\n")
    with pytest.raises(ConfigError, match=r"params.yaml, line 3: not valid YAML"):
        config.load(path)


def test_refuses_a_key_that_is_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tiny_params()) + "seeds: [3]\n")
    with pytest.raises(ConfigError, match="'seeds' is given twice"):
        config.load(path)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run from the repository's root"):
        config.load(tmp_path / "params.yaml")


def test_a_number_in_exponent_form_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tiny_params()).replace("learning_rate: 0.01", "learning_rate: 1e-2"))
    assert config.load(path).recipes["plain"].learning_rate == 0.01


def test_the_profile_scales_and_the_experiment_keeps_the_papers_configuration(world: World) -> None:
    run = config.load().run("spgnet-small")
    assert run.options == {"backbone": "resnet18", "stages": 2}
    assert run.experiment.options["backbone"] == "resnet50"
    assert (run.recipe.steps, run.recipe.crop, run.recipe.learning_rate) == (4, (32, 64), 0.02)
    assert (run.paper_recipe.steps, run.paper_recipe.crop) == (100, (512, 512))
    assert run.dataset == "scenes"


def test_a_shorter_training_warms_up_for_the_same_share(world: World) -> None:
    world.params["recipes"]["plain"]["warmup"] = {"steps": 50}
    world.write()
    assert config.load().run("gun-small").recipe.warmup.steps == 2  # of 4, as 50 of 100


@pytest.mark.parametrize("profile", ["quick", "camvid-cpu", "camvid", "paper"])
def test_the_projects_own_params_are_valid_in_every_profile(profile: str, tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("profile: quick", f"profile: {profile}", 1)
    path = tmp_path / "params.yaml"
    path.write_text(text)
    params = config.load(path)
    assert params.profile == profile
    for key, experiment in params.experiments.items():
        assert params.run(key).dataset in datasets.names()
        assert experiment.model in models.names()


@pytest.mark.parametrize("name", models.names())
def test_every_experiment_builds_and_runs_in_every_profile(name: str, tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    networks: dict[str, config.Run] = {}
    for profile in params["profiles"]:
        loaded = load(params | {"profile": profile}, tmp_path)
        runs = [loaded.run(key) for key, entry in loaded.experiments.items() if entry.model == name]
        networks |= {json.dumps(run.options, sort_keys=True): run for run in runs}
    for run in networks.values():
        with torch.device("meta"):
            model = models.create(name, 11, **run.options).eval().requires_grad_(False)
            logits = model(torch.zeros(1, 3, 64, 96)).logits
        assert logits.shape == (1, 11, 64, 96), (run.profile_name, run.key)


@pytest.mark.parametrize("model", models.names())
def test_the_experiments_of_one_model_are_enough(model: str, tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["experiments"] = {k: e for k, e in params["experiments"].items() if e["model"] == model}
    assert set(load(params, tmp_path).experiments) == set(params["experiments"])


def test_every_recipe_is_used() -> None:
    params = config.load(ROOT / "params.yaml")
    assert {experiment.recipe for experiment in params.experiments.values()} == set(params.recipes)
