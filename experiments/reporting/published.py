"""Numbers that the papers or their authors' repositories state, each with its source.

``results/published/<paper>.csv`` is typed in by hand; a number without a source is refused.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from experiments.running.command import StageError

PUBLISHED = Path("results/published")
COLUMNS = ["paper", "table", "row", "metric", "value", "unit", "source"]


def load() -> pd.DataFrame:
    """All published numbers, one a row, with ``COLUMNS``.

    Raises:
        StageError: a file lacks a column, a value is not a number, or a source is missing.
    """
    tables = []
    for path in sorted(PUBLISHED.glob("*.csv")):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if list(table.columns) != COLUMNS:
            raise StageError(
                f"{path}: has the columns {', '.join(table.columns)}; expected {', '.join(COLUMNS)}"
            )
        for line, row in enumerate(table.to_dict("records"), 2):
            if not row["source"]:
                raise StageError(f"{path}, line {line}: no source; a published number needs one")
            try:
                float(row["value"])
            except ValueError:
                raise StageError(
                    f"{path}, line {line}: value is {row['value']!r}; expected a number"
                ) from None
        if table.duplicated(["paper", "table", "row", "metric"]).any():
            twice = table[table.duplicated(["paper", "table", "row", "metric"])].iloc[0]
            raise StageError(f"{path}: gives {twice['metric']} of {twice['row']!r} in {twice['table']} twice")
        tables.append(table.astype({"value": float}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def wide(numbers: pd.DataFrame) -> pd.DataFrame:
    """One row for each (paper, table, row), a column for each metric, in the order of the files."""
    index = ["paper", "table", "row"]
    order = numbers[index].drop_duplicates()
    values = numbers.pivot(index=index, columns="metric", values="value").reset_index()
    sources = numbers.groupby(index, as_index=False)["source"].agg(lambda s: "; ".join(dict.fromkeys(s)))
    return order.merge(values, on=index).merge(sources, on=index)
