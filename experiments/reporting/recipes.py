"""What the papers' authors trained with, and what the recipes here say: a line for each setting.

``results/published/recipes.yaml`` is typed in by hand, each line with its mark; what is ours is read from
``params.yaml``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import TypeAdapter, ValidationError

from experiments.config.params import Params
from experiments.config.recipes import Recipe
from experiments.config.strict import StrictModel, describe
from experiments.reporting.rendering import Table
from experiments.running.errors import StageError
from experiments.running.paths import PUBLISHED

STATED = PUBLISHED / "recipes.yaml"
_LOADER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


class StatedSetting(StrictModel):
    """What a source says of one setting."""

    authors: Any
    """As a recipe would write it; text where no recipe can say it."""
    mark: Literal["S", "R", "I"]
    because: str = ""
    """Why the recipe here says something else."""


class StatedRecipe(StrictModel):
    """What a source says of one recipe."""

    source: str
    settings: dict[str, StatedSetting]
    """By the setting's name in a recipe, with a dot before a key of its own: ``augmentation.factors``."""


def load_stated(path: Path = STATED) -> dict[str, StatedRecipe]:
    """What is stated of every recipe, by its name; nothing where there is no such file.

    Raises:
        StageError: the file cannot be read, or a line of it says something impossible.
    """
    if not path.is_file():
        return {}
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 (a safe loader)
        return TypeAdapter(dict[str, StatedRecipe]).validate_python(values)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StageError(f"{path}: cannot be read ({error}); take it from git") from None
    except ValidationError as error:
        keys, message = describe(error.errors()[0])
        raise StageError(f"{path}: {'.'.join(keys)}: {message}") from None


def ours(recipe: Recipe, setting: str) -> Any:
    """What a recipe says of a setting.

    Raises:
        StageError: recipes have no such setting.
    """
    value: Any = recipe.model_dump(mode="json")
    for key in setting.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise StageError(f"{STATED}: a recipe has no setting '{setting}'")
        value = value[key]
    return value


def recipe_table(params: Params) -> Table:
    """Every stated setting of every recipe beside ours.

    Raises:
        StageError: the file of stated settings is broken, or names what no recipe has.
    """
    rows = []
    stated = load_stated()
    for name, recipe in params.recipes.items():
        if name not in stated:
            continue  # a recipe of the reader's own has no authors
        for setting, line in stated[name].settings.items():
            rows.append({
                "Recipe": name,
                "Setting": setting,
                "Authors' configuration": said(line.authors),
                "Ours": said(ours(recipe, setting)),
                "Mark": line.mark,
                "Differs because": line.because,
            })  # fmt: skip
    sources = "; ".join(f"{name}: {stated[name].source}" for name in params.recipes if name in stated)
    caption = (
        "Every setting of every recipe as params.yaml has it under no profile. S: stated in a published "
        f"abstract or review; R: read in the authors' repository; I: inferred. Sources: {sources}."
    )
    return Table(
        "recipes", caption, pd.DataFrame(rows), "Recipes beside the authors' configurations", "costs"
    )


def said(value: Any) -> str:
    """A value as a table has it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {said(each)}" for key, each in value.items())
    if isinstance(value, list):
        return " ".join(said(each) for each in value) or "none"
    if isinstance(value, float):
        return f"{value:g}"
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value)
