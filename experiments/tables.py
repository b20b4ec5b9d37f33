"""Puts measured and published numbers side by side.

Writes ``results/summary.csv`` (one row an experiment), and in ``reports/tables/`` one table for
each table of the papers, the complexity of all experiments and their speed, each as Markdown, CSV
and LaTeX. Timings stand in ``speed`` alone: all other tables are a function of code, params, data
and seed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.complexity import COMPLEXITY
from experiments.config import params as config
from experiments.config.params import Params
from experiments.evaluate import EVALUATE
from experiments.reporting import published
from experiments.running import command, storage
from experiments.running.command import StageError
from experiments.speed import SPEED

SUMMARY = Path("results/summary.csv")
TABLES = Path("reports/tables")


@dataclass(frozen=True)
class Table:
    """A table for people: values are rounded, missing ones are empty."""

    name: str
    """File name without its ending."""
    caption: str
    """Where the numbers come from."""
    rows: pd.DataFrame


def main() -> None:
    command.parser("tables", __doc__).parse_args()
    params = config.load()
    summary = summarise(params)
    storage.write_csv(SUMMARY, summary)
    with storage.folder(TABLES) as folder:
        for table in [
            *paper_tables(params, summary),
            complexity_table(summary),
            speed_table(params, summary),
        ]:
            for ending, text in render(table).items():
                (folder / f"{table.name}.{ending}").write_text(text, encoding="utf-8", newline="\n")


def summarise(params: Params) -> pd.DataFrame:
    """One row an experiment: what was measured, and what is published for the row it mirrors.

    Scores are in per cent, parameters in millions, multiply-accumulates in thousand millions.
    """
    complexity = _read_csv(COMPLEXITY).set_index("experiment")
    numbers = published.wide(published.load()).set_index(["paper", "table", "row"]).to_dict("index")
    rows = []
    for key, experiment in params.experiments.items():
        scores, counts = _read_scores(key), complexity.loc[key]
        place = (experiment.paper, experiment.table, experiment.row)
        stated = numbers.get(place, {})
        rows.append({
            "experiment": key,
            "paper": experiment.paper,
            "table": experiment.table,
            "row": experiment.row,
            "profile": scores["profile"],
            "dataset": scores["dataset"],
            "seeds": len(scores["seeds"]),
            "measured_miou": _percent(scores["miou"]),
            "measured_miou_std": _percent(scores.get("miou_std")),
            "measured_pixel_accuracy": _percent(scores["pixel_accuracy"]),
            "measured_parameters_m": round(counts["parameters"] / 1e6, 2),
            "measured_macs_g": round(counts["macs"] / 1e9, 1),
            "measured_macs_height": counts["height"],
            "measured_macs_width": counts["width"],
            "published_miou": stated.get("miou"),
            "published_miou_ms": stated.get("miou_ms"),
            "published_parameters_m": stated.get("parameters"),
            "published_macs_g": stated.get("macs"),
            "published_fps": stated.get("fps"),
            "published_source": stated.get("source"),
        })  # fmt: skip
    return pd.DataFrame(rows)


def provenance_line(params: Params) -> str:
    """What every measured score of this run is, in words."""
    profile = params.active
    data = profile.stand_in or "the papers' own data sets"
    seeds = f"seed {params.seeds[0]}" if len(params.seeds) == 1 else f"{len(params.seeds)} seeds"
    line = f"Measured: profile '{params.profile}', {data}, {seeds}."
    if profile.stand_in is not None:
        line += (
            " Another data set and a shorter training than the published numbers: not comparable with them."
        )
    return line


def paper_tables(params: Params, summary: pd.DataFrame) -> list[Table]:
    """The papers' tables: every row that is published and every experiment that belongs there."""
    numbers = published.wide(published.load())
    measured_on = params.active.stand_in or "own data"
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
        columns = {
            "row": "Method",
            "experiment": "Experiment",
            "miou": "mIoU % published",
            "miou_ms": "mIoU % published (multi-scale)",
            "measured_miou": f"mIoU % measured ({params.profile}: {measured_on})",
            "measured_miou_std": "± over seeds",
            "parameters": "Parameters M published",
            "measured_parameters_m": "Parameters M counted",
            "macs": "MACs G published",
            "measured_macs_g": "MACs G counted",
            "fps": "FPS published",
        }
        shown = rows.reindex(columns=list(columns)).dropna(axis="columns", how="all").rename(columns=columns)
        sources = "; ".join(dict.fromkeys(stated["source"]))
        caption = (
            f"{paper}: {name}. " + (f"Published: {sources}. " if sources else "") + provenance_line(params)
        )
        tables.append(Table(f"{paper}-{name}", caption, shown))
    return tables


