"""The tables of what networks cost: counted at the papers' scale, and timed on the device at hand."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments.config.params import Params
from experiments.measuring.jobs import count_details
from experiments.reporting import captions
from experiments.reporting.rendering import Table, sizes


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
        "Parameters and multiply-accumulates",
        "costs",
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
    title = "Multiply-accumulates by module"
    return Table("complexity-modules", caption, pd.DataFrame(rows), title, "costs")


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
        "Inference times",
        "costs",
    )


def fps_ratios(summary: pd.DataFrame, speed: pd.DataFrame) -> pd.DataFrame:
    """FPS in relation to another method's, measured and published: what two devices can be compared by.

    The reference of an experiment is the first of its paper's with a published FPS, timed in the same way.
    Rows are ``speed``'s, with ``reference``, ``measured`` and ``published``.
    """
    known = summary[summary["published_fps"].notna()]
    stated = {
        paper: dict(zip(own["experiment"], own["published_fps"], strict=True))
        for paper, own in known.groupby("paper")
    }
    paper_of = dict(zip(summary["experiment"], summary["paper"], strict=True))
    way = ["precision", "mode", "batch", "end_to_end", "height", "width"]
    timings = speed.to_dict("records")
    fps = {
        (timing["experiment"], *(timing[column] for column in way)): timing["fps"]
        for timing in reversed(timings)
        if pd.notna(timing["fps"])
    }
    rows = []
    for timing in timings:
        published_here = stated.get(paper_of[timing["experiment"]], {})
        reference = next(iter(published_here), None)
        of_reference = fps.get((reference, *(timing[column] for column in way)))
        row: dict[str, Any] = {"reference": None, "measured": None, "published": None}
        if reference is not None and of_reference is not None and pd.notna(timing["fps"]):
            own = published_here.get(timing["experiment"])
            row = {
                "reference": reference,
                "measured": timing["fps"] / of_reference,
                "published": None if own is None else own / published_here[reference],
            }
        rows.append(row)
    return pd.DataFrame(rows, index=speed.index)


def digits(column: pd.Series) -> list[str]:
    """Numbers with their own digits: what an interval did not allow is not filled up with zeros."""
    return ["" if pd.isna(value) else f"{value:g}" for value in column]
