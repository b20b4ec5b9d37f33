"""The scores of an experiment over its seeds: ``results/<profile>/evaluate/<experiment>.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from experiments.config.run import Run
from experiments.datasets.base import LabelClass
from experiments.running import digests, paths, storage
from experiments.samples.identity import Identities
from experiments.scoring.counts import Counts, Evaluation
from experiments.scoring.slices import SlicedEvaluation

REMEDY = "run 'python -m experiments.evaluate {key}'"


def write_scores(key: str, seeds: Sequence[int], identities: Identities, path: Path) -> dict[str, Any]:
    """Sums the scores of an experiment from the counts of its seeds, and writes them.

    Args:
        key: of the experiment.
        seeds: all of them have been counted, for this experiment or for the one that it shares with.
        identities: of all experiments.
        path: where to.

    Returns:
        What was written.
    """
    first = identities.of(key, seeds[0])
    run, data = first.run, identities.data[first.run.dataset]
    by_seed = []
    for seed in seeds:
        identity = identities.of(key, seed)
        owner = identities.scoring_owner(identity).run
        evaluation = Evaluation.load(owner.paths.counts(owner.key, seed))
        known = {"seed": seed, "digest": identity.scoring, "training": identity.training}
        by_seed.append(known | scores_of(evaluation, data.classes))
    result: dict[str, Any] = {
        "experiment": key,
        "profile": run.profile_name,
        "dataset": run.dataset,
        "split": data.val.released,
        "protocol": run.protocols(),
        "same_training_as": identities.same_training_as(key, seeds[0]),
        "same_scores_as": identities.same_scores_as(key, seeds[0]),
        **_over_seeds(by_seed),
        "seeds": by_seed,
    }
    storage.write_json(path, result)
    return result


def write_released_scores(key: str, evaluation: SlicedEvaluation, settings: str) -> Path:
    """Sums and writes the scores of a checkpoint that authors released.

    Args:
        key: of the experiment.
        evaluation: of the checkpoint, done.
        settings: digest of what decides the scores, beside the file and the images.

    Returns:
        Where to.
    """
    scoring = evaluation.scoring
    checkpoint = scoring.network.weights
    path = paths.released_scores(key)
    storage.write_json(
        path,
        {
            "experiment": key,
            "checkpoint": checkpoint.name,
            "checkpoint_sha256": digests.of_file(checkpoint),
            "dataset": scoring.data.name,
            "split": scoring.data.val.released,
            "protocol": scoring.recipe.model_dump(mode="json", include={"single_scale", "multi_scale"}),
            "settings": settings,
            "digest": evaluation.digest,
            **scores_of(Evaluation.load(evaluation.counts), scoring.data.classes),
        },
    )
    return path


def read_released_scores(run: Run, settings: str) -> Any:
    """The scores of an experiment's released checkpoint, if code and recipe are still the same.

    Args:
        run: of the experiment.
        settings: as in ``write_released_scores``.

    Returns:
        What was written, or why there is nothing to show, as a string; empty where nothing was ever scored.
    """
    path = paths.released_scores(run.key)
    remedy = f"run 'python -m experiments.evaluate {run.key} --checkpoint FILE' again"
    if not path.is_file():
        return ""
    try:
        scores = storage.read_json(path, remedy)
        found = scores["settings"]
        float(scores["miou"])
    except storage.StorageError as error:
        return str(error)
    except (KeyError, TypeError, ValueError):
        return f"{path}: not scores of this edition; {remedy}"
    return scores if found == settings else f"{path}: scored with another recipe or code; {remedy}"


def scores_of(evaluation: Evaluation, classes: Sequence[LabelClass]) -> dict[str, Any]:
    """The scores of one trained network; every one is in [0, 1]."""
    counts = evaluation.counts
    scores: dict[str, Any] = {
        "miou": _number(counts.mean_iou()),
        "pixel_accuracy": _number(counts.pixel_accuracy()),
        "boundary_iou": _by_width(counts),
    }
    if evaluation.bilinear is not None:
        scores["miou_bilinear"] = _number(evaluation.bilinear.mean_iou())
        scores["boundary_iou_bilinear"] = _by_width(evaluation.bilinear)
    if evaluation.multi_scale is not None:
        scores["miou_ms"] = _number(evaluation.multi_scale.mean_iou())
    return scores | {
        "class_iou": {c.name: _number(iou) for c, iou in zip(classes, counts.class_iou(), strict=True)},
        "image_iou": {
            name: _number(iou) for name, iou in zip(counts.images, counts.image_iou(), strict=True)
        },
        "confusion": evaluation.confusion.tolist(),
    }


def read_scores(key: str, seeds: Sequence[int], identities: Identities | None, path: Path) -> Any:
    """The scores of an experiment, if they belong to the present settings.

    Args:
        key: of the experiment.
        seeds: that have to be in it.
        identities: of all experiments; ``None`` if the data are not prepared.
        path: of its scores.

    Returns:
        What ``write_scores`` wrote, or why there is nothing to show, as a string.
    """
    remedy = REMEDY.format(key=key)
    if not path.is_file():
        return f"not scored; {remedy}"
    try:
        scores = storage.read_json(path, f"{remedy} again")
        found = {entry["seed"]: entry["digest"] for entry in scores["seeds"]}
        float(scores["miou"])
    except storage.StorageError as error:
        return str(error)
    except (KeyError, TypeError, ValueError):
        return f"{path}: not scores of this edition; {remedy} again"
    if identities is None:
        return "the data are not prepared, so that nothing says whether it is of the present settings"
    for seed in seeds:
        if seed not in found:
            return f"seed {seed} is not scored; {remedy}"
        if found[seed] != identities.of(key, seed).scoring:
            return f"scored with other settings, data or code than there are now; {remedy}"
    if list(found) != list(seeds):
        return f"scored with other seeds than params.yaml has now; {remedy}"
    return scores


def _by_width(counts: Counts) -> dict[str, float | None]:
    return {str(width): _number(counts.mean_iou(i)) for i, width in enumerate(counts.widths, 1)}


def _over_seeds(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and the mIoU's standard deviation where there are several."""
    means: dict[str, Any] = {}
    for name in ("miou", "miou_ms", "miou_bilinear", "pixel_accuracy"):
        if name in seeds[0]:
            means[name] = _mean([seed[name] for seed in seeds])
    if len(seeds) > 1 and means["miou"] is not None:
        means["miou_std"] = round(stdev(seed["miou"] for seed in seeds), 6)
    for name in ("boundary_iou", "boundary_iou_bilinear"):
        if name in seeds[0]:
            means[name] = {width: _mean([seed[name][width] for seed in seeds]) for width in seeds[0][name]}
    return means


def _mean(values: list[float | None]) -> float | None:
    """``None`` where there is nothing to measure, such as no boundary in any validation image."""
    known = [value for value in values if value is not None]
    return round(fmean(known), 6) if len(known) == len(values) else None


def _number(value: float) -> float | None:
    """Six decimals; ``None`` where there is nothing to measure, which JSON cannot say as NaN."""
    return None if math.isnan(value) else round(float(value), 6)
