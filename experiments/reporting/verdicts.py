"""A verdict for every claim of params.yaml, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from experiments import datasets
from experiments.config.claims import Claim, Metric, Side
from experiments.config.params import Params
from experiments.reporting.measurements import Measurements
from experiments.running import digests, jobs, storage
from experiments.running.errors import StageError
from experiments.scoring import statistics
from experiments.scoring.statistics import Effect, Floats

COLUMNS = (
    "claim", "paper", "metric", "better", "worse", "seeds", "images", "difference", "low", "high", "p",
    "verdict", "published", "source", "says", "unit", "margin", "seeds_low", "seeds_high", "images_low",
    "images_high", "sequences", "p_adjusted", "decided_at", "reason",
)  # fmt: skip
SUPPORTED, CONTRADICTED, OPEN, NOT_MEASURED = "supported", "contradicted", "open", "not measured"
HOLDS, FAILS = "holds", "does not hold"


class NotMeasuredError(Exception):
    """A claim cannot be given a number; the message says why."""


class TooFewSeedsError(NotMeasuredError):
    """It could, with more seeds."""


@dataclass(frozen=True)
class Judgement:
    """What became of one claim."""

    key: str
    claim: Claim
    verdict: str
    reason: str = ""
    cost: float | None = None
    """Of a claim about costs: their difference or ratio, or the cost itself."""
    effect: Effect | None = None
    """Of a claim about scores."""
    p_adjusted: float | None = None
    threshold: float = statistics.LEVEL
    """The p value that would have decided it among the report's other claims."""
    too_few_seeds: bool = False

    @property
    def decided_at(self) -> int | None:
        """Of an open claim, the number of seeds at which it would be decided if nothing else changed."""
        if self.effect is None or self.verdict != OPEN:
            return None
        distance = self.effect.difference - self.claim.threshold
        return statistics.seeds_until_decided(distance, self.effect.noise, self.threshold)

    def row(self) -> dict[str, Any]:
        """The claim's row of ``claims.csv``."""
        claim, effect = self.claim, self.effect
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {
            "claim": self.key, "paper": claim.paper, "metric": claim.metric, "better": claim.better,
            "worse": claim.worse, "difference": _rounded(self.cost), "verdict": self.verdict,
            "published": claim.published, "source": claim.source, "says": claim.says,
            "unit": claim.what.unit, "margin": claim.threshold, "reason": self.reason,
        }  # fmt: skip
        if effect is not None:
            row |= {
                "seeds": effect.noise.seeds, "images": effect.images, "sequences": effect.noise.sequences,
                "difference": _rounded(effect.difference),
                "low": _rounded(effect.hull.low), "high": _rounded(effect.hull.high),
                "seeds_low": _rounded(effect.by_seed.low), "seeds_high": _rounded(effect.by_seed.high),
                "images_low": _rounded(effect.by_image.low), "images_high": _rounded(effect.by_image.high),
                "p": float(f"{effect.p:.3g}"), "p_adjusted": float(f"{self.p_adjusted:.3g}"),
                "decided_at": self.decided_at,
            }  # fmt: skip
        return row


def judge(claims: Mapping[str, Claim], found: Measurements, params: Params) -> list[Judgement]:
    """Gives every claim a verdict.

    Args:
        claims: by key; those about scores are one family for the correction.
        found: what was measured.
        params: whose recipes say at which input size a time counts.

    Raises:
        StageError: two sides have other seeds, images or data sets than each other.
        StorageError: a file of counts is missing or broken.
    """
    bench = _Bench(found, params)
    effects: dict[str, Effect] = {}
    done: dict[str, Judgement] = {}
    for key, claim in claims.items():
        try:
            if claim.what.is_score:
                effects[key] = bench.effect(claim)
            else:
                done[key] = _cost_judgement(key, claim, bench)
        except NotMeasuredError as problem:
            few = isinstance(problem, TooFewSeedsError)
            done[key] = Judgement(key, claim, NOT_MEASURED, str(problem), too_few_seeds=few)
    p_values = [effect.p for effect in effects.values()]
    corrected = statistics.adjusted(p_values)
    threshold = statistics.threshold_of_one_more(p_values) if p_values else statistics.LEVEL
    for (key, effect), p in zip(effects.items(), corrected, strict=True):
        done[key] = _score_judgement(key, claims[key], effect, p, threshold, len(effects))
    return [done[key] for key in claims]


