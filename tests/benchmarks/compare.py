"""Prints each benchmark's median beside that of this machine's baseline: compare.py BASELINE LATEST."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main(baseline: str, latest: str) -> None:
    before, now = _read(baseline), _read(latest)
    if before["machine_info"]["cpu"] != now["machine_info"]["cpu"]:
        sys.exit(f"{baseline}: is of another machine; remove it, and the next run is the baseline")
    medians = {found["fullname"]: found["stats"]["median"] for found in before["benchmarks"]}
    for found in now["benchmarks"]:
        name, median = found["fullname"].removeprefix("tests/benchmarks/"), found["stats"]["median"]
        ratio = f"{median / medians[found['fullname']]:.2f} x" if found["fullname"] in medians else "new"
        beside = ", ".join(f"{what}: {value}" for what, value in found["extra_info"].items())
        print(f"{1000 * median:10.1f} ms  {ratio:>8}  {name}{f'  ({beside})' if beside else ''}")


def _read(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        sys.exit(f"{path}: cannot be read ({error}); run 'make benchmark' again")


if __name__ == "__main__":
    main(*sys.argv[1:])
