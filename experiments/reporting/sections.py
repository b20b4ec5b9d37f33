"""The report's figures, a function each: from measured and published numbers to a picture and its text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.reporting.captions import exceptions, joined
from experiments.reporting.cost_sections import (
    accuracy_against_cost,
    macs_by_size,
    modules,
    published_costs,
    roofline,
)
from experiments.reporting.drawing import Drawing, Measured
from experiments.reporting.evidence import Source
from experiments.reporting.papers import PaperPage
from experiments.reporting.tables import class_iou
from experiments.training.folder import Trainings


def claims(measured: Measured) -> list[Drawing]:
    """Effects of the claims that are decided or that the papers are known by, with their intervals."""
    headlines = {name for page in measured.pages for name in (page.headline, page.boundary)}
    for source in measured.evidence.preferred:
        groups = []
        for page in measured.pages:
            found = [
                row
                for row in source.claims
                if row["paper"] == page.key
                and row["low"]
                and (row["claim"] in headlines or row["verdict"] in ("supported", "contradicted"))
            ]
            rows = [
                {
                    "name": row["says"],
                    "value": float(row["difference"]),
                    "low": float(row["low"]),
                    "high": float(row["high"]),
                    "verdict": row["verdict"],
                }
                for row in found
            ]
            if rows:
                groups.append((page.title, "", _sorted(rows)))
        if groups:
            text = (
                f"{source.brief} What the papers are known by, and every claim that is decided; "
                "all others stand in the table. The line is the whole of all three 95 % intervals; where it "
                "ends in an arrow it goes on."
            )
            label = "difference, points of the claim's metric (IoU %)"
            arguments = (groups, label, True, ["95 % interval"])
            title = "The papers' main claims, and all that are decided"
            return [Drawing("claims", title, text, "claims", "intervals", arguments)]
    return []


def ablations(measured: Measured) -> list[Drawing]:
    """Differences of each paper's ablations to their baselines, and of all papers' sorted."""
    drawings = []
    everything: dict[tuple[str, str], dict[str, Any]] = {}
    sources: list[str] = []
    for page in measured.pages:
        for source in measured.evidence.preferred:
            again = source.repeats(pair for pair in page.pairs if pair[0] in measured.keys)
            groups = []
            for ablation in page.ablations:
                pairs = [pair for pair in ablation.rows if pair not in again]
                rows = _difference_rows(measured, source, pairs)
                if rows:
                    groups.append((ablation.title, "", _sorted(rows.values())))
                    for pair, row in rows.items():
                        everything[pair] = row | {"name": f"{page.title}: {row['name']}"}
                    sources.append(source.title)
            if groups:
                text = (
                    f"{source.brief} Difference in mIoU to the experiment beside it, mean over the "
                    "seeds; the line is the 95 % interval over the seeds. Colour and shape are the verdict "
                    "on the claim about the two, whichever of them it calls better."
                )
                title, label = f"{page.title}: ablations", "difference in mIoU, points"
                arguments = (groups, label, True, ["95 % over the seeds"])
                drawings.append(
                    Drawing(f"{page.key}-ablations", title, text, page.key, "intervals", arguments)
                )
                break
    if everything:
        times = Counter(key for key, _ in everything)
        for (key, baseline), row in everything.items():
            if times[key] > 1:  # else two rows would have one name
                row["name"] += f", beside {baseline}"
        groups = [("", "", _sorted(everything.values()))]
        text = (
            f"From {joined(sources)}: every ablation beside its baseline, the greatest gain first; 95 % over "
            "the seeds. An interval that holds zero leaves the sign of the effect open."
        )
        arguments = (groups, "difference in mIoU, points", True, ["95 % over the seeds"])
        drawings.append(
            Drawing("ablation-effects", "Ablations, sorted", text, "across", "intervals", arguments)
        )
    return drawings


def _difference_rows(
    measured: Measured, source: Source, pairs: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], dict[str, Any]]:
    rows = {}
    for key, baseline in pairs:
        found = source.difference(key, baseline) if key in measured.keys else None
        if found is not None:
            claim = source.verdict(key, baseline) if source.kind != "check" else None
            rows[key, baseline] = {
                "name": measured.row(key),
                "value": found.mean,
                "low": math.nan if found.low is None else found.low,
                "high": math.nan if found.high is None else found.high,
                "verdict": claim["verdict"] if claim else "",
            }
    return rows


def _sorted(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The greatest value first."""
    return pd.DataFrame(list(rows)).sort_values("value", ascending=False, kind="stable", ignore_index=True)


