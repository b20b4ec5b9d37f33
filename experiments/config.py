"""``params.yaml`` as typed, validated objects, and an experiment as one profile runs it.

A model's options are typed by its constructor: what a model takes is said once, in ``models/``.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model, model_validator
from pydantic.types import Strict
from pydantic_core import ErrorDetails, PydanticCustomError

from experiments import datasets
from experiments.strict import Strictly, nearest

if TYPE_CHECKING:
    from models import Segmenter

PARAMS_FILE = Path("params.yaml")

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
# Strict scalars in a tuple that may be written as a YAML list.
Size = Annotated[tuple[Count, Count], Strict(False)]
"""Height and width in pixels."""
Interval = Annotated[tuple[Positive, Positive], Strict(False)]


class ConfigError(Exception):
    """A params file that cannot be used; the message names the key, in one line."""


class ColourJitter(Strictly):
    """How far torchvision's ``ColorJitter`` changes each property; hue at most 0.5."""

    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Augmentation(Strictly):
    """What happens to a training image before it is cropped."""

    mirror: bool = True
    """Flips left and right, half of the time."""
    scale: Interval | None = (0.5, 2.0)
    """Factors between which the image is resized; ``null`` leaves its size."""
    colour: ColourJitter | None = None
    max_class_share: Fraction = 1.0
    """A crop with more of one class than this is drawn again, ten times at most."""

    @model_validator(mode="after")
    def _ordered(self) -> Augmentation:
        if self.scale is not None and self.scale[0] > self.scale[1]:
            raise PydanticCustomError(
                "order", "scale is {scale}; expected the smaller factor first", {"scale": list(self.scale)}
            )
        return self


class PolySchedule(Strictly):
    """Learning rate times (1 - step / steps) ** power."""

    kind: Literal["poly"] = "poly"
    power: NonNegative = 0.9


class StepSchedule(Strictly):
    """Learning rate times ``factor`` after each of the milestones."""

    kind: Literal["step"]
    milestones: list[Fraction]
    """Shares of the training after which the rate drops."""
    factor: Fraction = 0.1


class Warmup(Strictly):
    """The rate grows linearly from ``ratio`` of itself over the first part of the training."""

    steps: Natural = 0
    """Of a training of the recipe's own length; a profile that trains for fewer steps warms up
    for the same share of them."""
    ratio: Fraction = 1e-5


class Loss(Strictly):
    """A loss of ``experiments.losses`` and its options."""

    name: str = "cross-entropy"
    options: dict[str, Any] = {}


class Recipe(Strictly):
    """How a paper trains."""

    optimizer: Literal["sgd", "adamw"]
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD."""
    betas: Annotated[tuple[NonNegative, NonNegative], Strict(False)] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: NonNegative = 0.0
    decay_norms: bool = True
    """False: no weight decay on norms, biases and position embeddings."""
    schedule: PolySchedule | StepSchedule = Field(default=PolySchedule(), discriminator="kind")
    warmup: Warmup = Warmup()
    clip_gradient: Positive | None = None
    """Greatest norm of all gradients together; ``null`` does not clip."""
    steps: Count
    batch_size: Count
    """Images per step, over all devices together."""
    crop: Size
    augmentation: Augmentation = Augmentation()
    subsampling: Count = 1
    """The network sees the image at 1 / this of its size; it is scored at full size."""
    loss: Loss = Loss()
    pretrained: bool | str = True
    """ImageNet weights: ``true`` from the hub, a path to a local file, or ``false``."""
    sync_batch_norm: bool = True
    """Over several devices, batch norm sees all of them."""
    input_size: Size
    """Height and width of the network's input at test, which complexity and speed are counted at."""


class RecipeOverrides(Strictly):
    """What a profile changes in every recipe; what it leaves out stays the paper's."""

    learning_rate: dict[Literal["sgd", "adamw"], Positive] = {}
    steps: Count | None = None
    batch_size: Count | None = None
    crop: Size | None = None
    scale: Interval | None = None
    """Replaces the factors of recipes that scale at all."""
    subsampling: Count | None = None
    ohem_min_kept: Count | None = None
    """Pixels that OHEM keeps at least: a number that only fits the paper's crop and batch."""
    pretrained: bool | str | None = None

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe as it is trained under this profile."""
        changed: dict[str, Any] = {
            name: value
            for name in ("steps", "batch_size", "crop", "subsampling", "pretrained")
            if (value := getattr(self, name)) is not None
        }
        if recipe.optimizer in self.learning_rate:
            changed["learning_rate"] = self.learning_rate[recipe.optimizer]
        if self.scale is not None and recipe.augmentation.scale is not None:
            changed["augmentation"] = recipe.augmentation.model_copy(update={"scale": self.scale})
        if self.steps is not None:
            share = self.steps / recipe.steps
            changed["warmup"] = recipe.warmup.model_copy(update={"steps": round(recipe.warmup.steps * share)})
        if self.ohem_min_kept is not None and "min_kept" in recipe.loss.options:
            options = {**recipe.loss.options, "min_kept": self.ohem_min_kept}
            changed["loss"] = recipe.loss.model_copy(update={"options": options})
        return recipe.model_copy(update=changed)


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
                path, message = _describe(error.errors()[0])
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
        keys, message = _describe(errors[0])
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ConfigError(f"{path}: {'.'.join(keys)}: {message}{more}") from None
    _check_models(params, path)
    return params


def _describe(error: ErrorDetails) -> tuple[list[str], str]:
    """Path of the key and what is wrong with it."""
    # Names of a union's members are pydantic's business, not keys of the file.
    path = [str(part) for part in error["loc"] if part not in ("poly", "step", "bool", "str")]
    context = error.get("ctx", {})
    if error["type"] == "missing":
        return path, "missing; it has to be given"
    if "key" in context:
        return [*path, str(context["key"])], error["msg"]
    if isinstance(error["input"], dict | list):
        return path, error["msg"]
    return (
        path,
        f"{error['msg'].removeprefix('Input s').replace('hould', 'should', 1)}, found {error['input']!r}",
    )


def _check_models(params: Params, path: Path) -> None:
    """Refuses models, options and backbones that do not exist, before anything is built.

    Raises:
        ConfigError: the first one, with the key's path.
    """
    import models  # here, not above: ``--help`` need not wait for torch
    from experiments import losses

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
            _check_backbone(users or set(classes.values()), new, where)
            _check_backbone(users or set(classes.values()), old, where)
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
        keys, message = _describe(error.errors()[0])
        raise ConfigError(f"{'.'.join([where, *keys])}: {message}") from None


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
