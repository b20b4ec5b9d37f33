"""Tables for people, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from experiments.config.params import Params
from experiments.measuring.jobs import count_details
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
        tables += filter(None, [module_table(params, summary)])
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
        "MACs G (second counter)": counts["macs_check"] / 1e9,
        "MACs G as published": counts["macs_as_published"] / 1e9,
        "MACs G published": counted["published_macs_g"],
        "Deviation %": 100 * (counts["macs"] / 1e9 / counted["published_macs_g"] - 1),
        "Sampling G": counts["sampling_macs"] / 1e9,
        "Activations M": counts["activations"] / 1e6,
        "Weights MiB": counts["parameter_mb"],
    }).dropna(axis="columns", how="all")  # fmt: skip
    notes = counts[counts["as_published"] != ""].groupby("as_published")["experiment"]
    differs = "; ".join(f"{captions.joined(keys)}: {note}" for note, keys in notes)
    return Table(
        "complexity",
        "Counted on the papers' own networks and input sizes, whatever the profile. MACs: "
        "multiply-accumulates of convolutions, deformable ones too, matrix products and attention of one "
        "image; one is two FLOPs. Sampling: multiply-adds of bilinear sampling at predicted places, not in "
        "the MACs. results/complexity.csv names what is in neither, with an estimate. Activations: values "
        "that the counted operators put out. As published: the same network with its operations in the "
        f"published order{f' ({differs})' if differs else ''}. SPGNet's decoder widths were chosen so that "
        "both published counts fit: their agreement confirms nothing.",
        rows,
    )


def module_table(params: Params, summary: pd.DataFrame) -> Table | None:
    """Where the multiply-accumulates of each paper's main experiment go."""
    rows = []
    for key in main_experiments(summary):
        details = count_details(params, key)
        if details is None:
            continue
        total = details["modules"][""]
        rows += [
            {
                "Experiment": key,
                "Module": name or "(all)",
                "MACs G": macs / 1e9,
                "Share %": 100 * macs / total,
            }
            for name, macs in details["modules"].items()
            if name.count(".") < 2 and macs >= total / 100
        ]
    if not rows:
        return None
    caption = (
        "Multiply-accumulates of each module with at least 1 % of the network's, down to the second level, "
        "for the largest experiment of each paper that mirrors a published row. A module's number includes "
        "its parts'."
    )
    return Table("complexity-modules", caption, pd.DataFrame(rows))


def main_experiments(summary: pd.DataFrame) -> list[str]:
    """The largest of each paper's experiments that mirror a published row."""
    published_rows = summary[(summary["published_source"] != "") & summary["measured_macs_g"].notna()]
    largest = published_rows.sort_values("measured_macs_g").drop_duplicates("paper", keep="last")
    return [key for key in summary["experiment"] if key in set(largest["experiment"])]


def speed_table(params: Params, summary: pd.DataFrame, speed: pd.DataFrame) -> Table:
    """Inference times on the device at hand; beside published ones only ratios between methods, on a CPU."""
    stated = summary.set_index("experiment")["published_fps"]
    on_gpu = bool(speed["peak_memory_mb"].notna().any())
    ratios = fps_ratios(summary, speed)
    rows = pd.DataFrame({
        "Experiment": speed["experiment"],
        "Precision": speed["precision"],
        "Mode": speed["mode"],
        "Batch": speed["batch"],
        "Input": sizes(speed["height"], speed["width"]),
        "End to end": ["yes" if whole else "" for whole in speed["end_to_end"]],
        "Latency ms (median)": digits(speed["latency_ms_median"]),
        "Median's 95 % interval": [
            "" if pd.isna(low) else f"{low:g} to {high:g}"
            for low, high in zip(speed["latency_ms_low"], speed["latency_ms_high"], strict=True)
        ],
        "Latency ms (95 %)": digits(speed["latency_ms_p95"]),
        "FPS": digits(speed["fps"]),
        "FPS published": speed["experiment"].map(stated) if on_gpu else None,
        "Times the reference": ratios["measured"],
        "Times the reference, published": ratios["published"],
        "Peak memory MiB": speed["peak_memory_mb"],
        "Of compute limit %": 100 * speed["compute_share"].astype(float),
        "Of bandwidth limit %": 100 * speed["bandwidth_share"].astype(float),
        "Launch-bound": [
            {True: "yes", False: "no"}.get(bound, "") for bound in speed["launch_bound"]
        ],
        "Note": speed["note"],
    }).replace("", None).dropna(axis="columns", how="all").fillna({"End to end": "no"})  # fmt: skip
    size = params.active.speed.size
    reduced = f", inputs reduced to {size[0]} x {size[1]}" if size else ""
    kind = "a GPU" if on_gpu else "a CPU"
    repetitions = captions.joined(str(r) for r in speed["repetitions"])
    references = captions.joined(ratios["reference"].dropna())
    return Table(
        "speed",
        f"On {kind}{reduced}: the papers' own networks on {captions.joined(speed['device'])}, "
        f"{repetitions} repetitions, profile '{params.profile}', without deterministic kernels. "
        + ("Published FPS are of the papers' own devices. " if on_gpu else "")
        + (
            f"Times the reference: FPS divided by {references}'s, here and as published. "
            if references
            else ""
        )
        + "Digits are those that the interval allows.",
        rows,
    )


def fps_ratios(summary: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """FPS in relation to another method's, measured and published: what two devices can be compared by.

    The reference of an experiment is the first of its paper's with a published FPS, timed in the same way.
    Rows are ``speed``'s, with ``reference``, ``measured`` and ``published``.
    """
    known = summary[summary["published_fps"].notna()]
    rows = []
    way = ["precision", "mode", "batch", "end_to_end", "height", "width"]
    for timing in speed.to_dict("records"):
        paper = summary.loc[summary["experiment"] == timing["experiment"], "paper"].iloc[0]
        published_here = known[known["paper"] == paper].set_index("experiment")["published_fps"]
        row: dict[str, Any] = {"reference": None, "measured": None, "published": None}
        if len(published_here) and timing["fps"] == timing["fps"] and timing["fps"] is not None:
            reference = published_here.index[0]
            same = speed["experiment"] == reference
            for column in way:
                same &= speed[column] == timing[column]
            of_reference = speed.loc[same, "fps"].dropna()
            if len(of_reference):
                stated = published_here.get(timing["experiment"])
                row = {
                    "reference": reference,
                    "measured": timing["fps"] / of_reference.iloc[0],
                    "published": None if stated is None else stated / published_here.iloc[0],
                }
        rows.append(row)
    return pd.DataFrame(rows, index=speed.index)


def digits(column: pd.Series) -> list[str]:
    """Numbers with their own digits: what an interval did not allow is not filled up with zeros."""
    return ["" if pd.isna(value) else f"{value:g}" for value in column]


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
