"""What ``make benchmark`` measured, beside the first run on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from experiments.reporting.rendering import Noted, Table
from experiments.running import paths
from experiments.running.storage import StorageError, read_json

_REMEDY = "remove it and run 'make benchmark'"


def table() -> Table | None:
    """Medians of all benchmarks, and their ratios to the baseline; ``None`` where none were run.

    Where a file cannot be used, the table's one cell says why.
    """
    if not paths.LATEST_BENCHMARKS.is_file():
        return None
    try:
        rows, processor = compare(paths.BENCHMARK_BASELINE, paths.LATEST_BENCHMARKS)
    except StorageError as error:
        rows, processor = pd.DataFrame([{"Benchmark": Noted(None, str(error))}]), "this machine"
    return Table(
        "speed-benchmarks",
        f"Medians on {processor}, one thread, beside those of the first run on this machine: below 1 is "
        "faster. The two runs may have had other work beside them.",
        rows,
        "Benchmarks of parts",
        "costs",
    )


def compare(baseline: Path, latest: Path) -> tuple[pd.DataFrame, str]:
    """Each benchmark of pytest-benchmark's ``latest`` beside that of ``baseline``, and the processor's name.

    Raises:
        StorageError: a file is missing or broken, or they are of two machines.
    """
    before, now = _medians(baseline), _medians(latest)
    if before.processor != now.processor:
        raise StorageError(f"{baseline}: is of another machine ({before.processor}); {_REMEDY}")
    rows = [
        {
            "Benchmark": name.removeprefix("tests/benchmarks/"),
            "Median ms": round(1000 * median, 1),
            "Times the baseline": median / before.seconds[name] if name in before.seconds else None,
            "Beside it": now.beside[name],
        }
        for name, median in now.seconds.items()
    ]
    return pd.DataFrame(rows), now.processor


class _Medians:
    """What a file of pytest-benchmark says: seconds, and what stands beside them, by benchmark."""

    def __init__(self, content: Any):
        self.processor: str = content["machine_info"]["cpu"]["brand_raw"]
        found = content["benchmarks"]
        self.seconds = {each["fullname"]: float(each["stats"]["median"]) for each in found}
        self.beside = {
            each["fullname"]: ", ".join(f"{what}: {value}" for what, value in each["extra_info"].items())
            for each in found
        }


def _medians(path: Path) -> _Medians:
    try:
        return _Medians(read_json(path, _REMEDY))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StorageError(f"{path}: is no file of pytest-benchmark ({error!r}); {_REMEDY}") from None
