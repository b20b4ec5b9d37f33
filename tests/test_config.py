from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT, Workspace, tiny_params

import models
from experiments import datasets
from experiments.config import model_options
from experiments.config.params import Params, load_params
from experiments.config.recipes import Warmup
from experiments.config.run import Run
from experiments.config.strict import ConfigError


def load(params: dict[str, Any], folder: Path) -> Params:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(params, sort_keys=False))
    return load_params(path)


def at(params: dict[str, Any], path: str) -> dict[str, Any]:
    for key in path.split("/"):
        params = params[key]
    return params


Change = Callable[[dict[str, Any]], object]

CLAIM = {
    "paper": "spgnet",
    "says": "one beats the other",
    "source": "question",
    "better": "spgnet-small",
    "worse": "gun-small",
    "metric": "miou",
}

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
        "a learning rate without an end",
        lambda p: at(p, "recipes/plain").update(learning_rate=float("inf")),
        "recipes.plain.learning_rate",
        "finite number",
    ),
    (
        "a table without a name",
        lambda p: at(p, "experiments/gun-small").update(table=""),
        "experiments.gun-small.table",
        "table: should be 1 to 100 characters without slashes, not beginning with a dot, found ''",
    ),
    (
        "a row of two lines",
        lambda p: at(p, "experiments/gun-small").update(row="GUN\nsmall"),
        "experiments.gun-small.row",
        "row: should be one line of 1 to 200 characters, found 'GUN",
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
        "options of an unknown model",
        lambda p: at(p, "profiles/tiny/options").update(gum={}),
        "profiles.tiny.options.gum",
        "unknown model 'gum'; did you mean 'gun'",
    ),
    (
        "an unknown option of a profile",
        lambda p: at(p, "profiles/tiny/options").update(deeplab={"bandwidth": 7}),
        "profiles.tiny.options.deeplab.bandwidth",
        "unknown key; did you mean",
    ),
    (
        "an unknown backbone among a profile's options",
        lambda p: at(p, "profiles/tiny/options").update(deeplab={"backbone": "vgg_16"}),
        "profiles.tiny.options.deeplab.backbone",
        "did you mean 'vgg16'",
    ),
    (
        "an option of a profile of another type",
        lambda p: at(p, "profiles/tiny/options").update(deeplab={"position_bandwidth": "7 pixels"}),
        "profiles.tiny.options.deeplab.position_bandwidth",
        "'7 pixels'",
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
        "recipes.plain.loss",
        "'cross-entropy', 'ohem', 'hardest', 'lovasz', 'class-balanced', 'masks'",
    ),
    (
        "a loss's option of a wrong type",
        lambda p: at(p, "recipes/plain").update(loss={"name": "ohem", "threshold": "high"}),
        "recipes.plain.loss.threshold",
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
    (
        "no factors to resize by",
        lambda p: at(p, "recipes/plain").update(augmentation={"factors": []}),
        "recipes.plain.augmentation.factors",
        "at least 1 item",
    ),
    (
        "a factor that is not positive",
        lambda p: at(p, "recipes/plain").update(augmentation={"factors": [0.5, -1.0]}),
        "recipes.plain.augmentation.factors.1",
        "greater than 0, found -1.0",
    ),
    (
        "two ways to resize",
        lambda p: at(p, "recipes/plain/augmentation").update(short_sides=[32]),
        "recipes.plain.augmentation",
        "scale and short_sides are given together",
    ),
    (
        "a limit of what is not resized",
        lambda p: at(p, "recipes/plain/augmentation").update(longest_side=64),
        "recipes.plain.augmentation",
        "longest_side is given without short_sides",
    ),
    (
        "an unknown kind of parameters",
        lambda p: at(p, "recipes/plain").update(no_decay=["norms"]),
        "recipes.plain.no_decay.0",
        "'layer-norms', 'batch-norms', 'group-norms'",
    ),
    (
        "an empty micro-batch",
        lambda p: at(p, "profiles/tiny/training").update(micro_batch=0),
        "profiles.tiny.training.micro_batch",
        "greater than or equal to 1, found 0",
    ),
    (
        "a recipe that extends an unknown one",
        lambda p: p["recipes"].update(other={"extends": "plane"}),
        "recipes.other.extends",
        "unknown recipe 'plane'; did you mean 'plain'",
    ),
    (
        "a recipe that extends itself",
        lambda p: p["recipes"].update(other={"extends": "other"}),
        "recipes.other.extends",
        "'other' goes in a circle",
    ),
    (
        "recipes that extend each other",
        lambda p: p["recipes"].update(a={"extends": "b"}, b={"extends": "a"}),
        "recipes.a.extends",
        "'b' goes in a circle",
    ),
    (
        "a recipe that extends one that extends another",
        lambda p: p["recipes"].update(a={"extends": "plain"}, b={"extends": "a"}),
        "recipes.b.extends",
        "'a' itself extends 'plain'; expected a recipe that extends none",
    ),
    (
        "a profile's change of an unknown recipe",
        lambda p: at(p, "profiles/tiny/recipes").update(plane={}),
        "profiles.tiny.recipes.plane",
        "did you mean 'plain'",
    ),
    (
        "a profile's change of a recipe to something impossible",
        lambda p: at(p, "profiles/tiny/recipes").update(plain={"steps": 0}),
        "profiles.tiny.recipes.plain.steps",
        "greater than or equal to 1, found 0",
    ),
    (
        "a profile's change of an unknown experiment",
        lambda p: at(p, "profiles/tiny/experiments").update({"gun-smal": {}}),
        "profiles.tiny.experiments.gun-smal",
        "did you mean 'gun-small'",
    ),
    (
        "a profile's change of a key that a recipe has not",
        lambda p: at(p, "profiles/tiny/experiments").update({"gun-small": {"step": 3}}),
        "profiles.tiny.experiments.gun-small.step",
        "did you mean 'steps'",
    ),
    (
        "a profile's range of scales that is the wrong way round",
        lambda p: at(p, "profiles/tiny/recipe").update(scale=[1.5, 0.75]),
        "profiles.tiny.recipe",
        "scale is [1.5, 0.75]; expected the smaller factor first",
    ),
    (
        "a warm-up that is longer than the training",
        lambda p: at(p, "recipes/plain").update(steps=20, warmup={"steps": 500}),
        "recipes.plain",
        "warmup takes 500 steps of a training of 20; expected no more than it has",
    ),
    (
        "a profile's warm-up that is longer than its trainings",
        lambda p: at(p, "profiles/tiny/recipe").update(steps=20, warmup={"steps": 21}),
        "profiles.tiny.recipe",
        "warmup takes 21 steps of a training of 20",
    ),
    (
        "no band around boundaries",
        lambda p: at(p, "profiles/tiny/evaluation").update(trimap_widths=[]),
        "profiles.tiny.evaluation.trimap_widths",
        "at least 1 item",
    ),
    ("no seeds", lambda p: p.update(seeds=[]), "seeds", "at least 1 item"),
    ("a seed twice", lambda p: p.update(seeds=[1, 1]), "seeds", "names a seed twice"),
    (
        "a claim of an unknown experiment",
        lambda p: p["claims"].update(c=CLAIM | {"worse": "gun-smal"}),
        "claims.c.worse",
        "unknown experiment 'gun-smal'; did you mean 'gun-small'",
    ),
    (
        "a claim in an unknown metric",
        lambda p: p["claims"].update(c=CLAIM | {"metric": "moiu"}),
        "claims.c.metric",
        "unknown metric 'moiu'; did you mean 'miou'",
    ),
    (
        "a claim about an unknown class",
        lambda p: p["claims"].update(c=CLAIM | {"metric": "class_iou@bycicle"}),
        "claims.c.metric",
        "unknown class 'bycicle'; did you mean 'bicycle'",
    ),
    (
        "a claim with the same experiment on both sides",
        lambda p: p["claims"].update(c=CLAIM | {"worse": "spgnet-small"}),
        "claims.c.worse",
        "'spgnet-small' is also 'better'; expected two different sides",
    ),
    (
        "a claim across data sets",
        lambda p: (
            p["claims"].update(c=CLAIM),
            at(p, "experiments/gun-small").update(dataset="ade20k"),
        ),
        "claims.c.worse",
        "the data sets 'cityscapes' and 'ade20k' differ",
    ),
    (
        "a claim across protocols",
        lambda p: (
            p["claims"].update(c=CLAIM),
            p["recipes"].update(half={"extends": "plain", "single_scale": {"scales": [0.5]}}),
            at(p, "experiments/gun-small").update(recipe="half"),
        ),
        "claims.c.worse",
        "scored by another protocol than 'better' (single_scale differs)",
    ),
    (
        "a claim without a mark",
        lambda p: p["claims"].update(c=CLAIM | {"source": "abstract"}),
        "claims.c.source",
        "expected S, R or question",
    ),
    (
        "a claim about another view of a network than there is",
        lambda p: p["claims"].update(c=CLAIM | {"worse": "gun-small@bilinaer"}),
        "claims.c.worse",
        "did you mean 'bilinear'",
    ),
    (
        "a claim about the cost of a view",
        lambda p: p["claims"].update(c=CLAIM | {"worse": "gun-small@bilinear", "metric": "macs"}),
        "claims.c.worse",
        "has no cost of its own",
    ),
    (
        "a claim about one score alone",
        lambda p: p["claims"].update(c={k: v for k, v in CLAIM.items() if k != "worse"}),
        "claims.c.worse",
        "only a cost (parameters, macs, fps) with a margin stands alone",
    ),
    (
        "a claim about an unknown data set",
        lambda p: p["claims"].update(c=CLAIM | {"dataset": "cityscape"}),
        "claims.c.dataset",
        "did you mean 'cityscapes'",
    ),
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
        load_params(path)


def test_refuses_a_key_that_is_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tiny_params()) + "seeds: [3]\n")
    with pytest.raises(ConfigError, match="'seeds' is given twice"):
        load_params(path)


