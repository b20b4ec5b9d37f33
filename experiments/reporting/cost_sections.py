"""The report's figures of what networks cost, beside what they score."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

from experiments.measuring.jobs import ceilings, count_details
from experiments.reporting import published
from experiments.reporting.captions import joined
from experiments.reporting.cost_tables import main_experiments
from experiments.reporting.drawing import Drawing, Measured
from experiments.reporting.rendering import sizes


def published_costs(measured: Measured) -> list[Drawing]:
    """Published mIoU against the published cost of the same row, for each paper."""
    units = {
        "macs": ("MACs", "MACs, thousand millions (log)"),
        "fps": ("frames per second", "frames per second (log), on the authors' device"),
        "parameters": ("parameters", "parameters, millions (log)"),
    }
    drawings = []
    for page in measured.pages:
        for cost in page.published_costs:
            points = _published_points(measured, cost)
            points = points[points["paper"] == page.key]
            if len(points) > 1:
                name, label = units[cost]
                title = f"{page.title}: published mIoU against {name}"
                text = "Score and cost of a point are of one published row; its source stands in the table."
                arguments = (points.assign(main=True), label, cost != "fps")
                drawings.append(
                    Drawing(f"{page.key}-miou-{cost}", title, text, page.key, "score_against_cost", arguments)
                )
    return drawings


def _published_points(measured: Measured, cost: str) -> pd.DataFrame:
    """Rows with a published score and a published cost. Where a row has several tables, each is a point."""
    numbers = published.wide(published.load())
    if cost not in numbers or "miou" not in numbers:
        return pd.DataFrame(columns=["name", "score", "cost", "group", "main", "paper"])
    mains = {measured.row(page.main) for page in measured.pages} | {
        row for page in measured.pages for _, row, _ in page.rows
    }
    rows = numbers.dropna(subset=[cost, "miou"])
    return pd.DataFrame({
        "name": rows["row"],
        "score": rows["miou"],
        "cost": rows[cost],
        "group": "published, " + rows["table"],
        "main": rows["row"].isin(mains),
        "paper": rows["paper"],
    }).reset_index(drop=True)  # fmt: skip


def accuracy_against_cost(measured: Measured) -> list[Drawing]:
    """mIoU against each cost over all papers; score and cost of a point are of one network."""
    labels = {
        "macs": ("MACs", "MACs, thousand millions (log)"),
        "parameters": ("parameters", "parameters, millions (log)"),
        "fps": ("frames per second", "frames per second (log)"),
        "memory": ("peak memory", "peak memory, MiB (log)"),
    }
    drawings = []
    for cost, (name, label) in labels.items():
        points = pd.concat([_published_points(measured, cost), _measured_points(measured, cost)])
        if len(points) < 2:
            continue
        text = (
            "Score and cost of a point are of one network: published of one row, or measured here of a "
            "network that the profile does not replace by a smaller one. Data sets differ between tables, so "
            "the front is of the points and no ranking. The papers' models, baselines and "
            "peers; all are named on hovering."
        )
        title = f"mIoU against {name}"
        arguments = (points.reset_index(drop=True), label, cost != "fps")
        drawings.append(Drawing(f"miou-{cost}", title, text, "across", "score_against_cost", arguments))
    return drawings


def _measured_points(measured: Measured, cost: str) -> pd.DataFrame:
    """Scores of networks that were trained as the paper has them, beside what the same network costs."""
    summary = measured.summary.set_index("experiment")
    fastest = _fastest(measured.speed)
    costs = {
        "macs": summary["measured_macs_g"],
        "parameters": summary["measured_parameters_m"],
        "fps": fastest["fps"],
        "memory": fastest["peak_memory_mb"],
    }[cost].dropna()
    mains = {key for page in measured.pages for key in (page.main, page.model)}
    shown = mains | {key for page in measured.pages for key in (page.baseline, *page.peers)}
    rows = []
    for source in measured.evidence.columns:
        for key in filter(shown.__contains__, measured.keys):
            found = source.miou(key)
            run = measured.params.run(key)
            if source.kind == "check" or found is None or key not in costs.index:
                continue
            if run.settled.here != run.settled.paper:
                continue
            rows.append({
                "name": key, "score": found.mean, "cost": float(costs[key]), "group": source.title,
                "main": key in mains, "paper": measured.params.experiments[key].paper,
            })  # fmt: skip
    return pd.DataFrame(rows)


def modules(measured: Measured) -> list[Drawing]:
    """Where the multiply-accumulates of each paper's main model go."""
    bars = []
    for page in measured.pages:
        details = count_details(measured.params, page.main)
        if details is None:
            continue
        total = details["modules"][""]
        parts = _outermost(details["modules"])
        largest = sorted(parts, key=lambda name: -parts[name])[:5]
        shown = {name: 100 * parts[name] / total for name in largest if parts[name] >= total / 200}
        rest = 100 - sum(shown.values())
        bars.append((page.main, shown | ({"other": rest} if rest > 0.05 else {})))
    text = "Counted on the papers' own networks at the papers' input sizes; smaller parts stand in the table."
    title = "Where the multiply-accumulates go"
    arguments = (bars, "share of the network's MACs, %")
    return [Drawing("modules", title, text, "across", "shares", arguments)] if bars else []


