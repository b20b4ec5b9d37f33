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

ParameterKind = Literal["layer-norms", "batch-norms", "group-norms", "position-biases", "embeddings"]
PixelsCounted = Literal["labelled", "all"]
Normalisation = Literal["standard", "bgr-mean"]


class ColourJitter(StrictModel):
    """How far torchvision's ``ColorJitter`` changes each property; hue in turns, at most 0.5."""

    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class PhotometricDistortion(StrictModel):
    """SSD's colour augmentation (Liu et al., ECCV 2016), as mmsegmentation and detectron2 have it.

    Each of the four changes happens with probability 1/2, contrast before or after the other two.
    """

    brightness: NonNegative = 32.0
    """Greatest amount that is added to all channels, which go from 0 to 255, or taken away."""
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """All channels are multiplied by a factor between 1 less this and 1 more this."""
    saturation: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Likewise the saturation in HSV."""
    hue: Annotated[float, Field(ge=0, le=180)] = 36.0
    """Greatest turn of the hue in degrees; the 18 of both libraries are steps of two degrees."""


class Augmentation(StrictModel):
    """What happens to a training image. At most one of ``scale``, ``factors`` and ``short_sides`` resizes it;
    without any of them it is cropped at the size that the network sees at test."""

    mirror: bool = True
    """Flips left and right, half of the time."""
    scale: Interval | None = None
    """The image's size is multiplied by a factor drawn evenly from this range ..."""
    factors: Annotated[list[Positive], Field(min_length=1)] | None = None
    """... or by one of these ..."""
    short_sides: Annotated[list[Count], Field(min_length=1)] | None = None
    """... or it is resized to one of these shorter sides, whatever its size at test."""
    longest_side: Count | None = None
    """Of an image that is resized by ``short_sides``: one that were longer is resized to this."""
    colour: ColourJitter | None = None
    distortion: PhotometricDistortion | None = None
    max_class_share: Fraction = 1.0
    """A crop with more of one class than this is drawn again, ten times at most."""

    @model_validator(mode="after")
    def _consistent(self) -> Augmentation:
        _check_order(self.scale)
        resized_by = [name for name in _RESIZING if getattr(self, name) is not None]
        if len(resized_by) > 1:
            raise PydanticCustomError(
                "resizing",
                "{names} are given together; expected one of them",
                {"names": " and ".join(resized_by)},
            )
        if self.longest_side is not None and self.short_sides is None:
            raise PydanticCustomError(
                "longest_side", "longest_side is given without short_sides; take it out"
            )
        return self

    def scaled(self, scale: tuple[float, float]) -> Augmentation:
        """With factors from this range in place of its own resizing, if it resizes at all."""
        if all(getattr(self, name) is None for name in _RESIZING):
            return self
        return self.model_copy(update=dict.fromkeys((*_RESIZING, "longest_side")) | {"scale": scale})


_RESIZING = ("scale", "factors", "short_sides")


def _check_order(scale: tuple[float, float] | None) -> None:
    """Refuses a range of factors whose ends are the wrong way round."""
    if scale is not None and scale[0] > scale[1]:
        raise PydanticCustomError(
            "order", "scale is {scale}; expected the smaller factor first", {"scale": list(scale)}
        )


def _check_warmup(warmup: Warmup | None, steps: int | None) -> None:
    """Refuses a warm-up that never reaches the rate."""
    if warmup is not None and steps is not None and warmup.steps > steps:
        raise PydanticCustomError(
            "warmup",
            "warmup takes {warmup} steps of a training of {steps}; expected no more than it has",
            {"warmup": warmup.steps, "steps": steps},
        )


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
    """The rate grows linearly from ``ratio`` of itself over the first part of the training.

    Of itself: the schedule goes on under the warm-up. mmsegmentation's ``warmup: linear`` and detectron2's
    ``WarmupPolyLR`` are both this.
    """

    steps: Natural = 0
    """Of a training of the recipe's own length; a profile that trains for fewer steps warms up
    for the same share of them."""
    ratio: Fraction = 1e-5