def test_refuses_anchors_which_dvc_would_write_out(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("profile: &p quick\nseeds: [0]\nprofiles: {a: *p}\n")
    with pytest.raises(
        ConfigError, match=r"params.yaml, line 1: not valid YAML: the anchor or alias 'p'; write"
    ):
        load_params(path)


@pytest.mark.parametrize(
    "text",
    ["a: " + "[" * 5000 + "]" * 5000, "a: " + "{b: " * 100 + "1" + "}" * 100],
    ids=["lists", "mappings"],
)
def test_refuses_deep_nesting(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="nested more than 20 levels deep"):
        load_params(path)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run from the repository's root"):
        load_params(tmp_path / "params.yaml")


def test_a_number_in_exponent_form_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tiny_params()).replace("learning_rate: 0.01", "learning_rate: 1e-2"))
    assert load_params(path).recipes["plain"].learning_rate == 0.01


def test_the_profile_scales_and_the_experiment_keeps_the_papers_configuration(workspace: Workspace) -> None:
    run = load_params().run("spgnet-small")
    assert run.options == {"backbone": "resnet18_narrow", "stages": 2}
    assert run.experiment.options["backbone"] == "resnet50"
    assert (run.recipe.steps, run.recipe.crop, run.recipe.learning_rate) == (4, (32, 64), 0.02)
    assert (run.paper_recipe.steps, run.paper_recipe.crop) == (100, (512, 512))
    assert run.dataset == "scenes"


