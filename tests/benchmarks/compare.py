"""Prints each benchmark's median beside that of this machine's baseline: compare.py BASELINE LATEST."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from experiments.reporting import benchmarks
from experiments.running.storage import StorageError


def main(baseline: str, latest: str) -> None:
    try:
        rows, _ = benchmarks.compare(Path(baseline), Path(latest))
    except StorageError as error:
        sys.exit(str(error))
    for row in rows.to_dict("records"):
        times = row["Times the baseline"]
        ratio = "new" if pd.isna(times) else f"{times:.2f} x"
        beside = f"  ({row['Beside it']})" if row["Beside it"] else ""
        print(f"{row['Median ms']:10.1f} ms  {ratio:>8}  {row['Benchmark']}{beside}")


if __name__ == "__main__":
    main(*sys.argv[1:])