class CrossEntropySettings(StrictModel):
    """Cross-entropy summed over the labelled pixels."""

    name: Literal["cross-entropy"] = "cross-entropy"
    over: PixelsCounted = "labelled"
    """Pixels whose number divides the sum: the labelled ones, or all, as mmsegmentation does."""


class OhemSettings(StrictModel):
    """Online hard example mining: the mean over the hard pixels."""

    name: Literal["ohem"]
    threshold: Fraction = 0.7
    """Probability of the true class below which a pixel is hard."""
    min_kept: Natural = 100_000
    """Pixels of a group that are kept in any case, hardest first."""
    group: Count | None = None
    """Images whose pixels are compared with each other: those of one of the authors' devices. ``null``:
    all of the batch."""


class HardestSettings(StrictModel):
    """Cross-entropy over the pixels of greatest loss, divided by the number of all pixels, as
    mmsegmentation's ``OHEMPixelSampler`` without a threshold has it."""

    name: Literal["hardest"]
    kept_per_image: Count = 100_000
    """Times the images of a group: how many of its pixels are kept."""
    group: Count | None = None
    """As in ``ohem``."""


class LovaszSettings(StrictModel):
    """Mean cross-entropy over the labelled pixels and, weighted, the Lovasz-softmax loss."""

    name: Literal["lovasz"]
    weight: NonNegative = 0.8
    """Of the Lovasz-softmax loss."""
    group: Count | None = None
    """Images whose pixels make one set, as in ``ohem``."""


class ClassBalancedSettings(StrictModel):
    """A pixel weighs the more, the rarer its class is in the training set."""

    name: Literal["class-balanced"]


class MaskSettings(StrictModel):
    """The loss on a set of masks that a decoder of masks has itself, weights included."""

    name: Literal["masks"]