def test_a_profile_sets_other_defaults_for_a_models_options(workspace: Workspace) -> None:
    """An experiment's own option stays, and so does the network at the paper's scale."""
    at(workspace.params, "experiments/gun-small/options")["guidance"] = "large-rf"
    workspace.write()
    before = load_params().run("gun-small")
    workspace.profile["options"]["gun"] = {"sampling": "nearest"}
    workspace.write()
    run = load_params().run("gun-small")
    assert run.settled.here["sampling"] == "nearest"
    assert run.settled.paper == before.settled.paper
    assert run.training_digest(0, "data") == before.training_digest(0, "data")  # it is of inference only
    at(workspace.params, "experiments/gun-small/options")["sampling"] = "bilinear"
    workspace.write()
    assert load_params().run("gun-small").settled.here["sampling"] == "bilinear"


def test_a_shorter_training_warms_up_for_the_same_share(workspace: Workspace) -> None:
    workspace.params["recipes"]["plain"]["warmup"] = {"steps": 50}
    workspace.write()
    assert load_params().run("gun-small").recipe.warmup.steps == 2  # of 4, as 50 of 100


def test_a_profile_warms_up_every_recipe_for_as_many_of_its_own_steps(workspace: Workspace) -> None:
    workspace.params["recipes"]["plain"]["warmup"] = {"steps": 50}
    workspace.profile["recipe"]["warmup"] = {"steps": 3, "ratio": 0.01}
    workspace.write()
    assert load_params().run("gun-small").recipe.warmup == Warmup(steps=3, ratio=0.01)
    workspace.profile["recipe"]["warmup"] = {"steps": 0}
    workspace.write()
    assert load_params().run("gun-small").recipe.warmup == Warmup(steps=0)


