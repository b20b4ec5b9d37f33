"""The report's page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jinja2

from experiments.config.params import Params
from experiments.reporting import captions
from experiments.reporting.sections import Drawing
from experiments.running import paths
from experiments.running.storage import StorageError, read_csv, read_json


def render(params: Params, experiments: int, sections: Sequence[Drawing]) -> str:
    """The HTML of the page.

    Args:
        params: of the run.
        experiments: how many have a score.
        sections: in their order.

    Raises:
        StorageError: a table is missing or broken.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    remedy = "run 'python -m experiments.tables' first"
    tables = []
    captioned = read_json(paths.TABLES / "captions.json", remedy)
    if not isinstance(captioned, dict) or any("/" in name for name in captioned):
        raise StorageError(f"{paths.TABLES / 'captions.json'}: names no tables; {remedy}")
    for name, caption in captioned.items():
        table = read_csv(paths.TABLES / f"{name}.csv", set(), remedy, dtype=str, keep_default_na=False)
        tables.append(
            {"name": name, "caption": caption, "columns": list(table), "rows": table.to_numpy().tolist()}
        )
    return environment.get_template("report.html.j2").render(
        profile_name=params.profile,
        profile=params.active,
        measured=captions.worth(params),
        experiments=experiments,
        tables=tables,
        sections=sections,
    )
