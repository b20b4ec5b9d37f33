"""An experiment as one profile runs it: what the stages ask for, in one place."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from experiments.config.entries import Experiment, Profile
from experiments.config.model_options import SettledOptions, scaled
from experiments.config.protocol import Protocol
from experiments.config.recipes import Recipe, changed
from experiments.config.strict import ConfigError
from experiments.running import digests, paths
from experiments.running.paths import ProfilePaths

_WEIGHT_FILES = (".safetensors", ".pth")


class Run:
    """One experiment under one profile.

    Args:
        key: of the experiment.
        profile_name: of the profile.
        profile: how experiments run here.
        experiment: what it is at the paper's scale.
        paper_recipe: how the paper trains it.
        settled: its options, settled.
    """

    def __init__(
        self,
        key: str,
        profile_name: str,
        profile: Profile,
        experiment: Experiment,
        paper_recipe: Recipe,
        settled: SettledOptions,
    ):
        self.key = key
        self.profile_name = profile_name
        self.profile = profile
        self.experiment = experiment
        self.paper_recipe = paper_recipe
        self.settled = settled
        self.paths = ProfilePaths(profile_name)

    @cached_property
    def recipe(self) -> Recipe:
        """The paper's recipe with what the profile changes in all, in this recipe and in this experiment."""
        recipe = self.profile.recipe.apply(self.paper_recipe)
        for own in self._own_changes:
            recipe = changed(recipe, own)
        return recipe

    @property
    def _own_changes(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the profile changes in this recipe, then in this experiment."""
        profile = self.profile
        return profile.recipes.get(self.experiment.recipe, {}), profile.experiments.get(self.key, {})

    @property
    def exceptions(self) -> dict[str, Any]:
        """Settings that the profile does not change in all recipes alike, with their values here."""
        shared = self.profile.recipe.apply(self.paper_recipe)
        own = {name: value for changes in self._own_changes for name, value in changes.items()}
        return {
            name: value for name, value in own.items() if getattr(shared, name) != getattr(self.recipe, name)
        }

    @property
    def dataset(self) -> str:
        """The data set that is used here."""
        return self.profile.stand_in or self.experiment.dataset

    @cached_property
    def options(self) -> dict[str, Any]:
        """The model's options with the profile's defaults and smaller backbone."""
        defaults = self.profile.options.get(self.experiment.model, {})
        return scaled(self.experiment.options, defaults, self.profile.backbones)

    @property
    def backbone(self) -> str:
        """The backbone that is used here, or an empty string for a model that has no such option."""
        return str(self.settled.here.get("backbone", ""))

    def weights(self) -> bool | str:
        """Where the backbone's ImageNet weights come from: the hub, a local file, or nowhere.

        Raises:
            ConfigError: there is no such file, or none of this backbone in the folder.
        """
        given = self.recipe.pretrained
        if not isinstance(given, str):
            return given
        place = paths.given(given)
        if not place.is_dir():
            if not place.is_file():
                raise ConfigError(f"experiment '{self.key}': backbone weights: no file '{given}'")
            return str(place)
        names = [f"{self.backbone}{ending}" for ending in _WEIGHT_FILES]
        for name in names:
            if (place / name).is_file():
                return str(place / name)
        raise ConfigError(
            f"experiment '{self.key}': backbone weights: folder '{given}' has no {' or '.join(names)}"
        )

    def training_configuration(self) -> dict[str, Any]:
        """All settings that a training is a function of; data, seed and code come beside them."""
        training = self.profile.training
        options = {k: v for k, v in self.settled.here.items() if k not in self.settled.inference_only}
        return {
            "model": self.experiment.model,
            "options": options,
            "recipe": self.recipe.training_settings() | {"pretrained": self._weights_content()},
            **training.deciding(),
        }

    def training_digest(self, seed: int, data: str) -> str:
        """Digest of all that a training is a function of: experiments that share it share a training.

        Args:
            seed: of the training.
            data: digest of the prepared training split.
        """
        code = digests.of_model_code(self.experiment.model, digests.TRAINING_CODE)
        return digests.of_value([self.training_configuration(), seed, data, code])

    def multi_scale(self) -> Protocol | None:
        """The protocol of ``miou_ms``; ``None`` if the paper states none, or the profile leaves it out."""
        return self.recipe.multi_scale if self.profile.evaluation.multi_scale else None

    def protocols(self) -> dict[str, Any]:
        """How the network is scored, as results say it."""
        multi_scale = self.multi_scale()
        return {
            "single_scale": self.recipe.single_scale.model_dump(mode="json"),
            "multi_scale": None if multi_scale is None else multi_scale.model_dump(mode="json"),
        }

    def scoring_digest(self, training: str, data: str) -> str:
        """Digest of all that the scores of trained weights are a function of.

        Args:
            training: digest of the training.
            data: digest of the prepared validation split.
        """
        settings = {
            "training": training,
            "options": self.settled.here,
            "protocols": self.protocols(),
            "evaluation": self.profile.evaluation.model_dump(
                mode="json", include={"batch_size", "trimap_widths", "gallery"}
            ),
            "threads": self.profile.training.threads,
        }
        code = digests.of_model_code(self.experiment.model, digests.SCORING_CODE)
        return digests.of_value([settings, data, code])

    def network(self) -> dict[str, Any]:
        """The paper's own network: experiments that share it are counted and timed once."""
        settled = self.settled
        options = {k: v for k, v in settled.paper.items() if k not in settled.training_only}
        return {"model": self.experiment.model, "options": options}

    def _weights_content(self) -> bool | str:
        try:
            weights = self.weights()
        except ConfigError:
            return "missing"  # no training had it: what there is belongs to other settings
        return digests.of_file(Path(weights)) if isinstance(weights, str) else weights
