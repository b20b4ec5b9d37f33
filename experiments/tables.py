"""Puts measured and published numbers side by side.

Writes ``results/<profile>/summary.csv`` (one row per experiment), the few numbers that ``dvc metrics`` shows
(``results/<profile>/metrics/``), and in ``reports/tables/`` the claims, one table for each table of the
papers, their ablations as differences, the peers, classes, costs, and what the authors trained with, each as
Markdown, CSV and LaTeX.
Shows what there is and names what is missing; a score that belongs to other settings is not shown. Timings
stand in ``speed`` alone: all other tables are a function of code, params, data and seed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.config.params import Params, load_params
from experiments.reporting import captions, measurements
from experiments.reporting.evidence import gather
from experiments.reporting.rendering import NAMES, lay_out, render
from experiments.reporting.summary import complexity, speed, summarise
from experiments.reporting.tables import all_tables
from experiments.reporting.verdicts import CONTRADICTED, OPEN, SUPPORTED
from experiments.running import command, jobs, paths, storage

_SCORES = ("miou", "miou_std")


def main() -> None:
    command.parser("tables", __doc__).parse_args()
    params = load_params()
    found = measurements.present(params)
    evidence = gather(params, found)
    counted = complexity(params)
    summary = summarise(params, found.scores, found.reasons, counted)
    tables = [lay_out(table) for table in all_tables(params, evidence, summary, counted, speed(params))]
    storage.write_csv(params.paths.summary, summary)
    _write_metrics(params, found.scores, evidence.run.claims)
    with storage.folder(paths.TABLES) as folder:
        for table in tables:
            for ending, text in render(table).items():
                (folder / f"{table.name}.{ending}").write_text(text, encoding="utf-8", newline="\n")
            texts = json.dumps(table.as_json(), ensure_ascii=False)
            (folder / f"{table.name}.json").write_text(texts + "\n", encoding="utf-8")
        names = json.dumps([table.name for table in tables], indent=1)
        (folder / NAMES.name).write_text(names + "\n", encoding="utf-8")
    scored = jobs.count(len(found.scores), "experiment")
    print(f"tables: {jobs.count(len(tables), 'table')}, {scored} with scores")
    for problem in evidence.problems:
        print(f"tables: not shown: {problem}")
    if found.reasons:
        print(f"tables: {captions.missing(found.reasons.items())}")


def _write_metrics(
    params: Params, scores: Mapping[str, dict[str, Any]], claims: Sequence[Mapping[str, str]]
) -> None:
    """What DVC shows: a row per experiment with scores of its own, and one of how many claims are decided."""
    verdicts = Counter(row["verdict"] for row in claims)
    with storage.folder(params.paths.metrics) as folder:
        for key, found in scores.items():
            if not found["same_scores_as"]:
                _write_row(folder / f"{key}.json", {name: found[name] for name in _SCORES if name in found})
        if claims:
            shown = {verdict: verdicts[verdict] for verdict in (SUPPORTED, CONTRADICTED, OPEN)}
            (folder / "claims").mkdir()
            _write_row(folder / "claims/verdicts.json", shown)


def _write_row(path: Path, shown: Mapping[str, float]) -> None:
    path.write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command.run("tables", main)
