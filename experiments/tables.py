"""Puts measured and published numbers side by side.

Writes ``results/<profile>/summary.csv`` (one row per experiment), the few numbers that ``dvc metrics`` shows
(``results/<profile>/metrics/``), and in ``reports/tables/`` one table for each table of the papers, the
complexity of all experiments, their speed, the IoU of each class and what the authors trained with, each as
Markdown, CSV and LaTeX.
Shows what there is and names what is missing; a score that belongs to other settings is not shown. Timings
stand in ``speed`` alone: all other tables are a function of code, params, data and seed.
"""

from __future__ import annotations

import json
from typing import Any

from experiments.config.params import Params, load_params
from experiments.reporting import captions
from experiments.reporting.recipes import recipe_table
from experiments.reporting.summary import complexity, speed, summarise, valid_scores
from experiments.reporting.tables import all_tables, render
from experiments.running import command, jobs, paths, storage


def main() -> None:
    command.parser("tables", __doc__).parse_args()
    params = load_params()
    scores, reasons = valid_scores(params)
    counted = complexity(params)
    summary = summarise(params, scores, reasons, counted)
    tables = all_tables(params, summary, counted, speed(params), scores)
    recipes = recipe_table(params)
    if len(recipes.rows):
        tables.append(recipes)
    storage.write_csv(params.paths.summary, summary)
    _write_metrics(params, scores)
    with storage.folder(paths.TABLES) as folder:
        for table in tables:
            for ending, text in render(table).items():
                (folder / f"{table.name}.{ending}").write_text(text, encoding="utf-8", newline="\n")
        described = {table.name: table.caption for table in tables}
        (folder / "captions.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    print(f"tables: {jobs.count(len(tables), 'table')}, {jobs.count(len(scores), 'experiment')} with scores")
    if reasons:
        print(f"tables: {captions.missing(reasons.items())}")


def _write_metrics(params: Params, scores: dict[str, dict[str, Any]]) -> None:
    """A file per experiment with its own scores, which DVC shows as a row."""
    with storage.folder(params.paths.metrics) as folder:
        for key, found in scores.items():
            if found["same_scores_as"]:
                continue
            shown = {name: found[name] for name in ("miou", "miou_std", "pixel_accuracy") if name in found}
            (folder / f"{key}.json").write_text(json.dumps(shown, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command.run("tables", main)
