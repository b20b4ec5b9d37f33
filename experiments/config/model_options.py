"""Whether the models, options and backbones that params.yaml names exist and fit, and what they settle to.

A model's options are typed by its constructor: what it takes is said once, there. Asking it needs torch,
whose import takes seconds; so what came out is kept, and asked again when params or models have changed.
"""

from __future__ import annotations

import inspect
import json
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import BaseModel, ValidationError, create_model, model_validator
from pydantic_core import PydanticCustomError

from experiments.config.entries import Experiment, Profile, plugged_in_datasets
from experiments.config.strict import ConfigError, StrictModel, describe, nearest
from experiments.running import digests, paths, server, storage, workers

if TYPE_CHECKING:
    from models import Segmenter


@dataclass(frozen=True)
class SettledOptions:
    """A model's options with every default, and without those that have no effect beside the others.

    Two experiments with the same settled options are the same network, however they are written.
    """

    here: dict[str, Any]
    """Under the active profile."""
    paper: dict[str, Any]
    """At the paper's scale."""
    training_only: list[str]
    """Options that the network at test does not depend on."""
    inference_only: list[str]
    """Options that training does not depend on."""
    without_effect: list[str]
    """Options that are given although they have no effect beside the others."""


def settle(
    experiments: Mapping[str, Experiment], profiles: Mapping[str, Profile], active: str, path: Path
) -> dict[str, SettledOptions]:
    """Checks models, options and backbones before anything is built, and settles the options.

    Args:
        experiments: by key.
        profiles: by name; the backbones of each are checked.
        active: name of the profile in force.
        path: of the params file, for the error.

    Raises:
        ConfigError: a model, option or backbone that does not exist or fit, with the key's path.
    """
    asked, kept = _question(experiments, profiles, active)
    if kept.is_file():
        answers = storage.read_json(kept, f"remove {kept}")
    else:
        if "torch" in sys.modules:
            answers = _ask_models(asked, str(path))
        else:
            place = "experiments.config.model_options:_ask_models"
            answers = workers.ask(place, asked, str(path), imports=server.COMPUTING)
        for old in sorted(paths.CHECKED_PARAMS.glob("*.json"), key=lambda p: p.stat().st_mtime)[:-20]:
            old.unlink(missing_ok=True)
        storage.write_json(kept, answers)
    try:
        return {key: SettledOptions(**answers[key]) for key in experiments}
    except (KeyError, TypeError):
        raise storage.StorageError(f"{kept}: is not what this edition keeps; remove it") from None


def begin(experiments: Mapping[str, Experiment], profiles: Mapping[str, Profile], active: str) -> None:
    """Has another process import what ``settle`` will need, unless the answers are kept."""
    if "torch" not in sys.modules and not _question(experiments, profiles, active)[1].is_file():
        server.start_ahead(server.COMPUTING)


def _question(
    experiments: Mapping[str, Experiment], profiles: Mapping[str, Profile], active: str
) -> tuple[dict[str, Any], Path]:
    """What the models are asked, and the file that keeps their answers."""
    asked = {
        "experiments": {
            key: {"model": e.model, "options": e.options, "paper": _num_classes(e.dataset, profiles[active])}
            | {"here": _num_classes(profiles[active].stand_in or e.dataset, profiles[active])}
            for key, e in experiments.items()
        },
        "backbones": {name: profile.backbones for name, profile in profiles.items()},
        "options": {name: profile.options for name, profile in profiles.items()},
        "active": active,
    }
    digest = digests.of_value([asked, digests.of_code(folders=("models", "experiments/config"))])
    return asked, paths.CHECKED_PARAMS / f"{digest[:32]}.json"


def _num_classes(dataset: str, profile: Profile) -> int:
    return len(plugged_in_datasets().classes(dataset, profile.datasets.get(dataset)))


