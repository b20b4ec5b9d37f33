"""Which tables there are: each paper's, their ablations, the peers', the claims, classes and costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiments.config.params import Params
from experiments.reporting import benchmarks, captions, claim_tables, cost_tables, published
from experiments.reporting.evidence import Evidence, Source
from experiments.reporting.papers import PaperPage, pages
from experiments.reporting.recipes import recipe_table
from experiments.reporting.rendering import Noted, Table, of_rows

_MOST_CLASSES = 40
"""Of a confusion matrix that people can look at."""

_PUBLISHED = {
    "subsampling": "Subsampling, published",
    "miou": "mIoU %, published",
    "miou_ms": "mIoU % multi-scale, published",
    "parameters": "Parameters M, published",
    "macs": "MACs G, published",
    "fps": "FPS, published",
}
"""Head of the column of each published metric."""


def all_tables(
    params: Params, evidence: Evidence, summary: pd.DataFrame, complexity: pd.DataFrame, speed: pd.DataFrame
) -> list[Table]:
    """Every table that there are numbers for."""
    tables = [claims_table(params, evidence)] if params.claims else []
    stated = published.load()
    for page in pages(params):
        tables += paper_tables(params, evidence, summary, stated, page)
        tables += ablation_tables(params, evidence, summary, page)
        tables += class_comparisons(evidence, page)
    tables += filter(None, [peers_table(params, evidence)])
    if len(complexity):
        tables.append(cost_tables.complexity_table(summary, complexity))
        tables += filter(None, [cost_tables.module_table(params, summary)])
    if len(speed):
        tables.append(cost_tables.speed_table(params, summary, speed))
    tables += filter(None, [benchmarks.table()])
    tables += class_tables(evidence)
    recipes = recipe_table(params)
    return [*tables, recipes] if len(recipes.rows) else tables


def claims_table(params: Params, evidence: Evidence) -> Table:
    """Every claim and its verdict, in each reference and here."""
    rows = claim_tables.comparison(evidence.columns, params)
    conditions = " ".join(source.conditions for source in evidence.columns)
    return Table("claims", f"{conditions} {claim_tables.METHOD}", rows, "Claims")


def paper_tables(
    params: Params, evidence: Evidence, summary: pd.DataFrame, stated: pd.DataFrame, page: PaperPage
) -> list[Table]:
    """A paper's tables: every row that is published, and every experiment that belongs there."""
    numbers = published.wide(stated)
    ours = summary[summary["paper"] == page.key]
    theirs = numbers[numbers["paper"] == page.key]
    names = dict.fromkeys([*theirs["table"], *ours["table"]])
    # The table that the paper is known by comes first.
    first = params.experiments[page.main].table
    ordered = sorted(names, key=lambda name: name != first)
    tables = []
    for name in ordered:
        also = {key: row for table, row, key in page.rows if table == name}
        elsewhere = summary[summary["experiment"].isin(list(also))].copy()
        elsewhere["row"] = elsewhere["experiment"].map(also)
        mirrored = pd.concat([ours[ours["table"] == name], elsewhere])
        tables.append(_paper_table(params, evidence, name, mirrored, stated, page))
    return tables


def _paper_table(
    params: Params, evidence: Evidence, name: str, ours: pd.DataFrame, stated: pd.DataFrame, page: PaperPage
) -> Table:
    here = stated[(stated["paper"] == page.key) & (stated["table"] == name)]
    metrics = [metric for metric in _PUBLISHED if metric in set(here["metric"])]
    cells = {
        (row["row"], row["metric"]): Noted(_plain(row["metric"], row["value"]), _source(row))
        for row in here.to_dict("records")
    }
    mirrors: dict[str, list[dict[Any, Any]]] = {}
    for own in ours.to_dict("records"):
        mirrors.setdefault(own["row"], []).append(own)
    rows = []
    for row in dict.fromkeys([*here["row"], *ours["row"]]):
        for own in mirrors.get(row, [{}]):
            key = str(own.get("experiment", ""))
            line: dict[str, Any] = {
                "Method": row,
                "Experiment": key or Noted(None, "not built by this suite"),
            }
            if key:
                line["Crop"] = captions.size(params.run(key).paper_recipe.crop)
            for metric in metrics:
                line[_PUBLISHED[metric]] = cells.get(
                    (row, metric), Noted(None, "published nowhere that this suite could read")
                )
            rows.append(line | _measured(params, evidence, own))
    caption = (
        f"{page.title}, {name}. Published: what the paper or its authors' repository states, on the papers' "
        f"own data. {' '.join(source.conditions for source in evidence.columns)} Counted: the paper's own "
        "network at the paper's input size."
    )
    return Table(f"{page.key}-{name}", caption, _filled(rows), f"{page.title}: {name}", page.key)