def test_a_recipe_takes_from_the_one_that_it_extends_what_it_does_not_say_itself(
    workspace: Workspace,
) -> None:
    workspace.params["recipes"]["other"] = {"extends": "plain", "momentum": 0.5}
    workspace.write()
    params = load_params()
    assert params.recipes["other"] == params.recipes["plain"].model_copy(update={"momentum": 0.5})


def test_a_profile_changes_all_recipes_then_one_then_one_experiment(workspace: Workspace) -> None:
    profile = workspace.profile
    profile["recipes"] = {"plain": {"learning_rate": 0.3, "clip_gradient": 1.0}}
    profile["experiments"] = {"gun-small": {"clip_gradient": 0.1, "steps": 7}}
    workspace.write()
    params = load_params()
    both = {key: params.run(key).recipe for key in params.experiments}
    assert {key: (r.learning_rate, r.clip_gradient, r.steps) for key, r in both.items()} == {
        "spgnet-small": (0.3, 1.0, 4),
        "gun-small": (0.3, 0.1, 7),
    }
    assert {key: params.run(key).exceptions for key in both} == {
        "spgnet-small": {"learning_rate": 0.3, "clip_gradient": 1.0},
        "gun-small": {"learning_rate": 0.3, "clip_gradient": 0.1, "steps": 7},
    }


def test_a_class_of_another_profiles_data_set_is_known(workspace: Workspace) -> None:
    """A claim about one's own classes does not stop who runs another profile."""
    own = {
        "train": {"images": "a", "labels": "b"},
        "val": {"images": "c", "labels": "d"},
        "classes": {"ground": [0, 0, 0], "leaf": [0, 158, 115]},
    }
    mine = json.loads(json.dumps(workspace.profile))
    workspace.params["profiles"]["mine"] = mine | {"datasets": {"folders": own}, "stand_in": "folders"}
    workspace.params["claims"] = {
        "leaves": {
            "paper": "gun", "says": "more leaves", "source": "question", "better": "gun-small",
            "worse": "spgnet-small", "metric": "class_iou@leaf",
        }
    }  # fmt: skip
    assert load(workspace.params, workspace.folder).claims["leaves"].what.of == "leaf"
    workspace.params["claims"]["leaves"]["metric"] = "class_iou@leave"
    with pytest.raises(ConfigError, match="unknown class 'leave'; did you mean 'leaf'"):
        load(workspace.params, workspace.folder)


def test_a_paper_is_free_and_so_is_its_table(workspace: Workspace) -> None:
    workspace.params["experiments"]["gun-small"] |= {"paper": "mine", "table": "first-try"}
    workspace.write()
    assert load_params().run("gun-small").experiment.paper == "mine"


