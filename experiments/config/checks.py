"""Whether the models, options, backbones and losses that params.yaml names exist and fit.

A model's or a loss's options are typed by its constructor: what it takes is said once, there.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import BaseModel, ValidationError, create_model, model_validator
from pydantic_core import PydanticCustomError

from experiments.config.strict import ConfigError, Strictly, describe, nearest

if TYPE_CHECKING:
    from experiments.config.params import Params
    from models import Segmenter


def check_models(params: Params, path: Path) -> None:
    """Refuses models, options and backbones that do not exist, before anything is built.

    Raises:
        ConfigError: the first one, with the key's path.
    """
    import models  # here, not above: ``--help`` need not wait for torch
    from experiments.training import losses

    for key, experiment in params.experiments.items():
        where = f"{path}: experiments.{key}"
        if experiment.model not in models.names():
            hint = nearest(experiment.model, models.names())
            raise ConfigError(f"{where}.model: unknown model '{experiment.model}'; {hint}")
        _check_options(models.model_class(experiment.model), experiment.options, f"{where}.options")
    for name, recipe in params.recipes.items():
        where = f"{path}: recipes.{name}.loss"
        if recipe.loss.name not in losses.LOSSES:
            raise ConfigError(
                f"{where}.name: unknown loss '{recipe.loss.name}'; {nearest(recipe.loss.name, losses.LOSSES)}"
            )
        _check_options(losses.LOSSES[recipe.loss.name], recipe.loss.options, f"{where}.options")
    classes = {key: models.model_class(experiment.model) for key, experiment in params.experiments.items()}
    for profile, settings in params.profiles.items():
        for old, new in settings.backbones.items():
            users = {
                classes[key] for key, e in params.experiments.items() if e.options.get("backbone") == old
            }
            where = f"{path}: profiles.{profile}.backbones.{old}"
            # A line that no experiment uses now is there for one that was taken out, of any model.
            candidates = users or {models.model_class(name) for name in models.names()}
            _check_backbone(candidates, new, where)
            _check_backbone(candidates, old, where)
    for key, experiment in params.experiments.items():
        if "backbone" in experiment.options:
            where = f"{path}: experiments.{key}.options.backbone"
            _check_backbone({classes[key]}, experiment.options["backbone"], where)


def _check_backbone(classes: set[type[Segmenter]], name: str, where: str) -> None:
    """Raises ``ConfigError`` unless one of the models knows the backbone."""
    problem: ValueError | None = None
    for cls in classes:
        try:
            cls.check_backbone(name)
            return
        except ValueError as error:
            problem = error
    raise ConfigError(f"{where}: {problem}")


@cache
def _options_type(factory: Callable[..., Any]) -> type[BaseModel]:
    """What ``params.yaml`` may give a class or function, typed by its annotations."""
    function: Any = getattr(factory, "__init__") if isinstance(factory, type) else factory  # noqa: B009 (for mypy)
    hints = get_type_hints(function)
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in _NOT_OPTIONS
    }
    return create_model(factory.__name__, __base__=_Options, **fields)


_NOT_OPTIONS = {
    "self": "",
    "num_classes": "comes from the data set",
    "class_counts": "come from the data set",
    "pretrained": "belongs to the recipe",
}
"""Arguments that are not set where the options are, and why."""


class _Options(Strictly):
    @model_validator(mode="before")
    @classmethod
    def _set_elsewhere(cls, values: Any) -> Any:
        for key, reason in _NOT_OPTIONS.items():
            if isinstance(values, dict) and key in values:
                raise PydanticCustomError(
                    "elsewhere", "is no option: it {reason}", {"key": key, "reason": reason}
                )
        return values


def _check_options(factory: Callable[..., Any], options: dict[str, Any], where: str) -> None:
    """Raises ``ConfigError`` unless the options fit the annotations of a class or function."""
    try:
        # As JSON: strict about scalars, while a list is what YAML has for a tuple.
        _options_type(factory).model_validate_json(json.dumps(options))
    except ValidationError as error:
        keys, message = describe(error.errors()[0])
        raise ConfigError(f"{'.'.join([where, *keys])}: {message}") from None