def write(path: Path, judgements: Sequence[Judgement]) -> None:
    """Writes ``claims.csv``, a row for each claim."""
    if judgements:
        storage.write_rows(path, [judgement.row() for judgement in judgements])
    else:
        storage.write_text(path, ",".join(COLUMNS) + "\n")


def is_current(params: Params, found: Measurements) -> bool:
    """Whether ``claims.csv`` is as it was written, of the present claims, scores, costs and code."""
    try:
        kept = storage.read_json(params.paths.claims_digest, "")
    except storage.StorageError:
        return False
    return params.paths.claims.is_file() and kept == _state(params, found)


def remember(params: Params, found: Measurements) -> None:
    """Notes what the ``claims.csv`` that was just written belongs to."""
    storage.write_json(params.paths.claims_digest, _state(params, found))


def _state(params: Params, found: Measurements) -> dict[str, str]:
    return {"digest": digest(params, found), "file": digests.of_file(params.paths.claims)}


def present_rows(params: Params, found: Measurements) -> list[dict[str, str]]:
    """The rows of this run's ``claims.csv``; none if it belongs to other settings or is not there."""
    if not is_current(params, found):
        return []
    table = storage.read_csv(params.paths.claims, set(), "", dtype=str, keep_default_na=False)
    return [{str(name): str(value) for name, value in row.items()} for row in table.to_dict("records")]


def digest(params: Params, found: Measurements) -> str:
    """Digest of all that verdicts are a function of."""
    named = {side.experiment for claim in params.claims.values() for side in claim.sides().values()}
    scored = {
        key: [seed["digest"] for seed in found.scores[key]["seeds"]] if key in found.scores else None
        for key in named
    }
    return digests.of_value(
        [
            {key: claim.model_dump(mode="json") for key, claim in params.claims.items()},
            scored,
            {key: found.reasons.get(key) for key in named},
            {key: found.exceptions.get(key) for key in named},
            {key: dict(found.costs[key]) for key in named if key in found.costs},
            [dict(row) for row in found.timings if row["experiment"] in named],
            digests.of_code(folders=("experiments/reporting", "experiments/scoring", "experiments/datasets")),
        ]
    )


def _score_judgement(
    key: str, claim: Claim, effect: Effect, p: float, threshold: float, family: int
) -> Judgement:
    sign = 1 if effect.hull.low > claim.threshold else -1 if effect.hull.high < claim.threshold else 0
    if sign and p <= statistics.LEVEL:
        verdict = SUPPORTED if sign > 0 else CONTRADICTED
        return Judgement(key, claim, verdict, "", None, effect, p, threshold)
    judged = Judgement(key, claim, OPEN, "", None, effect, p, threshold)
    at = judged.decided_at
    reasons = [f"only the correction for {family} claims stops it"] if sign else []
    reasons.append(
        f"decided at {at} seeds if effect and spread stay as they are"
        if at is not None
        else "these images decide it with no number of seeds"
    )
    return Judgement(key, claim, OPEN, "; ".join(reasons), None, effect, p, threshold)


def _cost_judgement(key: str, claim: Claim, bench: _Bench) -> Judgement:
    metric = claim.what
    costs = [bench.cost(side, metric) for side in claim.sides().values()]
    value = costs[0]
    if len(costs) == 2:
        value = costs[0] / costs[1] if metric.ratio else costs[0] - costs[1]
    holds = value > claim.threshold if metric.kind == "fps" else value < claim.threshold
    reason = f"on {bench.device(claim)}" if metric.kind == "fps" else ""
    return Judgement(key, claim, HOLDS if holds else FAILS, reason, value)


