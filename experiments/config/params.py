"""``params.yaml`` as typed, validated objects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from experiments.config import model_options
from experiments.config.claims import Claim, check_claims
from experiments.config.entries import Experiment, Profile, plugged_in_datasets
from experiments.config.model_options import SettledOptions
from experiments.config.recipes import Recipe, changed
from experiments.config.run import Run
from experiments.config.strict import ConfigError, Natural, StrictModel, at, describe, nearest
from experiments.running import paths
from experiments.running.paths import ProfilePaths


class Params(StrictModel):
    """The whole of ``params.yaml``."""

    profile: str
    seeds: Annotated[list[Natural], Field(min_length=1)]
    profiles: dict[str, Profile]
    recipes: dict[str, Recipe]
    experiments: Annotated[dict[str, Experiment], Field(min_length=1)]
    claims: dict[str, Claim] = {}
    _settled: dict[str, SettledOptions] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _inherit_recipes(cls, values: Any) -> Any:
        """Gives every recipe the keys of the one that it extends and does not have itself."""
        recipes = values.get("recipes") if isinstance(values, dict) else None
        if not isinstance(recipes, dict):
            return values
        return values | {"recipes": {name: _inherited(name, recipes) for name in recipes}}

    @model_validator(mode="after")
    def _references(self) -> Params:
        datasets = plugged_in_datasets()
        if self.profile not in self.profiles:
            _refuse("profile", "profile", self.profile, self.profiles)
        if len(set(self.seeds)) != len(self.seeds):
            raise PydanticCustomError(
                "seeds", "{seeds} names a seed twice", {"seeds": self.seeds, "key": "seeds"}
            )
        for name in self.profiles:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name):  # it is the name of a folder
                raise PydanticCustomError(
                    "name",
                    "a profile's name has letters, digits, hyphen and underscore",
                    {"key": f"profiles.{name}"},
                )
        profile = self.profiles[self.profile]
        for key, experiment in self.experiments.items():
            if not re.fullmatch(r"[a-z0-9-]+", key):
                raise PydanticCustomError(
                    "key",
                    "an experiment's key has the characters a-z, 0-9 and hyphen",
                    {"key": f"experiments.{key}"},
                )
            if experiment.recipe not in self.recipes:
                _refuse(f"experiments.{key}.recipe", "recipe", experiment.recipe, self.recipes)
            if experiment.dataset not in datasets.names():
                _refuse(f"experiments.{key}.dataset", "data set", experiment.dataset, datasets.names())
            if profile.stand_in is None and experiment.dataset not in profile.datasets:
                raise PydanticCustomError(
                    "dataset",
                    "profile '{profile}' has no data set '{found}' and no stand-in for it; add it under "
                    "profiles.{profile}.datasets or set profiles.{profile}.stand_in",
                    {
                        "profile": self.profile,
                        "found": experiment.dataset,
                        "key": f"experiments.{key}.dataset",
                    },
                )
        for name, each in self.profiles.items():
            self._check_overrides(f"profiles.{name}", each)

        # Of all profiles: a class of one's own data set is known, if not measured, under the others, too.
        given = [pair for each in self.profiles.values() for pair in each.datasets.items()]

        def classes(dataset: str) -> set[str]:
            found: list[dict[str, Any] | None] = [options for name, options in given if name == dataset]
            return {c.name for options in found or [None] for c in datasets.classes(dataset, options)}

        check_claims(self.claims, self.experiments, self.recipes, classes, {name for name, _ in given})
        for key, claim in self.claims.items():
            if claim.dataset is not None and claim.dataset not in datasets.names():
                _refuse(f"claims.{key}.dataset", "data set", claim.dataset, datasets.names())
        return self

    def _check_overrides(self, where: str, profile: Profile) -> None:
        for name, values in profile.recipes.items():
            if name not in self.recipes:
                _refuse(f"{where}.recipes.{name}", "recipe", name, self.recipes)
            try:
                changed(profile.recipe.apply(self.recipes[name]), values)
            except ValidationError as error:
                raise at(f"{where}.recipes.{name}", error) from None
        for key, values in profile.experiments.items():
            if key not in self.experiments:
                _refuse(f"{where}.experiments.{key}", "experiment", key, self.experiments)
            try:
                changed(self.recipes[self.experiments[key].recipe], values)
            except ValidationError as error:
                raise at(f"{where}.experiments.{key}", error) from None

    @property
    def active(self) -> Profile:
        """The profile that is in force."""
        return self.profiles[self.profile]

    @property
    def paths(self) -> ProfilePaths:
        """Where the active profile's files are."""
        return ProfilePaths(self.profile)

    def run(self, key: str) -> Run:
        """An experiment as the active profile runs it.

        Raises:
            ConfigError: no such experiment.
        """
        if key not in self.experiments:
            raise ConfigError(
                f"{paths.PARAMS}: experiments: unknown experiment '{key}'; {nearest(key, self.experiments)}"
            )
        experiment = self.experiments[key]
        return Run(
            key, self.profile, self.active, experiment, self.recipes[experiment.recipe], self._settled[key]
        )

    def check_models(self, path: Path) -> None:
        """Asks the models what they make of their options.

        Args:
            path: of the params file, for the error.

        Raises:
            ConfigError: a model, option or backbone that does not exist or fit, with the key's path.
        """
        settled = model_options.settle(self.experiments, self.profiles, self.profile, path)
        self._settled.update(settled)

    def runs(self, keys: Iterable[str] | None = None) -> list[Run]:
        """Some experiments, or all."""
        return [self.run(key) for key in (self.experiments if keys is None else keys)]