def test_what_the_check_of_the_models_found_is_kept(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_params()
    monkeypatch.setattr(model_options, "_ask_models", lambda *_: pytest.fail("asked again"))
    assert load_params().run("gun-small").settled.here["guidance"] == "none"


def test_dvc_changes_one_line_for_each_setting(tmp_path: Path) -> None:
    """With DVC's own function: params.yaml is kept as DVC writes it."""
    from dvc.utils.hydra import apply_overrides

    path = tmp_path / "params.yaml"
    before = (ROOT / "params.yaml").read_text()
    path.write_text(before)
    apply_overrides(path, [])
    assert path.read_text() == before
    settings = [
        "experiments.gun-fusion.options.guidance=high-res",
        "recipes.gun.learning_rate=0.002",
        "profiles.quick.recipe.steps=30",
        "profiles.quick.evaluation.gallery=2",
        "profile=camvid-cpu",
    ]
    apply_overrides(path, settings)
    changed = [
        (old, new)
        for old, new in zip(before.splitlines(), path.read_text().splitlines(), strict=True)
        if old != new
    ]
    assert len(changed) == 5
    loaded = load_params(path)
    # A recipe that others extend still reaches them.
    assert loaded.recipes["gun-aug-none"].learning_rate == 0.002
    assert loaded.experiments["gun-fusion"].options["guidance"] == "high-res"


def test_marks_and_questions_are_explained_where_they_stand() -> None:
    text = (ROOT / "params.yaml").read_text()
    assert "RQ" not in text
    assert "notes" not in text


@pytest.mark.parametrize("profile", ["quick", "camvid-cpu", "camvid", "paper"])
def test_the_projects_own_params_are_valid_in_every_profile(profile: str, tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("profile: quick", f"profile: {profile}", 1)
    path = tmp_path / "params.yaml"
    path.write_text(text)
    params = load_params(path)
    assert params.profile == profile
    for key, experiment in params.experiments.items():
        assert params.run(key).dataset in datasets.names()
        assert experiment.model in models.names()


@pytest.mark.parametrize("name", models.names())
def test_every_experiment_builds_and_runs_in_every_profile(name: str, tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    networks: dict[str, Run] = {}
    for profile in params["profiles"]:
        loaded = load(params | {"profile": profile}, tmp_path)
        runs = [loaded.run(key) for key, entry in loaded.experiments.items() if entry.model == name]
        networks |= {json.dumps(run.options, sort_keys=True): run for run in runs}
    # Each backbone once, and each of the other options once: not every pair of them.
    seen: set[str] = set()
    for run in networks.values():
        others = json.dumps({k: v for k, v in run.options.items() if k != "backbone"}, sort_keys=True)
        if {run.backbone, others} <= seen:
            continue
        seen |= {run.backbone, others}
        with torch.device("meta"):
            model = models.create(name, 11, **run.options).eval().requires_grad_(False)
            logits = model(torch.zeros(1, 3, 64, 96)).logits
        assert logits.shape == (1, 11, 64, 96), (run.profile_name, run.key)


@pytest.mark.parametrize("model", models.names())
def test_the_experiments_of_one_model_are_enough(model: str, tmp_path: Path) -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["experiments"] = {k: e for k, e in params["experiments"].items() if e["model"] == model}
    params["claims"] = {}
    for profile in params["profiles"].values():
        profile["experiments"] = {}
    assert set(load(params, tmp_path).experiments) == set(params["experiments"])


def test_every_recipe_is_used() -> None:
    params = load_params(ROOT / "params.yaml")
    assert {experiment.recipe for experiment in params.experiments.values()} == set(params.recipes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("profile: 2020-13-45\n", "holds a value that cannot be read: month must be in 1..12"),
        (f"profile: {'9' * 10_000}\n", "holds a value that cannot be read: Exceeds the limit"),
        ("? [a, b]\n: c\n", "line 1: not valid YAML: a key that is a list or a mapping"),
        ("- a\n" * 2_000_000, "has more than 4194304 bytes; expected settings"),
    ],
    ids=["day", "number", "key", "size"],
)
def test_params_that_mean_harm_are_refused_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as refused:
        load_params(path)
    assert "\n" not in str(refused.value)