class _Bench:
    """Looks measurements up, and resamples each side of the claims once."""

    def __init__(self, found: Measurements, params: Params):
        self.found = found
        self.params = params
        self._resampled: dict[tuple[str, str, str, str], tuple[Floats, Floats]] = {}
        self._weights: dict[str, Any] = {}
        self._first: dict[str, list[str]] = {}
        self._sequences: dict[str, list[str]] = {}
        self._compared: dict[str, Claim] = {}

    def effect(self, claim: Claim) -> Effect:
        """Tests a claim about scores.

        Raises:
            NotMeasuredError: there is nothing to compare.
        """
        better, worse = claim.sides().values()
        for side in (better, worse):
            if side.experiment not in self.found.scores:
                reason = self.found.reasons.get(side.experiment, f"not in {self.found.name}")
                raise NotMeasuredError(f"{side.experiment}: {reason}")
        unlike = [self.found.exceptions.get(side.experiment, "") for side in (better, worse)]
        if unlike[0] != unlike[1]:
            said = ", ".join(
                f"{side.experiment} is trained with {exception}"
                for side, exception in zip((better, worse), unlike, strict=True)
                if exception
            )
            raise NotMeasuredError(f"under this profile {said}, and the other side otherwise")
        scores = [self.found.scores[side.experiment] for side in (better, worse)]
        self._check_alike(claim, scores)
        if claim.dataset not in (None, scores[0]["dataset"]):
            raise NotMeasuredError(f"needs {claim.dataset}; measured on {scores[0]['dataset']}")
        if better.experiment != worse.experiment:
            trainings = [[seed["training"] for seed in found["seeds"]] for found in scores]
            if trainings[0] == trainings[1]:
                raise NotMeasuredError("both sides are one training under this profile")
            # Else one comparison would be tested, and shown, under two sentences of which it is one's.
            views = [better.view, worse.view]
            said = digests.of_value([trainings, views, str(claim.metric), claim.threshold])
            first = self._compared.setdefault(said, claim)
            if first is not claim:
                raise NotMeasuredError(f"the same trainings as of '{first.says}' under this profile")
        seeds = [seed["seed"] for seed in scores[0]["seeds"]]
        if len(seeds) < statistics.FEWEST_SEEDS:
            given = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
            raise TooFewSeedsError(f"{given}; at least {statistics.FEWEST_SEEDS} are needed")
        sides = [self._resample(side, claim.what, seeds) for side in (better, worse)]
        point, resampled = (100 * (x - y) for x, y in zip(*sides, strict=True))
        return statistics.compare(point, resampled, self._sequences[scores[0]["dataset"]], claim.threshold)

    def _check_alike(self, claim: Claim, scores: Sequence[Mapping[str, Any]]) -> None:
        paths = [str(self.found.scores_path(side.experiment)) for side in claim.sides().values()]
        for name in ("dataset", "split"):
            if scores[0][name] != scores[1][name]:
                raise StageError(
                    f"{paths[1]}: {name} is '{scores[1][name]}' and in {paths[0]} '{scores[0][name]}'; "
                    "measure both on the same"
                )
        seeds = [[seed["seed"] for seed in found["seeds"]] for found in scores]
        if seeds[0] != seeds[1]:
            raise StageError(
                f"{paths[1]}: has the seeds {seeds[1]}, and {paths[0]} {seeds[0]}; measure both with the same"
            )

    def _resample(self, side: Side, metric: Metric, seeds: Sequence[int]) -> tuple[Floats, Floats]:
        """Scores of a side by seed (S,), and for each resample of the images (B, S); in [0, 1]."""
        scores = self.found.scores[side.experiment]
        place = (scores["same_scores_as"] or side.experiment, side.view, metric.kind, metric.of)
        if place not in self._resampled:
            hits, unions = self._counts(side, metric, seeds)
            dataset = scores["dataset"]
            if dataset not in self._weights:
                self._weights[dataset] = statistics.resample(self._sequences[dataset])
            once = np.ones((1, hits.shape[1]), np.uint16)
            self._resampled[place] = (
                statistics.resampled_mean_iou(hits, unions, once)[0],
                statistics.resampled_mean_iou(hits, unions, self._weights[dataset]),
            )
        return self._resampled[place]

    def _counts(self, side: Side, metric: Metric, seeds: Sequence[int]) -> tuple[Any, Any]:
        """Intersections and unions (S, N, K) of what a metric averages."""
        scores = self.found.scores[side.experiment]
        all_hits, all_unions = [], []
        for seed in seeds:
            evaluation = self.found.evaluation(side.experiment, seed)
            counts = evaluation.bilinear if side.view else evaluation.counts
            if metric.kind == "miou_ms":
                counts = evaluation.multi_scale
            path = self.found.counts_path(side.experiment, seed)
            if counts is None and metric.kind == "miou_ms":
                raise NotMeasuredError("not scored by the multi-scale protocol here")
            if counts is None:
                raise NotMeasuredError(f"{side.experiment} has no learned upsampling to take away")
            dataset = scores["dataset"]
            if dataset not in self._first:
                self._first[dataset] = counts.images
                self._sequences[dataset] = datasets.sequences(dataset, counts.images)
            if counts.images != self._first[dataset]:
                raise StageError(
                    f"{path}: other images than the other experiments; run 'python -m experiments.evaluate'"
                )
            region = 0
            if metric.kind == "boundary_iou":
                if int(metric.of) not in counts.widths:
                    raise NotMeasuredError(f"no band of {metric.of} pixels; add it to trimap_widths")
                region = 1 + counts.widths.index(int(metric.of))
            chosen = slice(None)
            if metric.kind == "class_iou":
                names = list(scores["seeds"][0]["class_iou"])
                if metric.of not in names:
                    raise NotMeasuredError(f"{scores['dataset']} has no class '{metric.of}'")
                chosen = slice(names.index(metric.of), names.index(metric.of) + 1)
                holding = np.flatnonzero(counts.labelled[:, 0, chosen])
                sequences = [self._sequences[dataset][i] for i in holding]
                _check_enough(sequences, f"images hold the class '{metric.of}'")
            _check_enough(self._sequences[dataset], "images")
            all_hits.append(counts.intersections[:, region, chosen])
            all_unions.append(counts.unions[:, region, chosen])
        return np.stack(all_hits), np.stack(all_unions)

    def cost(self, side: Side, metric: Metric) -> float:
        """What a side costs: millions of parameters, thousand millions of operations, images per second.

        Raises:
            NotMeasuredError: it is not counted or timed.
        """
        if metric.kind == "fps":
            return float(self._timing(side.experiment)["fps"])
        if side.experiment not in self.found.costs:
            raise NotMeasuredError(f"{side.experiment}: not counted; run 'python -m experiments.complexity'")
        return float(self.found.costs[side.experiment][metric.kind]) / _UNITS[metric.kind]

    def device(self, claim: Claim) -> str:
        """Where a claim's experiments were timed."""
        return str(self._timing(Side.parse(claim.better).experiment)["device"])

    def _timing(self, key: str) -> Mapping[str, Any]:
        """The fastest of an experiment's precisions and modes, for single images of the paper's size."""
        size = self.params.recipes[self.params.experiments[key].recipe].input_size
        timed = self._timings.get(key, [])
        if not timed:
            raise NotMeasuredError(f"{key}: not timed; run 'python -m experiments.speed'")
        fitting = [row for row in timed if (int(row["height"]), int(row["width"])) == size]
        if not fitting:
            here = f"{timed[0]['height']} x {timed[0]['width']}"
            raise NotMeasuredError(f"timed at {here}; the claim is of {size[0]} x {size[1]}")
        return max(fitting, key=lambda row: float(row["fps"]))

    @cached_property
    def _timings(self) -> dict[str, list[Mapping[str, Any]]]:
        by_key: dict[str, list[Mapping[str, Any]]] = {}
        for row in self.found.timings:
            if int(row["batch"]) == 1 and row["fps"] not in (None, ""):
                by_key.setdefault(row["experiment"], []).append(row)
        return by_key


_UNITS = {"parameters": 1e6, "macs": 1e9}


def _check_enough(sequences: Sequence[str], images: str) -> None:
    """Raises ``NotMeasuredError`` if images (in words) are of fewer sequences than can be resampled."""
    count, fewest = len(set(sequences)), statistics.FEWEST_SEQUENCES
    if count < fewest:
        many = "" if count == len(sequences) else f", of {jobs.count(count, 'sequence')}"
        raise NotMeasuredError(f"{len(sequences)} {images}{many}; at least {fewest} are needed")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