def _ask_models(asked: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
    """What ``settle`` keeps, found by importing the models."""
    import models

    classes: dict[str, type[Segmenter]] = {}
    for key, experiment in asked["experiments"].items():
        where = f"{path}: experiments.{key}"
        classes[key] = _class(experiment["model"], f"{where}.model")
        _check_options(classes[key], experiment["options"], f"{where}.options")
    for profile, backbones in asked["backbones"].items():
        for old, new in backbones.items():
            users = {
                classes[key]
                for key, experiment in asked["experiments"].items()
                if experiment["options"].get("backbone") == old
            }
            where = f"{path}: profiles.{profile}.backbones.{old}"
            # A line that no experiment uses now is there for one that was taken out, of any model.
            candidates = users or {models.model_class(name) for name in models.names()}
            _check_backbone(candidates, new, where)
            _check_backbone(candidates, old, where)
    for profile, defaults in asked["options"].items():
        for name, options in defaults.items():
            where = f"{path}: profiles.{profile}.options.{name}"
            cls = _class(name, where)
            _check_options(cls, options, where, complete=False)
            if "backbone" in options:
                _check_backbone({cls}, options["backbone"], f"{where}.backbone")
    answers = {}
    for key, experiment in asked["experiments"].items():
        cls, options = classes[key], experiment["options"]
        if "backbone" in options:
            _check_backbone({cls}, options["backbone"], f"{path}: experiments.{key}.options.backbone")
        active = asked["active"]
        defaults = asked["options"][active].get(experiment["model"], {})
        smaller = scaled(options, defaults, asked["backbones"][active])
        paper = cls.settled_options(experiment["paper"], **options)
        answers[key] = asdict(
            SettledOptions(
                here=_plain(cls.settled_options(experiment["here"], **smaller)),
                paper=_plain(paper),
                training_only=sorted(cls.training_only),
                inference_only=sorted(cls.inference_only),
                without_effect=sorted(set(options) - set(paper)),
            )
        )
    return answers


def scaled(
    options: Mapping[str, Any], defaults: Mapping[str, Any], backbones: Mapping[str, str]
) -> dict[str, Any]:
    """A model's options under a profile.

    Args:
        options: of an experiment, at the paper's scale.
        defaults: the profile's, for this model.
        backbones: which smaller one replaces which.
    """
    changed = {**defaults, **options}
    if "backbone" in changed:
        changed["backbone"] = backbones.get(changed["backbone"], changed["backbone"])
    return changed


def _class(name: str, where: str) -> type[Segmenter]:
    """A model's class; raises ``ConfigError`` if there is no such model."""
    import models

    if name not in models.names():
        raise ConfigError(f"{where}: unknown model '{name}'; {nearest(name, models.names())}")
    try:
        return models.model_class(name)
    except Exception as error:  # a model of one's own may raise anything
        last = traceback.extract_tb(error.__traceback__)[-1]
        file, line = last.filename, last.lineno
        if isinstance(error, SyntaxError):
            file, line = str(error.filename), error.lineno
        raise ConfigError(
            f"{where}: model '{name}' cannot be imported ({type(error).__name__}: {storage.reason(error)}, "
            f"{Path(file).name} line {line})"
        ) from error


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON has it, where a tuple is a list."""
    plain: dict[str, Any] = json.loads(json.dumps(options))
    return plain


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


def _options_type(cls: Any) -> type[BaseModel]:
    """What ``params.yaml`` may give a model, typed by the annotations of its constructor."""
    if cls not in _options_types:
        hints = get_type_hints(cls.__init__)
        fields: dict[str, Any] = {}
        for name, parameter in inspect.signature(cls.__init__).parameters.items():
            if name in _NOT_OPTIONS:
                continue
            if name not in hints:
                raise ConfigError(
                    f"{cls.__module__.replace('.', '/')}.py: option '{name}' of {cls.__name__} has no "
                    f"annotation; expected one, as in '{name}: int = 64', to check params.yaml against"
                )
            fields[name] = hints[name], ... if parameter.default is parameter.empty else parameter.default
        _options_types[cls] = create_model(cls.__name__, __base__=_Options, **fields)
    return _options_types[cls]


_options_types: dict[Any, type[BaseModel]] = {}


_NOT_OPTIONS = {
    "self": "",
    "num_classes": "comes from the data set",
    "pretrained": "belongs to the recipe",
}
"""Arguments that are not set where the options are, and why."""


class _Options(StrictModel):
    @model_validator(mode="before")
    @classmethod
    def _set_elsewhere(cls, values: Any) -> Any:
        for key, reason in _NOT_OPTIONS.items():
            if isinstance(values, dict) and key in values:
                raise PydanticCustomError(
                    "elsewhere", "is no option: it {reason}", {"key": key, "reason": reason}
                )
        return values


def _check_options(cls: type[Segmenter], options: dict[str, Any], where: str, complete: bool = True) -> None:
    """Raises ``ConfigError`` unless the options fit the annotations of a model's constructor.

    Args:
        cls: of the model.
        options: as params.yaml has them.
        where: in params.yaml.
        complete: whether an option without a default has to be among them.
    """
    try:
        # As JSON: strict about scalars, while a list is what YAML has for a tuple.
        _options_type(cls).model_validate_json(json.dumps(options))
    except ValidationError as error:
        problems = [found for found in error.errors() if complete or found["type"] != "missing"]
        if problems:
            keys, message = describe(problems[0])
            raise ConfigError(f"{'.'.join([where, *keys])}: {message}") from None
