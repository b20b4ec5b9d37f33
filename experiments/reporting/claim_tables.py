"""The claims as a table, and their effects as figures: of this run, and of the references beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.config.params import Params
from experiments.reporting import captions, measurements, references, verdicts
from experiments.reporting.references import Reference
from experiments.running import storage

METHOD = (
    "Difference: mean over the seeds. Interval: from the lowest to the highest end of the 95 % intervals "
    "over seeds, over images, and over both. A verdict needs all three on one side of the margin, and has to "
    "survive Benjamini and Hochberg's correction for all claims about scores."
)


def present_rows(params: Params) -> list[dict[str, str]]:
    """The rows of this run's ``claims.csv``; none if it belongs to other settings or is not there."""
    if not verdicts.is_current(params, measurements.present(params)):
        return []
    table = storage.read_csv(params.paths.claims, set(), "", dtype=str, keep_default_na=False)
    return [{str(name): str(value) for name, value in row.items()} for row in table.to_dict("records")]


def all_references(params: Params) -> list[Reference]:
    """The references that are kept."""
    return [references.load(name, params) for name in references.names()]


def comparison(rows: Sequence[Mapping[str, str]], kept: Sequence[Reference], params: Params) -> pd.DataFrame:
    """A row for each claim: what it says, and what became of it here and in each reference.

    Args:
        rows: of this run; none if its verdicts are out of date.
        kept: the references.
        params: of the run.
    """
    sources = {f"here ({captions.measured_on(params)})": {row["claim"]: row for row in rows}}
    sources |= {reference.where: {row["claim"]: row for row in reference.claims()} for reference in kept}
    table = []
    for key, claim in params.claims.items():
        sides = " - ".join(str(side) for side in claim.sides().values())
        shown: dict[str, Any] = {
            "Paper": claim.paper, "Claim": claim.says, "Source": claim.source, "Compared": sides,
            "Metric": claim.metric, "Published": claim.published,
        }  # fmt: skip
        for source, by_key in sources.items():
            row = by_key.get(key, {})
            shown[f"Verdict, {source}"] = _verdict(row)
            shown[f"Difference, {source}"] = _difference(row)
        table.append(shown)
    return pd.DataFrame(table).dropna(axis="columns", how="all")


def effects(rows: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """The claims about scores that were measured, with numbers: what the figure draws."""
    columns = [
        "claim", "paper", "says", "difference", "margin", "low", "high", "seeds_low", "seeds_high",
        "images_low", "images_high", "verdict",
    ]  # fmt: skip
    measured = [{name: row[name] for name in columns} for row in rows if row["low"]]
    numbers = dict.fromkeys(columns[3:-1], float)
    return pd.DataFrame(measured, columns=columns).astype(numbers)


def _verdict(row: Mapping[str, str]) -> str:
    if not row:
        return "not measured (no verdicts of the present settings; run 'python -m experiments.claims')"
    return row["verdict"] + (f" ({row['reason']})" if row["reason"] else "")


def _difference(row: Mapping[str, str]) -> str:
    if not row or not row["difference"]:
        return ""
    sign = "+" if row["unit"] == "points" else ""
    value = f"{float(row['difference']):{sign}.2f}"
    interval = f" [{float(row['low']):+.2f}, {float(row['high']):+.2f}]" if row["low"] else ""
    return f"{value}{interval} {row['unit']}"