def _measured(params: Params, evidence: Evidence, own: Mapping[Any, Any]) -> dict[str, Any]:
    """Measured and counted cells of a row of a paper's table; none of a row that no experiment mirrors."""
    if not own:
        return {}
    key = own["experiment"]
    line: dict[str, Any] = {}
    reason = own["released_not_shown_because"]
    split = own["released_split"]
    for name, kind in (("released_miou", ""), ("released_miou_ms", " multi-scale")):
        head = f"mIoU %{kind}, released weights measured"
        if pd.notna(own[name]):
            line[f"{head} ({split})"] = Noted(own[name], "one checkpoint: no interval over seeds")
        elif reason and not kind:
            line[head] = Noted(None, reason)
    for source in evidence.columns:
        line |= score_cells(source, key)
        scores = source.own(key)
        if scores is not None and scores.get("miou_ms") is not None:
            line[f"mIoU % multi-scale, {source.title}"] = 100 * scores["miou_ms"]
        elif source.kind == "run" and params.run(key).recipe.multi_scale is not None:
            line[f"mIoU % multi-scale, {source.title}"] = Noted(None, "not measured by this profile")
    line["Parameters M, counted"] = own["measured_parameters_m"]
    line["MACs G, counted"] = own["measured_macs_g"]
    return line


def score_cells(source: Source, key: str) -> dict[str, Any]:
    """An experiment's mIoU in a source and its interval, or why there is none."""
    head = f"mIoU %, {source.title}" + (" (check)" if source.kind == "check" else "")
    found = source.miou(key)
    if found is None:
        return {head: Noted(None, source.missing(key))}
    cells: dict[str, Any] = {head: found.mean}
    if found.interval:
        cells[f"95 % over seeds, {source.title}"] = found.interval
    return cells


def ablation_tables(
    params: Params, evidence: Evidence, summary: pd.DataFrame, page: PaperPage
) -> list[Table]:
    """Differences of a paper's ablations to their baselines."""
    counted = summary.set_index("experiment")[["measured_parameters_m", "measured_macs_g"]].astype(float)
    repeats = [source.repeats(page.pairs) for source in evidence.columns]
    rows = []
    for ablation in page.ablations:
        for key, baseline in ablation.rows:
            line: dict[str, Any] = {
                "Group": ablation.title,
                "Ablation": params.experiments[key].row,
                "Experiment": key,
                "Beside": baseline,
            }
            for source, again in zip(evidence.columns, repeats, strict=True):
                line |= _difference_cells(source, key, baseline, again.get((key, baseline)))
            for column, head in (("measured_parameters_m", "Parameters M"), ("measured_macs_g", "MACs G")):
                more = float(counted[column][key]) - float(counted[column][baseline])
                line[f"{head}, difference"] = f"{more:+.2f}" if math.isfinite(more) else None
            rows.append(line)
    if not rows:
        return []
    caption = (
        f"{page.title}: difference in mIoU, points, of each ablation to the experiment beside it, paired by "
        "seed. The interval is over seeds alone; a verdict takes images into account too. Parameters and "
        f"MACs: of the papers' own networks. {' '.join(source.conditions for source in evidence.columns)}"
    )
    title = f"{page.title}: ablations, as differences"
    return [Table(f"{page.key}-ablations", caption, _filled(rows), title, page.key)]


def _difference_cells(
    source: Source, key: str, baseline: str, earlier: tuple[str, str] | None
) -> dict[str, Any]:
    """What one ablation changes; only a note if an earlier row compares the same two."""
    head = f"Difference, {source.title}" + (" (check)" if source.kind == "check" else "")
    if earlier is not None:
        return {head: Noted(None, f"as {earlier[0]} beside {earlier[1]}: the same trainings here")}
    found = source.difference(key, baseline)
    if found is None:
        shared = source.shared(key, baseline)
        reason = "both are one and the same here" if shared else _why_not(source, key, baseline)
        return {head: Noted(None, reason)}
    cells: dict[str, Any] = {head: f"{found.mean:+.2f}"}
    if found.low is not None:
        cells[f"95 % over seeds, {source.title}"] = found.signed_interval
    if source.kind != "check":
        row = source.verdict(key, baseline)
        cells[f"Verdict, {source.title}"] = (
            Noted(row["verdict"], f"on the claim '{row['says']}'")
            if row
            else Noted(None, "no claim compares the two")
        )
    return cells


def _why_not(source: Source, *keys: str) -> str:
    for key in keys:
        if key not in source.found.scores:
            return f"{key}: {source.missing(key)}"
    return "other seeds, or nothing to measure"


def class_comparisons(evidence: Evidence, page: PaperPage) -> list[Table]:
    """IoU of each class of two experiments side by side, and the confusion matrices of both."""
    ours, theirs = page.classes or (page.model, page.baseline)
    for source in evidence.preferred:
        sides = [source.found.scores.get(key) for key in (ours, theirs)]
        if sides[0] is None or sides[1] is None or source.shared(ours, theirs):
            continue
        first, second = sides[0], sides[1]
        means = [class_iou(scores) for scores in (first, second)]
        rows = pd.DataFrame({
            "Class": list(means[0].index),
            ours: means[0].to_list(),
            theirs: means[1].reindex(means[0].index).to_list(),
            "Difference": [
                "" if pd.isna(value) else f"{value:+.2f}"
                for value in means[0] - means[1].reindex(means[0].index)
            ],
        })  # fmt: skip
        caption = (
            f"IoU % of each class of {first['dataset']}, mean over the seeds. {source.conditions} "
            "Empty: the class is neither in the labels nor in the predictions."
        )
        title = f"{page.title}: IoU of each class"
        tables = [Table(f"{page.key}-classes", caption, rows, title, _place(source, page))]
        for key in (ours, theirs):
            tables += confusion_table(evidence, page, key)
        return tables
    return []


