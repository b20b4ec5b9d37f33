"""What an entry of ``claims`` says: a sentence as a comparison of two experiments in one metric."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from experiments.config.entries import Experiment
from experiments.config.recipes import Recipe
from experiments.config.strict import StrictModel, nearest

PLAIN_SCORES = ("miou", "miou_ms")
COSTS = ("parameters", "macs", "fps")
METRICS = (*PLAIN_SCORES, "boundary_iou@WIDTH", "class_iou@CLASS", *COSTS, *(f"{c}_ratio" for c in COSTS))
"""What a claim may compare: scores, which are tested, and costs, which are counted or timed."""

BILINEAR = "bilinear"
"""``gun-fusion@bilinear``: the same trained network, with bilinear upsampling in place of its learned one."""


@dataclass(frozen=True)
class Metric:
    """What is compared."""

    kind: str
    """``miou``, ``miou_ms``, ``boundary_iou``, ``class_iou``, ``parameters``, ``macs`` or ``fps``."""
    of: str = ""
    """Width of the band in pixels, or name of the class."""
    ratio: bool = False
    """Whether two costs are divided instead of subtracted."""

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Reads what ``params.yaml`` calls it.

        Raises:
            ValueError: there is no such metric.
        """
        if text in PLAIN_SCORES:
            return cls(text)
        cost = text.removesuffix("_ratio")
        if cost in COSTS:
            return cls(cost, ratio=cost != text)
        kind, _, of = text.partition("@")
        if (kind == "boundary_iou" and re.fullmatch(r"[1-9]\d{0,3}", of)) or (kind == "class_iou" and of):
            return cls(kind, of)
        raise ValueError(f"unknown metric '{text}'; {nearest(text, METRICS)}")

    @property
    def is_score(self) -> bool:
        """Whether it is a score of trained networks, in per cent, and no cost."""
        return self.kind not in COSTS

    @property
    def unit(self) -> str:
        """Of a difference."""
        if self.is_score:
            return "points"
        return "ratio" if self.ratio else {"parameters": "M", "macs": "G", "fps": "1/s"}[self.kind]


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    experiment: str
    view: str = ""
    """``bilinear``, or empty for the experiment as it is."""

    @classmethod
    def parse(cls, text: str) -> Side:
        """Reads ``experiment`` or ``experiment@bilinear``."""
        experiment, _, view = text.partition("@")
        return cls(experiment, view)

    def __str__(self) -> str:
        return f"{self.experiment}@{self.view}" if self.view else self.experiment


class Claim(StrictModel):
    """One sentence that can be tested.

    Of a score, ``better`` minus ``worse`` is above the margin, in points. Of ``parameters`` and ``macs``, the
    difference or ratio is below the margin; of ``fps``, above it. Where no margin is given, that of a
    difference is 0 and that of a ratio 1. Without ``worse`` the cost itself is compared with the margin.
    """

    paper: str
    says: str
    """The sentence, short."""
    source: str
    """``S`` (stated in an abstract or a review), ``R`` (read in the authors' repository) or ``question``
    (asked by this suite), and then where."""
    better: str
    worse: str | None = None
    metric: str
    margin: float | None = None
    published: float | None = None
    """The published difference or cost, in the metric's unit."""
    dataset: str | None = None
    """Where the sentence is about one data set only: on another one it is not measured."""

    @model_validator(mode="after")
    def _possible(self) -> Claim:
        try:
            metric = Metric.parse(self.metric)
        except ValueError as error:
            raise _wrong("metric", str(error)) from None
        if not re.match(r"(S|R|question)\b", self.source):
            raise _wrong(
                "source",
                f"'{self.source}' has no mark; expected S, R or question, and then where the sentence stands",
            )
        for name, side in self.sides().items():
            if side.view not in ("", BILINEAR):
                raise _wrong(name, f"unknown view '{side.view}'; {nearest(side.view, [BILINEAR])}")
            if side.view and not metric.is_score:
                raise _wrong(name, f"'{side}' has no cost of its own; expected an experiment without '@'")
        if self.better == self.worse:
            raise _wrong("worse", f"'{self.worse}' is also 'better'; expected two different sides")
        if self.worse is None and (metric.is_score or metric.ratio or self.margin is None):
            raise _wrong("worse", "missing; only a cost (parameters, macs, fps) with a margin stands alone")
        return self

    @property
    def what(self) -> Metric:
        """The metric."""
        return Metric.parse(self.metric)

    def sides(self) -> dict[str, Side]:
        """``better``, and ``worse`` where there is one."""
        texts = {"better": self.better, "worse": self.worse}
        return {name: Side.parse(text) for name, text in texts.items() if text is not None}

    @property
    def threshold(self) -> float:
        """The margin, or the one that holds where none is given."""
        if self.margin is not None:
            return self.margin
        return 1.0 if self.what.ratio else 0.0


def check_claims(
    claims: Mapping[str, Claim],
    experiments: Mapping[str, Experiment],
    recipes: Mapping[str, Recipe],
    classes: Callable[[str], Iterable[str]],
    datasets: Iterable[str],
) -> None:
    """Refuses claims whose sides do not exist or cannot be compared.

    Args:
        claims: by key.
        experiments: by key.
        recipes: by name.
        classes: names of a data set's classes.
        datasets: names of the data sets that a class may come from beside the experiments' own.

    Raises:
        PydanticCustomError: with the key's path.
    """
    for key, claim in claims.items():
        where = f"claims.{key}"
        if not re.fullmatch(r"[a-z0-9-]+", key):
            raise _wrong(where, "a claim's key has the characters a-z, 0-9 and hyphen")
        for name, side in claim.sides().items():
            if side.experiment not in experiments:
                hint = nearest(side.experiment, experiments)
                raise _wrong(f"{where}.{name}", f"unknown experiment '{side.experiment}'; {hint}")
        found = [experiments[side.experiment] for side in claim.sides().values()]
        if len({experiment.dataset for experiment in found}) > 1:
            used = " and ".join(f"'{experiment.dataset}'" for experiment in found)
            raise _wrong(f"{where}.worse", f"the data sets {used} differ; compare two experiments on one")
        metric = claim.what
        kept = {"multi_scale" if metric.kind == "miou_ms" else "single_scale"}
        protocols = [recipes[experiment.recipe].model_dump(include=kept) for experiment in found]
        if metric.is_score and protocols[0] != protocols[-1]:
            raise _wrong(
                f"{where}.worse",
                f"scored by another protocol than 'better' ({', '.join(kept)} differs); compare two "
                "experiments whose recipes test alike",
            )
        if metric.kind == "class_iou":
            known = {name for dataset in (found[0].dataset, *datasets) for name in classes(dataset)}
            if metric.of not in known:
                raise _wrong(f"{where}.metric", f"unknown class '{metric.of}'; {nearest(metric.of, known)}")


def _wrong(key: str, problem: str) -> PydanticCustomError:
    context: dict[str, Any] = {"problem": problem, "key": key}
    return PydanticCustomError("claim", "{problem}", context)
