"""Tables for people, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from experiments.config.params import Params
from experiments.reporting import captions, published


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
    tables = paper_tables(params, summary)
    if len(complexity):
        tables.append(complexity_table(summary, complexity))
    if len(speed):
        tables.append(speed_table(params, summary, speed))
    tables += class_tables(params, scores)
    return tables


def paper_tables(params: Params, summary: pd.DataFrame) -> list[Table]:
    """The papers' tables: every row that is published and every experiment that belongs there."""
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
        columns = {
            "row": "Method",
            "experiment": "Experiment",
            "miou": "mIoU % published",
            "miou_ms": "mIoU % published (multi-scale)",
            "score": captions.score_column(params),
            "measured_miou_std": "± over seeds",
            "parameters": "Parameters M published",
            "measured_parameters_m": "Parameters M counted",
            "macs": "MACs G published",
            "measured_macs_g": "MACs G counted",
            "fps": "FPS published",
        }
        shown = rows.reindex(columns=list(columns)).dropna(axis="columns", how="all").rename(columns=columns)
        sources = "; ".join(dict.fromkeys(stated["source"]))
        without = ours[ours["not_measured_because"] != ""]
        caption = [
            f"{paper}: {name}.",
            f"Published: {sources}." if sources else "",
            captions.worth(params),
            captions.missing(zip(without["experiment"], without["not_measured_because"], strict=True)),
        ]
        tables.append(Table(f"{paper}-{name}", " ".join(filter(None, caption)), shown))
    return tables


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
    markdown = text.map(escape_markdown).rename(columns=escape_markdown)
    latex = text.map(escape_latex).rename(columns=escape_latex)
    caption = escape_markdown(table.caption)
    return {
        "csv": text.to_csv(index=False, lineterminator="\n"),
        "md": f"{markdown.to_markdown(index=False, disable_numparse=True)}\n\n{caption}\n",
        "tex": latex.to_latex(
            index=False,
            caption=escape_latex(table.caption),
            label=f"tab:{re.sub('[^A-Za-z0-9]+', '-', table.name)}",
            escape=False,
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


def escape_markdown(text: str) -> str:
    """Text that stays in its cell and is no HTML, which Markdown would let through."""
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def escape_latex(text: str) -> str:
    """Text that means itself in LaTeX."""
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
    }
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in str(text))
