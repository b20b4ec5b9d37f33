"""Draws the figures and writes the report, ``reports/index.html``, from what the stages measured.

Shows what there is; --again draws it although nothing that it shows has changed.
"""

from __future__ import annotations

import hashlib
from typing import Any

from experiments.config.params import Params, load_params
from experiments.reporting import captions
from experiments.running import command, digests, jobs, paths, server, storage
from experiments.running.jobs import Outcome


def main() -> None:
    parser = command.parser("report", __doc__)
    command.add_selection(parser)
    parser.add_argument("--again", action="store_true", help="draw it although nothing has changed")
    arguments = parser.parse_args()
    params = load_params()
    keys = command.choose(arguments.experiments, params.experiments, params.run)
    storage.read_text(params.paths.summary, "run 'python -m experiments.tables' first")
    digest = _digest(params, keys)
    if not arguments.again and _kept(params).get("digest") == digest and paths.REPORT.is_file():
        print(f"report: {paths.REPORT} is as it was")
        return
    drawn, outcome, shown = _draw(params, keys, {} if arguments.again else _kept(params).get("figures", {}))
    whole = not (outcome.failed or outcome.left)
    storage.write_json(params.paths.report_digest, {"digest": digest if whole else "", "figures": drawn})
    if not outcome.left:
        print(f"report: {paths.REPORT}, {shown}")
    jobs.finish("report", outcome)


def _draw(params: Params, keys: list[str], known: dict[str, str]) -> tuple[dict[str, str], Outcome, str]:
    """Draws what has changed and writes the page.

    Args:
        params: of the run.
        keys: the experiments that are shown.
        known: digests of the figures that are there.

    Returns:
        The digests of all figures, what became of the work, and what the report shows, in words.
    """
    server.start_ahead(server.DRAWING)
    # Here, as they take seconds to import and often there is nothing to draw.
    from experiments.reporting import measurements, page
    from experiments.reporting.drawing import Measured, draw
    from experiments.reporting.evidence import gather
    from experiments.reporting.papers import pages
    from experiments.reporting.pictures import galleries
    from experiments.reporting.sections import drawings_of
    from experiments.reporting.summary import complexity, speed, summarise

    tables = page.read_tables()  # first, as a broken table needs no figures
    found = measurements.present(params)
    evidence = gather(params, found)
    summary = summarise(params, found.scores, found.reasons, complexity(params))
    shown = summary[summary["experiment"].isin(keys)]
    papers = [paper for paper in pages(params) if set(shown["paper"]) & {paper.key}]
    measured = Measured(params, keys, papers, evidence, shown, speed(params))
    drawings = drawings_of(measured)
    drawn, outcome = draw(drawings, paths.FIGURES, known, params.paths.locks)
    whole = [drawing for drawing in drawings if drawing.name in drawn]
    if not outcome.left:  # a page without the figures that are left would be worth less than the one before
        shown_pictures = galleries(params, evidence.run, papers)
        storage.write_text(paths.REPORT, page.render(measured, tables, whole, shown_pictures, paths.FIGURES))
    left_out = {key: reason for key, reason in found.reasons.items() if key in keys}
    problems = "".join(f" Not shown: {problem}" for problem in evidence.problems)
    return drawn, outcome, f"{len(drawings)} figures. {captions.missing(left_out.items())}{problems}".rstrip()


def _digest(params: Params, keys: list[str]) -> str:
    """Digest of all that the report shows and is drawn with."""
    places = params.paths
    files = [
        *paths.TABLES.glob("*"),
        *places.evaluations.glob("*.json"),
        *places.predictions("").rglob("*"),
        *places.timings.glob("*.json"),
        *paths.COMPLEXITY_COUNTS.glob("*.json"),
        *paths.REFERENCE.rglob("*"),
        places.claims,
    ]
    total = hashlib.sha256(digests.of_value(params.model_dump(mode="json")).encode())
    total.update(repr(keys).encode())
    total.update(digests.of_code(folders=("experiments/reporting",)).encode())
    for path in sorted(path for path in files if path.is_file()):
        total.update(f"{path}\0{digests.of_file(path)}\0".encode())
    return total.hexdigest()


def _kept(params: Params) -> dict[str, Any]:
    """What the report on disk was made from; empty if nothing says so."""
    try:
        kept = storage.read_json(params.paths.report_digest, "")
    except storage.StorageError:
        return {}
    return kept if isinstance(kept, dict) else {}


if __name__ == "__main__":
    command.run("report", main)