def confusion_table(evidence: Evidence, page: PaperPage, key: str) -> list[Table]:
    """Where the pixels of each class went, over the split and all seeds; nothing without the counts.

    Raises:
        StorageError: a file of counts is broken.
    """
    for source in evidence.preferred:
        scores = source.found.scores.get(key)
        if scores is None:
            continue
        seeds = [seed["seed"] for seed in scores["seeds"]]
        if not all(source.found.counts_path(key, seed).is_file() for seed in seeds):
            continue
        classes = list(scores["seeds"][0]["class_iou"])
        if len(classes) > _MOST_CLASSES:
            continue
        total = np.sum([source.found.evaluation(key, seed).confusion for seed in seeds], axis=0)
        shares = 100 * total / np.maximum(total.sum(axis=1, keepdims=True), 1)
        rows = pd.DataFrame(shares, columns=classes).map(lambda value: f"{value:.1f}")
        rows.insert(0, "Class", classes)
        caption = (
            f"Of the pixels of the class at the left, the share in per cent that {key} takes for the class "
            f"at the top, over the split and all seeds. {source.conditions}"
        )
        title = f"{page.title}: confusion of {key}"
        name = f"{page.key}-confusion-{key}"
        return [Table(name, caption, rows, title, _place(source, page), shaded=True)]
    return []


def _place(source: Source, page: PaperPage) -> str:
    """Section of the page for numbers of one source: a check's stand apart from a paper's."""
    return "check" if source.kind == "check" else page.key


def peers_table(params: Params, evidence: Evidence) -> Table | None:
    """The papers' main experiments and the systems that they compare with, trained under one profile."""
    found = pages(params)
    keys = dict.fromkeys(
        [key for page in found for key in (page.main, page.model, page.baseline, *page.peers)]
    )
    rows = [
        {
            "System": params.experiments[key].row,
            "Experiment": key,
            "Paper": params.experiments[key].paper,
            "Recipe": params.experiments[key].recipe,
            **{k: v for source in evidence.columns for k, v in score_cells(source, key).items()},
        }
        for key in keys
        if key
    ]
    if not any(page.peers for page in found):
        return None
    conditions = [
        source.conditions + captions.exceptions(source.found.exceptions, keys) for source in evidence.columns
    ]
    caption = (
        "All under one profile: the same data, steps, batch, crop and rate by optimizer, where the profile "
        "sets them, and otherwise what the recipe says; no paper has this comparison. "
        f"{' '.join(conditions)}"
    )
    return Table("peers", caption, _filled(rows), "At an equal recipe", "across")


def class_tables(evidence: Evidence) -> list[Table]:
    """IoU of each class of every experiment, a table for each source and data set."""
    tables = []
    for source in evidence.columns:
        by_dataset: dict[str, dict[str, pd.Series]] = {}
        for key, found in source.found.scores.items():
            if not found["same_scores_as"]:
                by_dataset.setdefault(found["dataset"], {})[key] = class_iou(found)
        for dataset, columns in by_dataset.items():
            rows = pd.DataFrame(columns).T.rename_axis("Experiment").reset_index()
            caption = (
                f"IoU % of each class of {dataset}, mean over the seeds. {source.conditions} "
                "Empty: the class is neither in the labels nor in the predictions."
            )
            reference = source.kind == "reference"
            name = f"class-iou-{source.name}-{dataset}" if reference else f"class-iou-{dataset}"
            title = f"IoU of each class: {source.title}, {dataset}"
            place = "check" if source.kind == "check" else "across"
            tables.append(Table(name, caption, rows, title, place, shaded=True))
    return tables


def class_iou(scores: Mapping[str, Any]) -> pd.Series:
    """Per cent by class, mean over the seeds."""
    return 100 * pd.DataFrame([seed["class_iou"] for seed in scores["seeds"]]).astype(float).mean()


def _plain(metric: str, value: float) -> float | int:
    """A subsampling is a whole number."""
    return int(value) if metric == "subsampling" else value


def _source(row: Mapping[Any, Any]) -> str:
    split = f", {row['split']}" if row["split"] else ""
    return f"{row['source']}{split} ({row['mark']})"


def _filled(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Without columns that hold nothing; a cell that is still empty says that it does not apply."""
    kept = of_rows(rows).dropna(axis="columns", how="all").astype(object)
    empty = Noted(None, "nothing to show for this row")
    return kept.map(lambda value: value if isinstance(value, Noted) or pd.notna(value) else empty)
