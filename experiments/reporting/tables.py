"""Tables for people, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from experiments.config.params import Params
from experiments.reporting import captions, claim_tables, published
from experiments.reporting.references import Reference


@dataclass(frozen=True)
class Table:
    """A table for people: numbers of a column have equal decimals, missing ones are empty."""

    name: str
    """File name without its ending."""
    caption: str
    """Where the numbers come from."""
    rows: pd.DataFrame


def all_tables(
    params: Params,
    summary: pd.DataFrame,
    complexity: pd.DataFrame,
    speed: pd.DataFrame,
    scores: dict[str, dict[str, Any]],
) -> list[Table]:
    """Every table that there are numbers for."""
    kept = claim_tables.all_references(params)
    tables = [claims_table(params, kept)] if params.claims else []
    tables += paper_tables(params, summary, kept)
    if len(complexity):
        tables.append(complexity_table(summary, complexity))
    if len(speed):
        tables.append(speed_table(params, summary, speed))
    tables += class_tables(params, scores)
    return tables


def claims_table(params: Params, kept: Sequence[Reference]) -> Table:
    """Every claim and its verdict, here and in each reference."""
    rows = claim_tables.comparison(claim_tables.present_rows(params), kept, params)
    return Table("claims", f"{captions.worth(params)} {claim_tables.METHOD}", rows)


def paper_tables(params: Params, summary: pd.DataFrame, kept: Sequence[Reference]) -> list[Table]:
    """The papers' tables: every row that is published and every experiment that belongs there.

    A reference has a column in each: its mean over its seeds, or with whom an experiment shares its scores.
    """
    numbers = published.wide(published.load())
    place = ["paper", "table", "row"]
    places = pd.concat([summary[["paper", "table"]], numbers[["paper", "table"]]]).drop_duplicates()
    tables = []
    for paper, name in places.itertuples(index=False):
        stated = numbers[(numbers["paper"] == paper) & (numbers["table"] == name)]
        ours = summary[(summary["paper"] == paper) & (summary["table"] == name)]
        rows = stated.drop(columns="source").merge(
            ours.drop(columns=[c for c in ours if c.startswith("published_")]),
            on=place,
            how="outer",
            sort=False,
        )
        order = [*dict.fromkeys([*stated["row"], *ours["row"]])]
        rows = rows.sort_values("row", key=lambda column: column.map(order.index), kind="stable")
        rows["score"] = [
            f"as {shared}" if isinstance(shared, str) and shared else miou
            for shared, miou in zip(rows["same_scores_as"], rows["measured_miou"], strict=True)
        ]
        rows["score_ms"] = [
            _multi_scale(params, key, shared, miou)
            for key, shared, miou in zip(
                rows["experiment"], rows["same_scores_as"], rows["measured_miou_ms"], strict=True
            )
        ]
        released = (
            f"mIoU % released weights, measured ({captions.joined(filter(None, ours['released_split']))})"
        )
        for each in kept:
            rows[f"reference {each.name}"] = [_kept_score(each, key) for key in rows["experiment"]]
        columns = {
            "row": "Method",
            "experiment": "Experiment",
            "subsampling": "Subsampling",
            "split": "Split published",
            "miou": "mIoU % published",
            "miou_ms": "mIoU % published (multi-scale)",
            "released_miou": released,
            "released_miou_ms": f"{released} (multi-scale)",
            "score": captions.score_column(params),
            "measured_miou_std": "± over seeds",
            "score_ms": f"{captions.score_column(params)} (multi-scale)",
            **{f"reference {each.name}": f"mIoU % {each.where}" for each in kept},
            "parameters": "Parameters M published",
            "measured_parameters_m": "Parameters M counted",
            "macs": "MACs G published",
            "measured_macs_g": "MACs G counted",
            "fps": "FPS published",
        }
        shown = rows.reindex(columns=list(columns)).dropna(axis="columns", how="all").rename(columns=columns)
        unreleased = ours[ours["released_not_shown_because"] != ""]
        sources = "; ".join(dict.fromkeys(stated["source"]))
        without = ours[ours["not_measured_because"] != ""]
        caption = [
            f"{paper}: {name}.",
            f"Published: {sources}." if sources else "",
            captions.worth(params),
            captions.missing(zip(without["experiment"], without["not_measured_because"], strict=True)),
            captions.missing(
                zip(unreleased["experiment"], unreleased["released_not_shown_because"], strict=True)
            ),
        ]
        tables.append(Table(f"{paper}-{name}", " ".join(filter(None, caption)), shown))
    return tables


def _multi_scale(params: Params, key: Any, shared: Any, miou: float) -> Any:
    """The cell of this run's multi-scale score; empty for a row whose recipe states no such protocol."""
    if not isinstance(key, str) or params.run(key).recipe.multi_scale is None:
        return None
    if isinstance(shared, str) and shared:
        return f"as {shared}"
    return miou if pd.notna(miou) else "not measured here"


def _kept_score(reference: Reference, key: Any) -> float | str | None:
    """Per cent, or the name of the experiment that has the score; ``None`` if it was not measured."""
    found = reference.found.scores.get(key)
    if found is None:
        return None
    shared = found["same_scores_as"]
    return f"as {shared}" if shared else round(100 * found["miou"], 2)


