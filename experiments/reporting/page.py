"""The report's page: one file that holds its figures, pictures, style and script."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from experiments.config.params import Params
from experiments.reporting import captions, claim_tables, verdicts
from experiments.reporting.drawing import Drawing, Measured
from experiments.reporting.evidence import Evidence, Source
from experiments.reporting.papers import PaperPage
from experiments.reporting.pictures import Gallery
from experiments.reporting.rendering import NAMES
from experiments.reporting.sections import placed
from experiments.running import paths
from experiments.running.storage import StorageError, read_json, read_text

_TEMPLATES = Path(__file__).parent / "templates"
_REMEDY = "run 'python -m experiments.tables' first"

_THEMED = {
    "#1b1b1b": "var(--ink)", "#767676": "var(--muted)", "#d9d9d9": "var(--line)", "#ffffff": "var(--paper)",
    "#0072b2": "var(--blue)", "#d55e00": "var(--orange)", "#009e73": "var(--green)", "#cc79a7": "var(--pink)",
}  # fmt: skip
"""Colours of figures that the page has a light and a dark form of."""

TERMS = {
    "mIoU": "mean intersection over union: for each class, the pixels that prediction and labels share, over "
    "those that either has; then the mean over the classes, in per cent",
    "seed": "the number that fixes the order of the data and the initial weights of a training; the same "
    "network is trained once for each seed, and what differs between seeds is chance",
    "interval": "where the true effect lies with 95 % confidence: here the widest span of three, over seeds, "
    "over images, and over both",
    "band": "the pixels closer to a boundary between two labelled classes than a width in pixels",
    "MACs": "multiply-accumulates: one multiplication and one addition each, of convolutions, matrix "
    "products and attention for one image; the papers call them FLOPs",
    "margin": "what an effect is compared with: zero, unless the claim names a number",
    "check": "a run that shows that everything works; its scores say nothing about the papers",
    "reference": "measurements of an earlier, longer run, kept beside the code with all that its verdicts "
    "follow from",
}
"""What words mean, said where each first stands."""


@dataclass(frozen=True)
class Answer:
    """What is known of a paper's idea, in a row of the first screen."""

    page: PaperPage
    score: Mapping[str, str] | None
    """The claim's row of ``claims.csv``."""
    boundary: Mapping[str, str] | None
    cost: str
    why_not: str


