"""What an entry of ``profiles`` and of ``experiments`` says."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from experiments.config.recipes import RecipeOverrides
from experiments.config.strict import Count, Line, Name, Natural, Size, StrictModel, at, nearest


class TrainingSettings(StrictModel):
    """How training runs on the machine; no setting here is part of a paper."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of autocast; weights, losses and deformable attention stay in float32."""
    micro_batch: Count | None = None
    """Images that a device takes at once. Their gradients are summed until the recipe's batch is complete;
    ``null`` takes a device's whole share. Batch norm sees what a forward pass holds: the micro-batches of
    all devices."""
    recompute: bool = False
    """Activation checkpointing: the blocks of the backbone compute their activations again in the backward
    pass instead of keeping them. The same training in less memory and more time."""
    channels_last: bool = False
    """Keeps feature maps with their channels last in memory, which convolutions in half precision on a GPU
    are faster with."""
    compile: bool = False
    """Trains through ``torch.compile``."""
    threads: Natural = 1
    """Cores that one training uses. Sums depend on it in their last digits, so it is part of what a
    training is. 0 takes what torch finds: for GPUs, where it decides nothing."""
    loader_workers: Natural = 0
    """Loader processes of a training; 0 loads in the training process."""
    keep_decoded: bool = False
    """Keeps decoded images and labels below ``.cache/decoded``, 4 bytes a pixel, for all trainings of this
    machine to read; it changes no sample."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints."""
    log_every: Count = 10
    """Steps between rows of ``history.csv``."""

    def deciding(self) -> dict[str, Any]:
        """The settings that a training's result depends on, if only in its last digits."""
        return self.model_dump(
            include={"precision", "threads", "micro_batch", "recompute", "channels_last", "compile"}
        )


class EvaluationSettings(StrictModel):
    """How a trained model is scored."""

    batch_size: Count = 1
    trimap_widths: Annotated[list[Count], Field(min_length=1)] = [1, 2, 3, 4, 6, 8, 12, 16]
    """Half-widths, in pixels, of the bands around label boundaries."""
    gallery: Natural = 4
    """Images whose predictions are kept for the report."""
    multi_scale: bool = True
    """Whether ``miou_ms`` is measured for recipes that state how: at some ten times the cost of ``miou``."""
    images_per_job: Count = 100
    """Images of one job: an evaluation of more is spread over the workers. No score depends on it."""


class SpeedSettings(StrictModel):
    """How inference is timed."""

    precisions: list[Literal["float32", "tf32", "bfloat16", "float16"]] = ["float32"]
    """``float32`` is without TF32, ``tf32`` is float32 with it; the others are autocast."""
    modes: list[Literal["eager", "channels-last", "compile", "cuda-graphs"]] = ["eager"]
    batch_sizes: list[Count | Literal["best"]] = [1]
    """``best`` is the batch of the most images a second."""
    end_to_end: bool = False
    """Times every kind with the copy of the bytes to the device and the labels' way back, too."""
    size: Size | None = None
    """Input size for every experiment; ``null`` takes each recipe's ``input_size``."""
    warmup: Natural = 10
    """Untimed forward passes before the timed ones, at most: they end when two windows of five agree."""
    repetitions: Count = 50
    """In each round."""
    rounds: Count = 1
    """Every network is timed once before any is timed again, so that all see the same machine."""


class Profile(StrictModel):
    """How the experiments are run here.

    Every section but ``options`` has to be there, if only as ``{}``, so that a profile shows what it could
    change.
    """

    description: str
    scores: Literal["check", "stand-in", "comparable"] = "stand-in"
    """What its scores are worth: a check that everything runs; other data or shorter trainings than the
    papers'; or the papers' own data and recipes, whose scores may be compared with published ones."""
    datasets: dict[str, dict[str, Any]]
    """Options of each data set that ``prepare`` prepares, by name."""
    image_size: Size | None
    """Images are resized to this when prepared; ``null`` keeps their size. Validation labels
    always keep theirs, and scores are taken at it."""
    stand_in: str | None
    """The data set that stands in for every experiment's own; ``null`` uses the experiment's."""
    backbones: dict[str, str]
    """Which smaller backbone replaces which."""
    options: dict[str, dict[str, Any]] = {}
    """Other defaults for options of models, by the model's name: for those that depend on the pictures' size.
    What an experiment sets itself stays."""
    recipe: RecipeOverrides
    """What it changes in every recipe ..."""
    recipes: dict[str, dict[str, Any]]
    """... then in single ones, by their name: any key of a recipe ..."""
    experiments: dict[str, dict[str, Any]]
    """... and last for single experiments, by their key: any key of a recipe."""
    training: TrainingSettings
    evaluation: EvaluationSettings
    speed: SpeedSettings

    @model_validator(mode="after")
    def _known_datasets(self) -> Profile:
        datasets = plugged_in_datasets()
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
                datasets.create(name, options)
            except ValidationError as error:
                raise at(f"datasets.{name}", error) from None
        if self.stand_in is not None and self.stand_in not in self.datasets:
            raise PydanticCustomError(
                "stand_in",
                "'{found}' is not among the profile's data sets; {hint}",
                {"found": self.stand_in, "hint": nearest(self.stand_in, self.datasets), "key": "stand_in"},
            )
        return self


class Experiment(StrictModel):
    """A model and its options at the paper's own scale, and the row of the table it mirrors."""

    paper: Name
    """Whose table it belongs to; one of one's own makes a table of its own."""
    table: Name
    row: Line
    model: str
    options: dict[str, Any] = {}
    dataset: str
    recipe: str


def plugged_in_datasets() -> ModuleType:
    """The folder of data sets, whose files params.yaml names.

    Found at run time: data sets stand on this folder, so that importing them here would go in a circle.
    """
    return importlib.import_module("experiments.datasets")