def complexity_table(summary: pd.DataFrame, complexity: pd.DataFrame) -> Table:
    """Parameters and multiply-accumulates of all experiments at the papers' scale."""
    counted = summary[summary["experiment"].isin(complexity.index)]
    counts = complexity.loc[counted["experiment"]].reset_index()
    counted = counted.reset_index(drop=True)
    rows = pd.DataFrame({
        "Experiment": counts["experiment"],
        "Backbone": counts["backbone"].fillna(""),
        "Input": sizes(counts["height"], counts["width"]),
        "Classes": counts["num_classes"],
        "Parameters M": counts["parameters"] / 1e6,
        "Parameters M published": counted["published_parameters_m"],
        "MACs G": counts["macs"] / 1e9,
        "MACs G (fvcore)": counts["macs_check"] / 1e9,
        "MACs G published": counted["published_macs_g"],
    }).dropna(axis="columns", how="all")  # fmt: skip
    return Table(
        "complexity",
        "Counted on the papers' own networks and input sizes, whatever the profile. MACs: convolutions, "
        "matrix products and attention of one image. results/complexity.csv names what is not in them. "
        "SPGNet's decoder widths were chosen so that both published counts fit: their agreement confirms "
        "nothing.",
        rows,
    )


def speed_table(params: Params, summary: pd.DataFrame, speed: pd.DataFrame) -> Table:
    """Inference times on the device at hand beside the published ones."""
    stated = summary.set_index("experiment")["published_fps"]
    rows = pd.DataFrame({
        "Experiment": speed["experiment"],
        "Precision": speed["precision"],
        "Mode": speed["mode"],
        "Batch": speed["batch"],
        "Input": sizes(speed["height"], speed["width"]),
        "Latency ms (median)": speed["latency_ms_median"],
        "Latency ms (95 %)": speed["latency_ms_p95"],
        "FPS": speed["fps"],
        "Peak memory MiB": speed["peak_memory_mb"],
        "FPS published": speed["experiment"].map(stated),
        "Note": speed["note"],
    }).dropna(axis="columns", how="all")  # fmt: skip
    devices = captions.joined(speed["device"])
    repetitions = captions.joined(str(r) for r in speed["repetitions"])
    return Table(
        "speed",
        f"Measured: the papers' own networks on {devices}, {repetitions} repetitions, "
        f"profile '{params.profile}'. Published FPS are of the papers' own devices.",
        rows,
    )


def class_tables(params: Params, scores: dict[str, dict[str, Any]]) -> list[Table]:
    """IoU of each class, a table for each data set that was scored."""
    by_dataset: dict[str, dict[str, pd.Series]] = {}
    for key, found in scores.items():
        if not found["same_scores_as"]:
            by_dataset.setdefault(found["dataset"], {})[key] = class_iou(found)
    tables = []
    for dataset, columns in by_dataset.items():
        rows = pd.DataFrame(columns).T.rename_axis("Experiment").reset_index()
        caption = (
            f"IoU % of each class of {dataset}, mean over the seeds. {captions.worth(params)} "
            "Empty: the class is neither in the labels nor in the predictions."
        )
        tables.append(Table(f"class-iou-{dataset}", caption, rows))
    return tables


def class_iou(scores: dict[str, Any]) -> pd.Series:
    """Per cent by class, mean over the seeds."""
    return 100 * pd.DataFrame([seed["class_iou"] for seed in scores["seeds"]]).astype(float).mean()


def render(table: Table) -> dict[str, str]:
    """The table's text in each format, by file ending."""
    text = pd.DataFrame({column: cells(table.rows[column]) for column in table.rows})
    latex = text.map(escape_latex).rename(columns=escape_latex)
    return {
        "csv": text.to_csv(index=False, lineterminator="\n"),
        "md": f"{text.to_markdown(index=False, disable_numparse=True)}\n\n{table.caption}\n",
        "tex": latex.to_latex(
            index=False, caption=escape_latex(table.caption), label=f"tab:{table.name}", escape=False
        ),
    }


def cells(column: pd.Series) -> list[str]:
    """The texts of a column: its numbers with equal decimals, as many as the smallest needs to be seen."""
    numbers = [float(v) for v in column if isinstance(v, float) and math.isfinite(v)]
    decimals = _decimals(numbers)
    return [_cell(value, decimals) for value in column]


def _decimals(numbers: Iterable[float]) -> int:
    """Two, or as many as the smallest number needs for two digits that count, at most six."""
    small = [abs(n) for n in numbers if n]
    if not small:
        return 2
    return max(2, min(6, 1 - math.floor(math.log10(min(small)))))


def _cell(value: Any, decimals: int) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)


def sizes(heights: pd.Series, widths: pd.Series) -> list[str]:
    """Heights and widths as ``512 x 1024``."""
    return [f"{height} x {width}" for height, width in zip(heights, widths, strict=True)]


def escape_latex(text: str) -> str:
    """Text that means itself in LaTeX."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
    }
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in str(text))