class _Terms:
    """Explains a word where it first stands in the page, and only there."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, word: str, shown: str = "") -> Markup:
        text = shown or word
        if word in self._said:
            return Markup(escape(text))
        self._said.add(word)
        name = f"term-{word.lower()}"
        return Markup(
            '<button type="button" class="term" popovertarget="{0}">{1}</button>'
            '<span popover id="{0}" class="meaning">{2}</span>'
        ).format(name, text, TERMS[word])


def read_tables() -> list[dict[str, Any]]:
    """The texts of all tables, as ``tables`` wrote them.

    Raises:
        StorageError: they are missing or broken.
    """
    names = read_json(NAMES, _REMEDY)
    if not (isinstance(names, list) and all(isinstance(name, str) and "/" not in name for name in names)):
        raise StorageError(f"{NAMES}: holds no names of tables; {_REMEDY}")
    needed = {"name", "title", "caption", "place", "shaded", "columns", "rows", "notes"}
    tables = []
    for name in names:
        path = paths.TABLES / f"{name}.json"
        table = read_json(path, _REMEDY)
        if not (isinstance(table, dict) and needed <= set(table) and table["name"] == name):
            raise StorageError(f"{path}: holds no table of this edition; {_REMEDY}")
        tables.append(table)
    return tables


def render(
    measured: Measured,
    tables: Sequence[Mapping[str, Any]],
    drawings: Sequence[Drawing],
    galleries: Mapping[str, Gallery],
    figures: Path,
) -> str:
    """The HTML of the page.

    Args:
        measured: what the figures are drawn from.
        tables: of ``read_tables``.
        drawings: the figures.
        galleries: pictures by paper.
        figures: where the drawn figures are kept.

    Raises:
        StorageError: a figure is missing.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    evidence, params = measured.evidence, measured.params
    script = environment.get_template("report.js.j2").render()
    source = evidence.concluding
    return environment.get_template("report.html.j2").render(
        answers=[_answer(measured, page, source) for page in measured.pages],
        claims=_claim_rows(params, source, evidence),
        tally=Counter(row["verdict"] for row in source.claims) if source else {},
        concluding=source,
        evidence=evidence,
        galleries=galleries,
        pages=measured.pages,
        params=params,
        run_tally=Counter(row["verdict"] for row in evidence.run.claims),
        seeds=captions.counted(len(params.seeds), "seed"),
        figures=lambda place: placed(drawings, place),
        tables=lambda place: [table for table in tables if table["place"] == place],
        claims_table=next((table for table in tables if table["name"] == "claims"), None),
        drawn=lambda drawing: _inline(figures / f"{drawing.name}.svg", drawing),
        term=_Terms(),
        method=claim_tables.METHOD,
        style=Markup(environment.get_template("report.css.j2").render()),
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _answer(measured: Measured, page: PaperPage, source: Source | None) -> Answer:
    rows = source.claims_by_key if source else {}
    score = rows.get(page.headline)
    return Answer(
        page,
        score,
        rows.get(page.boundary),
        _cost(measured, page),
        "" if source else "no reference with verdicts is kept, and this run is a check",
    )


def _cost(measured: Measured, page: PaperPage) -> str:
    """What a paper's model costs beyond its baseline, counted at the paper's scale."""
    counted = measured.summary.set_index("experiment")[["measured_parameters_m", "measured_macs_g"]].astype(
        float
    )
    if not page.baseline or not {page.model, page.baseline} <= set(counted.index):
        return ""
    said = []
    for column, unit in (("measured_parameters_m", "M parameters"), ("measured_macs_g", "G MACs")):
        model, baseline = (float(counted[column][key]) for key in (page.model, page.baseline))
        if math.isfinite(model) and math.isfinite(baseline):
            said.append(
                f"{model - baseline:+.2f} {unit} ({100 * (model / baseline - 1):+.1f}\N{NO-BREAK SPACE}%)"
            )
    return ", ".join(said)


def _claim_rows(params: Params, source: Source | None, evidence: Evidence) -> list[dict[str, Any]]:
    """The rows of the claims' table in the page."""
    others = [other for other in evidence.columns if other is not source and other.kind != "check"]
    rows = source.claims_by_key if source else {}
    limit = _limit(rows.values())
    shown = []
    for key, claim in params.claims.items():
        row = rows.get(key)
        sides = " - ".join(str(side) for side in claim.sides().values())
        measured = row is not None and row["difference"] != ""
        shown.append({
            "key": key,
            "paper": claim.paper,
            "says": claim.says,
            "compared": sides,
            "metric": claim.metric,
            "source": claim.source,
            "published": "" if claim.published is None else f"{claim.published:+g}",
            "verdict": row["verdict"] if row else verdicts.NOT_MEASURED,
            "reason": row["reason"] if row else "no reference with verdicts is kept",
            "effect": claim_tables.effect(row) if row and measured else "",
            "unit": row["unit"] if row and measured else "",
            "interval": claim_tables.interval(row) if row and row["low"] else "",
            "parts": [
                (name, claim_tables.interval(row, f"{name}_"))
                for name in ("seeds", "images")
                if row and row["low"]
            ],
            "bar": _bar(row, limit) if row and row["low"] else None,
            "others": [
                (other.title, other.claims_by_key[key]["verdict"] if key in other.claims_by_key else "")
                for other in others
            ],
        })  # fmt: skip
    return shown


def _limit(rows: Any) -> float:
    """What the intervals beside the claims are drawn to: one huge interval does not squeeze all others."""
    known = [row for row in rows if row["low"]]
    if not known:
        return 1.0
    ends = sorted(abs(float(row[end])) for row in known for end in ("low", "high"))
    return max(1.1 * max(abs(float(row["difference"])) for row in known), 1.5 * ends[len(ends) // 2], 1e-6)


def _bar(row: Mapping[str, str], limit: float) -> dict[str, float]:
    """Places in a strip of 160 units whose middle is zero."""

    def place(name: str) -> float:
        return round(80 + 78 * max(-1.0, min(1.0, float(row[name]) / limit)), 1)

    low, high = place("low"), place("high")
    return {
        "low": low,
        "width": round(high - low, 1),
        "point": place("difference"),
        "margin": place("margin"),
    }


def _inline(path: Path, drawing: Drawing) -> Markup:
    """A drawn figure as an element of the page, in the page's colours and type."""
    svg = read_text(path, "run 'python -m experiments.report --again'")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    for colour, name in _THEMED.items():
        svg = svg.replace(colour, name)
    # Nothing in the page has these ids but the figure itself.
    prefix = f"{drawing.name}-"
    svg = re.sub(r'\bid="', f'id="{prefix}', svg)
    svg = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{prefix}", svg)
    svg = re.sub(r' (?:xmlns:xlink|xmlns|version)="[^"]*"', "", svg.replace("xlink:href", "href"), count=0)
    svg = re.sub(
        r'^<svg width="[^"]*" height="[^"]*"', "<svg", re.sub(r"<svg ([^>]*)>", _ordered, svg, count=1)
    )
    return Markup(svg.replace("<svg", Markup('<svg role="img" aria-label="{}"').format(drawing.title), 1))


def _ordered(opening: re.Match[str]) -> str:
    """The opening of an SVG with its view box alone."""
    box = re.search(r'viewBox="[^"]*"', opening[1])
    return f"<svg {box[0] if box else ''}>"
