"""The table of what the authors trained with beside what the recipes here say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT, Workspace

from experiments.config.params import load_params
from experiments.config.recipes import Recipe
from experiments.reporting import recipes
from experiments.reporting.rendering import lay_out, render
from experiments.running.errors import StageError

PARAMS = load_params(ROOT / "params.yaml")
STATED = recipes.load_stated(ROOT / recipes.STATED)


def test_every_recipe_is_stated_and_every_stated_one_is_a_recipe() -> None:
    assert set(STATED) == set(PARAMS.recipes)


@pytest.mark.parametrize("name", STATED)
def test_what_was_read_is_what_is_trained_or_the_reason_is_given(name: str) -> None:
    for setting, line in STATED[name].settings.items():
        found = recipes.ours(PARAMS.recipes[name], setting)
        if line.mark != "I" and not line.because:
            # As JSON, where 1 is 1.0.
            assert json.loads(json.dumps(found)) == line.authors, (name, setting)
        if line.because:
            assert found != line.authors, f"{name}: {setting} is the same after all"


@pytest.mark.parametrize("name", STATED)
def test_no_setting_that_a_recipe_makes_is_left_out(name: str) -> None:
    recipe = PARAMS.recipes[name]
    minimal = {"optimizer": "sgd", "learning_rate": 1.0, "steps": 1, "batch_size": 1}
    default = Recipe.model_validate(minimal | {"crop": [1, 1], "input_size": [1, 1]})
    made = {key for key in Recipe.model_fields if getattr(recipe, key) != getattr(default, key)}
    stated = {setting.split(".")[0] for setting in STATED[name].settings}
    # The size of a network's input at test belongs to the protocol of its scores, and so does this one
    # where training has short sides of its own.
    made -= {"input_size"} | ({"short_side"} if recipe.augmentation.short_sides else set())
    assert made <= stated


def test_the_table_sets_both_side_by_side() -> None:
    table = recipes.recipe_table(PARAMS)
    rows = table.rows.set_index(["Recipe", "Setting"])
    lines = rows.to_dict("index")
    line = lines["alignseg", "normalisation"]
    assert (line["Authors' configuration"], line["Ours"], line["Mark"]) == ("bgr-mean", "standard", "R")
    assert "timm" in line["Differs because"]
    assert lines["semask-mask2former", "backbone_factor"]["Ours"] == "0.1"
    assert "| semask-maskformer" in render(lay_out(table))["md"]


def test_without_the_file_there_is_no_table(workspace: Workspace) -> None:
    assert recipes.recipe_table(load_params()).rows.empty


def test_a_recipe_of_ones_own_has_no_line(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "load_stated", lambda: STATED)
    assert recipes.recipe_table(load_params()).rows.empty


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("alignseg: {settings: {}}", "alignseg.source: missing"),
        ("alignseg: {source: x, settings: {crop: {authors: 1, mark: X}}}", "alignseg.settings.crop.mark"),
        ("[", "cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "recipes.yaml"
    path.write_text(text)
    with pytest.raises(StageError, match=complaint):
        recipes.load_stated(path)
    with pytest.raises(StageError, match="no setting 'momentun'"):
        recipes.ours(PARAMS.recipes["gun"], "momentun")
