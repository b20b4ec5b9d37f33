"""Numbers that the papers or their authors' repositories state, each with its source.

``results/published/<paper>.csv`` is typed in by hand; a number without a source is refused. ``mark`` says how
sure it is: S, stated in a published abstract or review of the paper; R, read in the authors' repository.
``split`` is empty where the source does not say which images a score is of.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from experiments.running.errors import StageError
from experiments.running.paths import PUBLISHED
from experiments.running.storage import read_csv

COLUMNS = ["paper", "table", "row", "metric", "value", "unit", "split", "mark", "source"]
_MARKS = {"S", "R", "S, R"}
_PLACE = ["paper", "table", "row"]


def load(folder: Path = PUBLISHED) -> pd.DataFrame:
    """All published numbers, one a row, with ``COLUMNS``.

    Raises:
        StageError: a file lacks a column, a value is not a number, or its source or mark is missing.
    """
    tables = []
    for path in sorted(folder.glob("*.csv")):
        table = read_csv(path, set(COLUMNS), "mend it, or take it from git", dtype=str, keep_default_na=False)
        for line, row in enumerate(table.to_dict("records"), 2):
            if not row["source"]:
                raise StageError(f"{path}, line {line}: no source; a published number needs one")
            if row["mark"] not in _MARKS:
                raise StageError(
                    f"{path}, line {line}: mark is {row['mark']!r}; expected S (stated in an abstract or "
                    "review), R (read in the authors' repository) or 'S, R'"
                )
            try:
                float(row["value"])
            except ValueError:
                raise StageError(
                    f"{path}, line {line}: value is {row['value']!r}; expected a number"
                ) from None
        if table.duplicated([*_PLACE, "metric"]).any():
            twice = table[table.duplicated([*_PLACE, "metric"])].iloc[0]
            raise StageError(f"{path}: gives {twice['metric']} of {twice['row']!r} in {twice['table']} twice")
        tables.append(table.astype({"value": float}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=COLUMNS)


def wide(numbers: pd.DataFrame) -> pd.DataFrame:
    """One row for each (paper, table, row), a column for each metric, in the order of the files.

    ``split`` is that of the scores, empty where no source says it.
    """
    order = numbers[_PLACE].drop_duplicates()
    values = numbers.pivot(index=_PLACE, columns="metric", values="value").reset_index()
    sources = numbers.groupby(_PLACE, as_index=False)["source"].agg(lambda s: "; ".join(dict.fromkeys(s)))
    splits = numbers.groupby(_PLACE, as_index=False)["split"].agg(lambda s: max(s, default=""))
    return order.merge(values, on=_PLACE).merge(splits, on=_PLACE).merge(sources, on=_PLACE)