def peers(measured: Measured) -> list[Drawing]:
    """The papers' models and the systems that they compare with, trained under one profile."""
    keys = dict.fromkeys(
        [key for page in measured.pages for key in (page.main, page.model, page.baseline, *page.peers) if key]
    )
    titles = {page.key: page.title for page in measured.pages}
    for source in measured.evidence.preferred:
        rows = []
        for key in keys:
            found = source.miou(key)
            if found is not None and key in measured.keys:
                paper = measured.params.experiments[key].paper
                rows.append({
                    "name": f"{titles.get(paper, paper)}: {measured.row(key)}",
                    "value": found.mean,
                    "low": math.nan if found.low is None else found.low,
                    "high": math.nan if found.high is None else found.high,
                    "verdict": "",
                })  # fmt: skip
        if len(rows) > 1:
            text = f"{source.brief} mIoU, mean over the seeds; the line is the 95 % over the seeds."
            text += exceptions(source.found.exceptions, keys)
            arguments = ([("", "#0072b2", _sorted(rows))], "mIoU %", False, ())
            return [Drawing("peers", "At an equal recipe", text, "across", "intervals", arguments)]
    return []


def classes(measured: Measured) -> list[Drawing]:
    """IoU of each class of a paper's model beside another's."""
    drawings = []
    for page in measured.pages:
        ours, theirs = page.classes or (page.model, page.baseline)
        for source in measured.evidence.preferred:
            sides = [source.found.scores.get(key) for key in (ours, theirs)]
            if sides[0] is None or sides[1] is None or source.shared(ours, theirs):
                continue
            means = [class_iou(scores) for scores in sides if scores]
            both = pd.DataFrame({"ours": means[0], "theirs": means[1]}).dropna()
            if both.empty or len(both) > 40 or page.classes is None:
                break
            text = f"{source.brief} Mean over the seeds, the classes in the order of {ours}'s."
            ordered = both.sort_values("ours", ascending=False, kind="stable")
            arguments = (
                list(ordered.index),
                {ours: ordered["ours"].tolist(), theirs: ordered["theirs"].tolist()},
            )
            title = f"{page.title}: IoU of each class, beside {theirs}"
            drawings.append(Drawing(f"{page.key}-classes", title, text, page.key, "paired", arguments))
            break
    return drawings


def boundary_iou(measured: Measured) -> list[Drawing]:
    """IoU near label boundaries against the band's width, with bands over the seeds."""
    drawings = []
    for page in measured.pages:
        for source in measured.evidence.preferred:
            lines = [
                line
                for name, key, view in page.curves or _plain_curves(measured, page)
                if (line := _curve(source, name, key, view))
            ]
            if len(lines) > 1:
                text = (
                    f"{source.brief} mIoU over the pixels closer to a label boundary than the width. "
                    "The bands hold all seeds."
                )
                title = f"{page.title}: IoU near label boundaries"
                arguments = (lines, "width of the band, pixels", "mIoU % inside the band")
                drawings.append(Drawing(f"{page.key}-boundary", title, text, page.key, "curves", arguments))
                break
    return drawings


def _plain_curves(measured: Measured, page: PaperPage) -> list[tuple[str, str, str]]:
    """The baseline and the model, of a paper that is not about upsampling."""
    return [(measured.row(key), key, "") for key in (page.model, page.baseline) if key]


def _curve(source: Source, name: str, key: str, view: str) -> dict[str, Any] | None:
    """A line of the boundary figure; ``None`` where nothing was measured."""
    field = f"boundary_iou_{view}" if view else "boundary_iou"
    scores = source.own(key)
    if scores is None or not all(field in seed for seed in scores["seeds"]):
        return None
    by_seed = pd.DataFrame([seed[field] for seed in scores["seeds"]]).astype(float)
    by_seed = 100 * by_seed.dropna(axis="columns", how="any")
    if by_seed.empty:
        return None
    several = len(by_seed) > 1
    return {
        "name": name,
        "x": [int(str(width)) for width in by_seed],
        "y": by_seed.mean().tolist(),
        "low": by_seed.min().tolist() if several else [],
        "high": by_seed.max().tolist() if several else [],
    }


def training_curves(measured: Measured) -> list[Drawing]:
    """Loss against step of the papers' models and baselines, of this run."""
    run = measured.evidence.run
    trainings = Trainings(measured.params.paths.trainings)
    histories: dict[str, list[Path]] = {}
    for page in measured.pages:
        for key in (page.model, page.baseline):
            scores = run.own(key) if key in measured.keys else None
            found = [trainings.find(seed["training"]) for seed in scores["seeds"]] if scores else []
            files = [training.history for training in found if training and training.history.is_file()]
            if files:
                histories[key] = files
    text = f"{run.brief} Mean over the seeds of the loss between two rows of history.csv."
    title = "Training curves of the papers' models and baselines"
    return [Drawing("training", title, text, "check", "losses", (histories,))] if histories else []


SECTIONS: tuple[Callable[[Measured], list[Drawing]], ...] = (
    claims,
    published_costs,
    ablations,
    classes,
    boundary_iou,
    accuracy_against_cost,
    peers,
    modules,
    macs_by_size,
    roofline,
    training_curves,
)
"""In the order of the page. Each gives nothing where nothing was measured."""


def drawings_of(measured: Measured) -> list[Drawing]:
    """All figures of the report."""
    return [drawing for section in SECTIONS for drawing in section(measured)]


def placed(drawings: Sequence[Drawing], place: str) -> list[Drawing]:
    """Those of one section of the page."""
    return [drawing for drawing in drawings if drawing.place == place]