def complexity_table(summary: pd.DataFrame) -> Table:
    """Parameters and multiply-accumulates of all experiments at the papers' scale."""
    counts = _read_csv(COMPLEXITY).set_index("experiment")
    rows = pd.DataFrame({
        "Experiment": summary["experiment"],
        "Backbone": summary["experiment"].map(counts["backbone"]),
        "Input": _sizes(summary["measured_macs_height"], summary["measured_macs_width"]),
        "Classes": summary["experiment"].map(counts["num_classes"]),
        "Parameters M": summary["measured_parameters_m"],
        "Parameters M published": summary["published_parameters_m"],
        "MACs G": summary["measured_macs_g"],
        "MACs G (fvcore)": (summary["experiment"].map(counts["macs_check"]) / 1e9).round(1),
        "MACs G published": summary["published_macs_g"],
    }).dropna(axis="columns", how="all")  # fmt: skip
    return Table(
        "complexity",
        "Counted on the papers' own networks and input sizes, whatever the profile. MACs: convolutions, "
        "matrix products and attention of one image. results/complexity.csv names what is not in them.",
        rows,
    )


def speed_table(params: Params, summary: pd.DataFrame) -> Table:
    """Inference times on the device at hand beside the published ones."""
    timings = _read_csv(SPEED)
    stated = summary.set_index("experiment")["published_fps"]
    rows = pd.DataFrame({
        "Experiment": timings["experiment"],
        "Precision": timings["precision"],
        "Mode": timings["mode"],
        "Batch": timings["batch"],
        "Input": _sizes(timings["height"], timings["width"]),
        "Latency ms (median)": timings["latency_ms_median"],
        "Latency ms (95 %)": timings["latency_ms_p95"],
        "FPS": timings["fps"],
        "Peak memory MiB": timings["peak_memory_mb"],
        "FPS published": timings["experiment"].map(stated),
        "Note": timings["note"],
    }).dropna(axis="columns", how="all")  # fmt: skip
    devices = ", ".join(dict.fromkeys(timings["device"]))
    repetitions = ", ".join(str(r) for r in dict.fromkeys(timings["repetitions"]))
    return Table(
        "speed",
        f"Measured: the papers' own networks on {devices}, {repetitions} repetitions, "
        f"profile '{params.profile}'. Published FPS are of the papers' own devices.",
        rows,
    )


def render(table: Table) -> dict[str, str]:
    """The table's text in each format, by file ending."""
    text = table.rows.map(_cell)
    latex = text.map(_escape_latex).rename(columns=_escape_latex)
    return {
        "csv": table.rows.to_csv(index=False, lineterminator="\n"),
        "md": f"{text.to_markdown(index=False, disable_numparse=True)}\n\n{table.caption}\n",
        "tex": latex.to_latex(
            index=False, caption=_escape_latex(table.caption), label=f"tab:{table.name}", escape=False
        ),
    }


def _sizes(heights: pd.Series, widths: pd.Series) -> list[str]:
    return [f"{height} x {width}" for height, width in zip(heights, widths, strict=True)]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and pd.isna(value)):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _escape_latex(text: str) -> str:
    special = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
    }
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def _percent(share: float | None) -> float | None:
    return None if share is None else round(100 * share, 2)


def _read_scores(key: str) -> dict[str, Any]:
    path = EVALUATE / f"{key}.json"
    try:
        scores: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        raise StageError(f"{path}: no such file; run 'python -m experiments.evaluate {key}' first") from None
    return scores


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise StageError(f"{path}: no such file; run 'python -m experiments.{path.stem}' first") from None


if __name__ == "__main__":
    command.run("tables", main)
