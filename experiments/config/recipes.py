"""How a paper trains, and what a profile changes of it: ``recipes`` of ``params.yaml``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from pydantic.types import Strict
from pydantic_core import PydanticCustomError

from experiments.config.protocol import Protocol
from experiments.config.strict import (
    Count,
    Fraction,
    Interval,
    Natural,
    NonNegative,
    Positive,
    Size,
    StrictModel,
)


class ColourJitter(StrictModel):
    """How far torchvision's ``ColorJitter`` changes each property; hue in turns, at most 0.5."""

    probability: Fraction = 1.0
    """Probability of changing each property, independently."""
    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Augmentation(StrictModel):
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


class PolySchedule(StrictModel):
    """Learning rate times (1 - step / steps) ** power."""

    kind: Literal["poly"] = "poly"
    power: NonNegative = 0.9


class StepSchedule(StrictModel):
    """Learning rate times ``factor`` after each of the milestones."""

    kind: Literal["step"]
    milestones: list[Fraction]
    """Shares of the training after which the rate drops."""
    factor: Fraction = 0.1


class Warmup(StrictModel):
    """The rate grows linearly from ``ratio`` of itself over the first part of the training."""

    steps: Natural = 0
    """Of a training of the recipe's own length; a profile that trains for fewer steps warms up
    for the same share of them."""
    ratio: Fraction = 1e-5


class CrossEntropySettings(StrictModel):
    """Mean over the labelled pixels."""

    name: Literal["cross-entropy"] = "cross-entropy"


class OhemSettings(StrictModel):
    """Online hard example mining: the mean over the hard pixels."""

    name: Literal["ohem"]
    threshold: Fraction = 0.7
    """Probability of the true class below which a pixel is hard."""
    min_kept: Natural = 100_000
    """Pixels of a batch that are kept in any case, hardest first."""


class ClassBalancedSettings(StrictModel):
    """A pixel weighs the more, the rarer its class is in the training set."""

    name: Literal["class-balanced"]


LossSettings = Annotated[
    CrossEntropySettings | OhemSettings | ClassBalancedSettings, Field(discriminator="name")
]


class Recipe(StrictModel):
    """How a paper trains."""

    optimizer: Literal["sgd", "adamw"]
    learning_rate: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Used by SGD only."""
    betas: Annotated[tuple[NonNegative, NonNegative], Strict(False)] = (0.9, 0.999)
    """Used by AdamW only."""
    weight_decay: NonNegative = 0.0
    decay_norms: bool = True
    """False: no weight decay on norms and position embeddings."""
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
    """Training images are shrunk by this before all else."""
    short_side: Natural = 0
    """Training images are resized to this shorter side (the longer one at most four times as long) before all
    else; 0 leaves the size."""
    loss: LossSettings = CrossEntropySettings()
    pretrained: bool | str = True
    """ImageNet weights: ``true`` from the hub, a local file, a folder with a file for each backbone
    (``<backbone>.safetensors`` or ``<backbone>.pth``), or ``false``."""
    input_size: Size
    """Height and width of the network's input at test, which complexity and speed are counted at."""
    single_scale: Protocol = Protocol()
    """How ``miou`` is measured."""
    multi_scale: Protocol | None = None
    """How ``miou_ms`` is measured; ``null`` where the paper has no such number."""

    def training_settings(self) -> dict[str, Any]:
        """What of the recipe a training is a function of."""
        return self.model_dump(mode="json", exclude={"input_size", "single_scale", "multi_scale"})


class RecipeOverrides(StrictModel):
    """What a profile changes in every recipe; what it leaves out stays the paper's."""

    learning_rate: dict[Literal["sgd", "adamw"], Positive] = {}
    steps: Count | None = None
    batch_size: Count | None = None
    crop: Size | None = None
    scale: Interval | None = None
    """Replaces the factors of recipes that scale at all."""
    subsampling: Count | None = None
    short_side: Natural | None = None
    single_scale: Protocol | None = None
    """Replaces the single-scale protocol of every recipe ..."""
    multi_scale: Protocol | None = None
    """... and the multi-scale one of recipes that state one."""
    ohem_min_kept: Count | None = None
    """Pixels that OHEM keeps at least: a number that only fits the paper's crop and batch."""
    pretrained: bool | str | None = None

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe as it is trained under this profile."""
        changed: dict[str, Any] = {
            name: value
            for name in ("batch_size", "crop", "subsampling", "short_side", "single_scale", "pretrained")
            if (value := getattr(self, name)) is not None
        }
        if recipe.optimizer in self.learning_rate:
            changed["learning_rate"] = self.learning_rate[recipe.optimizer]
        if self.scale is not None and recipe.augmentation.scale is not None:
            changed["augmentation"] = recipe.augmentation.model_copy(update={"scale": self.scale})
        if self.steps is not None:
            changed |= _shortened(recipe, self.steps)
        if self.multi_scale is not None and recipe.multi_scale is not None:
            changed["multi_scale"] = self.multi_scale
        if self.ohem_min_kept is not None and isinstance(recipe.loss, OhemSettings):
            changed["loss"] = recipe.loss.model_copy(update={"min_kept": self.ohem_min_kept})
        return recipe.model_copy(update=changed)


def changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A recipe with some of its keys replaced, as a profile does for one recipe or one experiment.

    Args:
        recipe: to change.
        values: by key of ``Recipe``, as ``params.yaml`` gives them.

    Raises:
        pydantic.ValidationError: an unknown key, a wrong type or an impossible value.
    """
    given = recipe.model_dump(mode="json") | dict(values)
    made = Recipe.model_validate(given)
    if "steps" in values and "warmup" not in values:
        made = made.model_copy(update=_shortened(recipe, made.steps))
    return made


def _shortened(recipe: Recipe, steps: int) -> dict[str, Any]:
    """A number of steps, and a warm-up that keeps its share of them."""
    warmup = round(recipe.warmup.steps * steps / recipe.steps)
    return {"steps": steps, "warmup": recipe.warmup.model_copy(update={"steps": warmup})}