LossSettings = Annotated[
    CrossEntropySettings
    | OhemSettings
    | HardestSettings
    | LovaszSettings
    | ClassBalancedSettings
    | MaskSettings,
    Field(discriminator="name"),
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
    no_decay: list[ParameterKind] = []
    """Kinds of parameters that have no weight decay. mmsegmentation's rule for transformers goes by names:
    ``layer-norms`` and ``position-biases``, while batch norms, which it calls ``bn``, decay. detectron2's
    goes by modules: all norms, ``position-biases`` and ``embeddings``."""
    backbone_factor: Positive = 1.0
    """Of the learning rate, for the parameters of the backbone."""
    schedule: PolySchedule | StepSchedule = Field(default=PolySchedule(), discriminator="kind")
    warmup: Warmup = Warmup()
    clip_gradient: Positive | None = None
    """Greatest norm of all gradients together; ``null`` does not clip."""
    average_last: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the steps, the last ones, whose weights are averaged into those that the training leaves; 0
    leaves the last step's."""
    steps: Count
    batch_size: Count
    """Images per step, over all devices and micro-batches together."""
    crop: Size
    normalisation: Normalisation = "standard"
    """What a network is given. ``standard``: red, green and blue with mean 0 and deviation 1, ImageNet's
    where the backbone starts from ImageNet weights, else the data set's own. ``bgr-mean``: blue, green and
    red from 0 to 255 less ImageNet's mean, not divided, as the networks that stem from Caffe take it."""
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

    @model_validator(mode="after")
    def _reaches_its_rate(self) -> Recipe:
        _check_warmup(self.warmup, self.steps)
        return self

    def training_settings(self) -> dict[str, Any]:
        """What of the recipe a training is a function of."""
        return self.model_dump(mode="json", exclude={"input_size", "single_scale", "multi_scale"})


class RecipeOverrides(StrictModel):
    """What a profile changes in every recipe; what it leaves out stays the paper's."""

    optimizer: Literal["sgd", "adamw"] | None = None
    learning_rate: dict[Literal["sgd", "adamw"], Positive] = {}
    """By the optimizer that is in force."""
    schedule: Annotated[PolySchedule | StepSchedule, Field(discriminator="kind")] | None = None
    warmup: Warmup | None = None
    """Replaces the warm-up of every recipe; its steps are of the profile's own number. Left out, a recipe's
    warm-up keeps its share of the training."""
    average_last: Annotated[float, Field(ge=0, le=1)] | None = None
    steps: Count | None = None
    batch_size: Count | None = None
    crop: Size | None = None
    scale: Interval | None = None
    """Replaces how recipes that resize at all do it: by a factor drawn evenly from this range."""
    subsampling: Count | None = None
    short_side: Natural | None = None
    single_scale: Protocol | None = None
    """Replaces the single-scale protocol of every recipe ..."""
    multi_scale: Protocol | None = None
    """... and the multi-scale one of recipes that state one."""
    ohem_min_kept: Count | None = None
    """Pixels that OHEM keeps at least: a number that only fits the paper's crop and group."""
    hardest_per_image: Count | None = None
    """Pixels of an image that the loss ``hardest`` keeps, likewise."""
    backbone_factor: Positive | None = None
    """1 where backbones start from nothing and have as much to learn as the rest."""
    pretrained: bool | str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> RecipeOverrides:
        _check_order(self.scale)
        _check_warmup(self.warmup, self.steps)
        return self

    def apply(self, recipe: Recipe) -> Recipe:
        """The recipe as it is trained under this profile."""
        plain = (
            "optimizer", "schedule", "average_last", "batch_size", "crop", "subsampling", "short_side",
            "single_scale", "backbone_factor", "pretrained",
        )  # fmt: skip
        changed: dict[str, Any] = {
            name: value for name in plain if (value := getattr(self, name)) is not None
        }
        optimizer = self.optimizer or recipe.optimizer
        if optimizer in self.learning_rate:
            changed["learning_rate"] = self.learning_rate[optimizer]
        if self.scale is not None:
            changed["augmentation"] = recipe.augmentation.scaled(self.scale)
        if self.steps is not None:
            changed |= _shortened(recipe, self.steps)
        if self.warmup is not None:
            changed["warmup"] = self.warmup
        if self.multi_scale is not None and recipe.multi_scale is not None:
            changed["multi_scale"] = self.multi_scale
        changed["loss"] = self._scaled_loss(recipe.loss)
        return recipe.model_copy(update=changed)

    def _scaled_loss(self, loss: LossSettings) -> LossSettings:
        if self.ohem_min_kept is not None and isinstance(loss, OhemSettings):
            return loss.model_copy(update={"min_kept": self.ohem_min_kept})
        if self.hardest_per_image is not None and isinstance(loss, HardestSettings):
            return loss.model_copy(update={"kept_per_image": self.hardest_per_image})
        return loss


def changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A recipe with some of its keys replaced, as a profile does for one recipe or one experiment.

    Args:
        recipe: to change.
        values: by key of ``Recipe``, as ``params.yaml`` gives them.

    Raises:
        pydantic.ValidationError: an unknown key, a wrong type or an impossible value.
    """
    given = recipe.model_dump(mode="json") | dict(values)
    shortens = "steps" in values and "warmup" not in values
    if shortens:
        given["warmup"] = {}  # follows from the number of steps, once that is known to be one
    made = Recipe.model_validate(given)
    if shortens:
        made = made.model_copy(update=_shortened(recipe, made.steps))
    return made


def _shortened(recipe: Recipe, steps: int) -> dict[str, Any]:
    """A number of steps, and a warm-up that keeps its share of them."""
    warmup = round(recipe.warmup.steps * steps / recipe.steps)
    return {"steps": steps, "warmup": recipe.warmup.model_copy(update={"steps": warmup})}
