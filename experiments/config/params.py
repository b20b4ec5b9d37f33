"""``params.yaml`` as typed, validated objects, and an experiment as one profile runs it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from experiments import datasets
from experiments.config.checks import check_models
from experiments.config.recipes import Recipe, RecipeOverrides
from experiments.config.strict import ConfigError, Count, Natural, Size, Strictly, describe, nearest

PARAMS_FILE = Path("params.yaml")


class Training(Strictly):
    """How training runs on the machine; no setting here is part of a paper."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of autocast; weights and losses stay in float32."""
    workers: Natural = 2
    """Loader processes; 0 loads in the training process."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints."""
    log_every: Count = 10
    """Steps between rows of ``history.csv``."""


class Evaluation(Strictly):
    """How a trained model is scored."""

    batch_size: Count = 1
    trimap_widths: list[Count] = [1, 2, 3, 4, 6, 8, 12, 16]
    """Half-widths, in pixels, of the bands around label boundaries."""
    gallery: Natural = 4
    """Images whose predictions are kept for the report."""


class Speed(Strictly):
    """How inference is timed."""

    precisions: list[Literal["float32", "bfloat16", "float16"]] = ["float32"]
    modes: list[Literal["eager", "compile"]] = ["eager"]
    batch_sizes: list[Count] = [1]
    size: Size | None = None
    """Input size for every experiment; ``null`` takes each recipe's ``input_size``."""
    warmup: Natural = 10
    """Untimed forward passes before the timed ones."""
    repetitions: Count = 50


class Profile(Strictly):
    """How the experiments are run here.

    Every section has to be there, if only as ``{}``: DVC follows each of them by its key.
    """

    description: str
    datasets: dict[str, dict[str, Any]]
    """Options of each data set that ``prepare`` prepares, by name."""
    image_size: Size | None
    """Images are resized to this when prepared; ``null`` keeps their size. Validation labels
    always keep theirs, and scores are taken at it."""
    stand_in: str | None
    """The data set that stands in for every experiment's own; ``null`` uses the experiment's."""
    backbones: dict[str, str]
    """Which smaller backbone replaces which."""
    recipe: RecipeOverrides
    training: Training
    evaluation: Evaluation
    speed: Speed

    @model_validator(mode="after")
    def _known_datasets(self) -> Profile:
        if not self.datasets:
            raise PydanticCustomError(
                "empty",
                "datasets is empty; name at least one of {names}",
                {"names": ", ".join(datasets.names())},
            )
        for name, options in self.datasets.items():
            if name not in datasets.names():
                raise PydanticCustomError(
                    "dataset",
                    "unknown data set '{found}'; {hint}",
                    {"found": name, "hint": nearest(name, datasets.names()), "key": f"datasets.{name}"},
                )
            try:
                datasets.parse_options(name, options)
            except ValidationError as error:
                path, message = describe(error.errors()[0])
                raise PydanticCustomError(
                    "dataset", "{problem}", {"problem": message, "key": ".".join(["datasets", name, *path])}
                ) from None
        if self.stand_in is not None and self.stand_in not in self.datasets:
            raise PydanticCustomError(
                "stand_in",
                "'{found}' is not among the profile's data sets; {hint}",
                {"found": self.stand_in, "hint": nearest(self.stand_in, self.datasets), "key": "stand_in"},
            )
        return self


class Experiment(Strictly):
    """A model and its options at the paper's own scale, and the row of the table it mirrors."""

    paper: Literal["spgnet", "gun", "semask", "alignseg"]
    table: str
    row: str
    model: str
    options: dict[str, Any] = {}
    dataset: str
    recipe: str


class Params(Strictly):
    """The whole of ``params.yaml``."""

    profile: str
    seeds: Annotated[list[Natural], Field(min_length=1)]
    profiles: dict[str, Profile]
    recipes: dict[str, Recipe]
    experiments: Annotated[dict[str, Experiment], Field(min_length=1)]

    @model_validator(mode="after")
    def _references(self) -> Params:
        def refuse(key: str, what: str, found: str, valid: Iterable[str]) -> None:
            raise PydanticCustomError(
                "reference",
                "unknown {what} '{found}'; {hint}",
                {"what": what, "found": found, "hint": nearest(found, valid), "key": key},
            )

        if self.profile not in self.profiles:
            refuse("profile", "profile", self.profile, self.profiles)
        if len(set(self.seeds)) != len(self.seeds):
            raise PydanticCustomError(
                "seeds", "{seeds} names a seed twice", {"seeds": self.seeds, "key": "seeds"}
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
                refuse(f"experiments.{key}.recipe", "recipe", experiment.recipe, self.recipes)
            if experiment.dataset not in datasets.names():
                refuse(f"experiments.{key}.dataset", "data set", experiment.dataset, datasets.names())
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
        return self

    @property
    def active(self) -> Profile:
        """The profile that is in force."""
        return self.profiles[self.profile]

    def run(self, key: str) -> Run:
        """An experiment as the active profile runs it.

        Raises:
            ConfigError: no such experiment.
        """
        if key not in self.experiments:
            raise ConfigError(
                f"params.yaml: experiments: unknown experiment '{key}'; {nearest(key, self.experiments)}"
            )
        return Run(key=key, params=self)


class Run:
    """One experiment under the active profile: what the stages ask for, in one place."""

    def __init__(self, key: str, params: Params):
        self.key = key
        self.profile_name = params.profile
        self.profile = params.active
        self.experiment = params.experiments[key]
        self.paper_recipe = params.recipes[self.experiment.recipe]
        self.seeds = params.seeds

    @cached_property
    def recipe(self) -> Recipe:
        """The paper's recipe with the profile's overrides."""
        return self.profile.recipe.apply(self.paper_recipe)

    @property
    def dataset(self) -> str:
        """The data set that is used here."""
        return self.profile.stand_in or self.experiment.dataset

    @cached_property
    def options(self) -> dict[str, Any]:
        """The model's options with the profile's smaller backbone."""
        options = dict(self.experiment.options)
        if "backbone" in options:
            options["backbone"] = self.profile.backbones.get(options["backbone"], options["backbone"])
        return options

    def configuration(self, seed: int, data: str) -> str:
        """Digest of all settings and data that a training is a function of, its code apart.

        Args:
            seed: of the training.
            data: digest of the prepared data.
        """
        return digest(
            {
                "model": self.experiment.model,
                "options": self.options,
                "recipe": self.recipe.model_dump(mode="json"),
                "precision": self.profile.training.precision,
                "seed": seed,
                "data": data,
            }
        )


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in canonical form, in hexadecimal."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def load(path: Path = PARAMS_FILE) -> Params:
    """Reads and validates a params file.

    Raises:
        ConfigError: the file is missing, is not YAML, or says something impossible.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 (a safe loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; run from the repository's root") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{path}{where}: not valid YAML: {problem}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: holds {type(values).__name__}, expected a mapping with the key 'profile'")
    try:
        params = Params.model_validate(values)
    except ValidationError as error:
        errors = error.errors()
        keys, message = describe(errors[0])
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(f"{path}: {'.'.join(keys)}: {message}{more}") from None
    check_models(params, path)
    return params


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads it: 1e-4 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)