def _outermost(counted: Mapping[str, int]) -> dict[str, int]:
    """The modules that lie in no other counted one but the network itself."""
    return {
        name: macs
        for name, macs in counted.items()
        if name and not any(name.startswith(f"{other}.") for other in counted if other)
    }


def macs_by_size(measured: Measured) -> list[Drawing]:
    """Multiply-accumulates against the input's size."""
    lines = []
    for key in main_experiments(measured.summary):
        details = count_details(measured.params, key)
        if details is not None:
            points = sorted(
                (math.prod(map(int, size.split("x"))) / 1e6, macs / 1e9)
                for size, macs in details["by_size"].items()
            )
            pixels, macs = (list(values) for values in zip(*points, strict=True))
            lines.append({"name": key, "x": pixels, "y": macs, "low": [], "high": []})
    text = "Counted on the papers' own networks. Attention over the whole map grows faster than the pixels."
    title = "Multiply-accumulates against input size"
    arguments = (lines, "megapixels of the input (log)", "MACs, thousand millions (log)", True)
    return [Drawing("macs-size", title, text, "costs", "curves", arguments)] if lines else []


def roofline(measured: Measured) -> list[Drawing]:
    """Multiply-accumulates a second against those for each byte, below what the device does at most."""
    top = ceilings(measured.params)
    speed = _fastest(measured.speed)
    if speed.empty or "bytes_a_second" not in top:
        return []
    rows = measured.summary[["experiment", "paper"]].merge(speed.reset_index(), on="experiment")
    rows["intensity"] = rows["macs"] / (rows["traffic_mb"] * 2**20)
    rows["macs_a_second"] = rows["macs"] * rows["fps"]
    rows["main"] = rows["experiment"].isin([page.main for page in measured.pages])
    text = (
        f"On {joined(rows['device'])}, input {joined(rows['input'])}, batch 1, the fastest mode of each "
        "network. The lines are matrix products and copies that were measured in the same run. Bytes: "
        "weights once, every output of a product out and in again, which is the least that has to move "
        "without fusion."
    )
    used = {name: top["macs_a_second"][name] for name in rows["precision"] if name in top["macs_a_second"]}
    columns = ["paper", "experiment", "intensity", "macs_a_second", "main"]
    arguments = (rows[columns], used, top["bytes_a_second"])
    return [
        Drawing("roofline", "What the networks reach of the device", text, "costs", "roofline", arguments)
    ]


def _fastest(timings: pd.DataFrame) -> pd.DataFrame:
    """By experiment, the best of the precisions and modes at batch 1."""
    ran = timings[(timings["batch"] == 1) & timings["fps"].notna() & (timings["end_to_end"] == 0)].copy()
    ran["input"] = sizes(ran["height"], ran["width"])
    return ran.sort_values("fps", ascending=False).drop_duplicates("experiment").set_index("experiment")