def load_params(path: Path = paths.PARAMS, profile: str | None = None, *, models: bool = True) -> Params:
    """Reads and validates a params file.

    Args:
        path: of the file.
        profile: to put in force in place of the file's own.
        models: whether to ask the models what they make of their options, which takes seconds if they were
            not asked before. Without, that only begins, and ``check_models`` has to come before ``run``.

    Raises:
        ConfigError: the file is missing, is not YAML, or says something impossible.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path}: has more than {_MOST_BYTES} bytes; expected settings")
        text = path.read_text(encoding="utf-8")
        _check_plainness(text)
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 (a safe loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the repository's root") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{where}: not valid YAML: {' '.join(problem.split())}") from None
    except ValueError as error:  # a day that no calendar has, or a number of thousands of digits
        raise ConfigError(f"{path}: holds a value that cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, expected a mapping with the key 'profile'")
    if profile is not None:
        values["profile"] = profile
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        keys, message = describe(errors[0])
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(f"{path}: {'.'.join(keys)}: {message}{more}") from None
    if models:
        params.check_models(path)
    else:
        model_options.begin(params.experiments, params.profiles, params.profile)
    return params


def _inherited(name: str, recipes: Mapping[str, Any]) -> Any:
    """A recipe as given, with what it takes from the one that it extends."""
    own = recipes[name]
    if not isinstance(own, dict) or "extends" not in own:
        return own
    base = own["extends"]
    where = f"recipes.{name}.extends"
    if base not in recipes:
        _refuse(where, "recipe", base, recipes)
    further = recipes[base].get("extends") if isinstance(recipes[base], dict) else None
    if base == name or further == name:
        raise PydanticCustomError(
            "circle",
            "'{base}' goes in a circle; expected a recipe that extends none",
            {"base": base, "key": where},
        )
    if further is not None:
        raise PydanticCustomError(
            "level",
            "'{base}' itself extends '{further}'; expected a recipe that extends none",
            {"base": base, "further": further, "key": where},
        )
    inherited = recipes[base] if isinstance(recipes[base], dict) else {}
    return {key: value for key, value in (inherited | own).items() if key != "extends"}


def _refuse(key: str, what: str, found: str, valid: Iterable[str]) -> None:
    raise PydanticCustomError(
        "reference",
        "unknown {what} '{found}'; {hint}",
        {"what": what, "found": found, "hint": nearest(found, valid), "key": key},
    )


class _Problem(yaml.MarkedYAMLError):
    def __init__(self, problem: str, mark: Any):
        super().__init__(problem=problem, problem_mark=mark)


def _check_plainness(text: str) -> None:
    """Raises ``yaml.YAMLError`` for what needs no building to be refused.

    Anchors and merges: ``dvc exp run -S`` writes them out, and the file falls apart; and aliases of
    aliases grow without bound. Nesting: the parser recurses.
    """
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        anchor = getattr(event, "anchor", None)
        if anchor is not None:
            problem = f"the anchor or alias '{anchor}'; write the values out, or let a recipe extend another"
            raise _Problem(problem, event.start_mark)
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            problem = f"nested more than {_DEEPEST} levels deep"
            raise _Problem(problem, event.start_mark)


_DEEPEST = 20
_MOST_BYTES = 4 * 2**20


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]
    """YAML as DVC reads it: 1e-4 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _Problem("a key that is a list or a mapping", key_node.start_mark)
            key = self.construct_object(key_node)
            if key in seen:
                raise _Problem(f"the key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
