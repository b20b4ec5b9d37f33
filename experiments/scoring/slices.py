"""An evaluation cut into slices of images, which workers score, and their sum.

Nothing here needs torch: a command with nothing to do need not import it to find that out.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.entries import EvaluationSettings
from experiments.config.params import Params
from experiments.config.recipes import Recipe
from experiments.config.run import Run
from experiments.config.strict import ConfigError
from experiments.running import digests, paths, storage
from experiments.running.jobs import Job
from experiments.samples.identity import Identities, Identity
from experiments.samples.prepared import PreparedDataset
from experiments.scoring.counts import Evaluation, digest_of, merge

COUNTS = "counts.npz"
"""Name of a slice's counts in its folder; the pictures of a few images lie beside it."""


@dataclass(frozen=True)
class NetworkFile:
    """How to build a network, and where its weights are."""

    model: str
    options: dict[str, Any]
    num_classes: int
    weights: Path
    released: bool
    """Whether the weights are a checkpoint that the paper's authors released, under their names."""
    remedy: str
    """What to do where the file is missing or broken."""


@dataclass(frozen=True)
class Scoring:
    """What is scored, on what, and how."""

    network: NetworkFile
    recipe: Recipe
    """That the network is trained by: it says how images are normalised, and holds the protocols that are
    to be used."""
    data: PreparedDataset
    settings: EvaluationSettings
    loader_workers: int

    def slices(self) -> list[range]:
        """The validation images cut into slices, each of which is a job.

        They are cut between batches, so that every image is in the same batch whoever scores it: the
        last digits of a batch's scores depend on its size.
        """
        batch = self.settings.batch_size
        step = max(1, self.settings.images_per_job // batch) * batch
        count = len(self.data.val.samples)
        return [range(start, min(start + step, count)) for start in range(0, count, step)]

    def gallery(self) -> set[str]:
        """Names of the images whose predictions the report shows."""
        samples = self.data.val.samples
        return {samples[i].name for i in evenly_spaced(len(samples), self.settings.gallery)}


@dataclass(frozen=True)
class SlicedEvaluation:
    """One network to be scored. Counts are sums: the slices' add up to the same numbers, whoever did them."""

    name: str
    """For people: the experiment, and what of it."""
    scoring: Scoring
    digest: str
    """Of all that the counts are a function of."""
    counts: Path
    """Where the counts of all images go."""
    gallery: Path | None
    """Folder for predictions and maps of a few images; ``None`` keeps none."""

    def is_done(self) -> bool:
        """Whether all images are scored, and the slices added up."""
        if self.gallery is not None and not self.gallery.is_dir():
            return False
        return digest_of(self.counts) == self.digest

    def jobs(self) -> list[Job]:
        """A job for each slice; the same ones whatever is done already."""
        slices = self.scoring.slices()
        return [self._job(i, images, len(slices)) for i, images in enumerate(slices)]

    def merge(self) -> bool:
        """Adds up the slices, once all are scored; whether they are."""
        if self.is_done():
            # A process that was killed after it had added them up has left them.
            shutil.rmtree(self._parts, ignore_errors=True)
            return True
        places = [self._place(i) for i in range(len(self.scoring.slices()))]
        if any(digest_of(place / COUNTS) != self._slice_digest(i) for i, place in enumerate(places)):
            return False
        evaluation = merge(self.digest, [Evaluation.load(place / COUNTS) for place in places])
        if self.gallery is not None:
            with storage.folder(self.gallery) as folder:
                for picture in (file for place in places for file in place.iterdir() if file.name != COUNTS):
                    shutil.copyfile(picture, folder / picture.name)
        evaluation.save(self.counts)
        shutil.rmtree(self._parts, ignore_errors=True)
        return True

    @property
    def _parts(self) -> Path:
        return self.counts.with_suffix(".parts")

    def _place(self, number: int) -> Path:
        return self._parts / str(number)

    def _slice_digest(self, number: int) -> str:
        return digests.of_value([self.digest, number, self.scoring.settings.images_per_job])

    def _job(self, number: int, images: range, of: int) -> Job:
        digest, place = self._slice_digest(number), self._place(number)
        return Job(
            name=self.name if of == 1 else f"{self.name}, images {images.start + 1} to {images.stop}",
            digest=digest,
            work="experiments.scoring.evaluation:score_slice",
            arguments={
                "scoring": self.scoring,
                "images": images,
                "digest": digest,
                "gallery": self.gallery is not None,
                "place": place,
            },
            is_done=lambda: digest_of(place / COUNTS) == digest or self.is_done(),
        )


def of_training(identity: Identity, identities: Identities, weights: Path, gallery: bool) -> SlicedEvaluation:
    """The evaluation of a training, which the first of the experiments that share it does.

    Args:
        identity: of that experiment and a seed.
        identities: of all experiments.
        weights: that the training wrote.
        gallery: whether predictions of a few images are kept.
    """
    run, data = identity.run, identities.data[identity.run.dataset]
    network = NetworkFile(
        model=run.experiment.model,
        options=run.options,
        num_classes=len(data.classes),
        weights=weights,
        released=False,
        remedy=f"run 'python -m experiments.train {run.key}' again",
    )
    return SlicedEvaluation(
        name=f"{run.key} seed {identity.seed}",
        scoring=Scoring(
            network=network,
            recipe=run.recipe.model_copy(update={"multi_scale": run.multi_scale()}),
            data=data,
            settings=run.profile.evaluation,
            loader_workers=run.profile.training.loader_workers,
        ),
        digest=identity.scoring,
        counts=run.paths.counts(run.key, identity.seed),
        gallery=run.paths.predictions(run.key) if gallery else None,
    )


def of_checkpoint(params: Params, key: str, checkpoint: Path) -> SlicedEvaluation:
    """The evaluation of a checkpoint that authors released, at the paper's scale.

    Args:
        params: of the run; the active profile has to have the experiment's own data set.
        key: of the experiment whose network the file holds.
        checkpoint: the file.

    Raises:
        ConfigError: there is no such file, or the profile does not have the experiment's data set.
        DataError: the data set is not prepared.
    """
    run = params.run(key)
    dataset = run.experiment.dataset
    if not checkpoint.is_file():
        raise ConfigError(f"--checkpoint: no file '{checkpoint}'")
    if run.profile.image_size is not None or dataset not in run.profile.datasets:
        raise ConfigError(
            f"experiment '{key}' is scored on {dataset} at its own size; profile '{params.profile}' does not "
            "have that, take one that has, such as 'paper'"
        )
    data = PreparedDataset.load(run, dataset)
    settings = run.profile.evaluation
    multi_scale = run.paper_recipe.multi_scale if settings.multi_scale else None
    return SlicedEvaluation(
        name=f"{key}, released",
        scoring=Scoring(
            network=NetworkFile(
                model=run.experiment.model,
                options=run.experiment.options,
                num_classes=len(data.classes),
                weights=checkpoint,
                released=True,
                remedy=f"expected a checkpoint of the network of experiment '{key}'",
            ),
            recipe=run.paper_recipe.model_copy(update={"multi_scale": multi_scale}),
            data=data,
            settings=settings,
            loader_workers=run.profile.training.loader_workers,
        ),
        digest=digests.of_value(
            [
                released_digest(run),
                multi_scale is not None,
                digests.of_file(checkpoint),
                [data.train.digest, data.val.digest],
                settings.model_dump(mode="json", include={"batch_size", "trimap_widths"}),
            ]
        ),
        counts=paths.released_counts(key),
        gallery=None,
    )


def released_digest(run: Run) -> str:
    """Digest of what decides the scores of a released checkpoint, beside the file and the images."""
    model = run.experiment.model
    recipe = run.paper_recipe.model_dump(
        mode="json", include={"single_scale", "multi_scale", "normalisation"}
    )
    code = digests.of_model_code(model, digests.SCORING_CODE)
    return digests.of_value([model, run.experiment.options, recipe, code])


def evenly_spaced(count: int, wanted: int) -> list[int]:
    """Indices of ``wanted`` of ``count`` images, spread evenly."""
    wanted = min(wanted, count)
    return [i * count // wanted for i in range(wanted)]
