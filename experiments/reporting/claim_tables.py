"""The claims as a table: of the references, and of this run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.config.params import Params
from experiments.reporting.evidence import Source
from experiments.reporting.rendering import Noted, of_rows

METHOD = (
    "Difference: mean over the seeds. Interval: from the lowest to the highest end of the 95 % intervals "
    "over seeds, over images (those of one sequence, such as neighbouring frames of a video, together), and "
    "over both. A verdict needs all three on one side of the margin, and has to survive Benjamini and "
    "Hochberg's correction for all claims about scores."
)


def comparison(sources: Sequence[Source], params: Params) -> pd.DataFrame:
    """A row for each claim: what it says, and what became of it in each source."""
    table = []
    for key, claim in params.claims.items():
        sides = " - ".join(str(side) for side in claim.sides().values())
        shown: dict[str, Any] = {
            "Paper": claim.paper, "Claim": claim.says, "Compared": sides, "Metric": claim.metric,
            "Published": claim.published,
        }  # fmt: skip
        for source in sources:
            row = source.claims_by_key.get(key)
            shown[f"Verdict, {source.title}"] = verdict(row)
            if row and row["difference"]:
                shown[f"Effect, {source.title}"] = f"{effect(row)} {row['unit']}"
                if row["low"]:
                    shown[f"95 %, {source.title}"] = interval(row)
                    shown[f"95 % over seeds, {source.title}"] = interval(row, "seeds_")
                    shown[f"95 % over images, {source.title}"] = interval(row, "images_")
        table.append(shown | {"Source": claim.source})
    return of_rows(table).dropna(axis="columns", how="all").astype(object).fillna("")


def verdict(row: Mapping[str, str] | None) -> Any:
    """A claim's verdict, with its reason as a footnote."""
    if not row:
        return Noted(
            "not measured", "no verdicts of the present settings; run 'python -m experiments.claims'"
        )
    return Noted(row["verdict"], row["reason"]) if row["reason"] else row["verdict"]


def effect(row: Mapping[str, str]) -> str:
    """A difference in points with its sign, or a cost."""
    sign = "+" if row["unit"] == "points" else ""
    return f"{float(row['difference']):{sign}.2f}"


def interval(row: Mapping[str, str], of: str = "") -> str:
    """A 95 % interval of a claim about scores: the whole of all, or that over ``seeds_`` or ``images_``."""
    return f"[{float(row[f'{of}low']):+.2f}, {float(row[f'{of}high']):+.2f}]"
