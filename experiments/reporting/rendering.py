"""Tables for people: equal decimals in a column, footnotes by letter, and the texts of every format."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from experiments.running import paths

NAMES = paths.TABLES / "tables.json"
"""What ``tables`` writes for ``report``: the names of all tables in their order. The texts of each, with its
footnotes, are in a JSON file of that name beside it."""

EMPTY = "\N{EN DASH}"
"""Stands in a cell without a value whose note says why."""


@dataclass(frozen=True)
class Noted:
    """A cell with a footnote."""

    value: Any
    """``None`` for a cell that is empty for the reason that the note gives."""
    note: str


@dataclass(frozen=True)
class Table:
    """A table for people."""

    name: str
    """File name without its ending."""
    caption: str
    """What it shows, and of what its numbers are."""
    rows: pd.DataFrame
    """Numbers, texts, ``Noted`` or nothing."""
    title: str = ""
    place: str = ""
    """Section of the page: the key of a paper, ``across``, ``costs`` or ``check``; empty for none."""
    shaded: bool = False
    """Whether its numbers, in per cent, are a picture: the larger, the darker the cell."""


def of_rows(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A table of rows, each of which may lack columns: they stand where the rows that have them have them.

    Args:
        rows: cells by column. Two columns that several rows have are in one order in all of them.
    """
    found = list(rows)
    columns: list[str] = []
    for row in found:
        place = 0
        for name in row:
            if name in columns:
                place = columns.index(name) + 1
            else:
                columns.insert(place, name)
                place += 1
    return pd.DataFrame(found, columns=columns)


@dataclass(frozen=True)
class Column:
    """A column as it is shown."""

    name: str
    numeric: bool
    """Aligned at the right, so that the points of its numbers stand below each other."""


@dataclass(frozen=True)
class LaidOut:
    """A table as texts."""

    name: str
    title: str
    caption: str
    place: str
    shaded: bool
    columns: list[Column]
    rows: list[list[list[str]]]
    """Of each cell its text, and the letter of its footnote or nothing."""
    notes: list[tuple[str, str]]
    """Letters and what they say."""

    def as_json(self) -> dict[str, Any]:
        """What ``tables`` writes and ``report`` reads."""
        return asdict(self)


def lay_out(table: Table) -> LaidOut:
    """The texts of a table. Footnotes have letters in the order in which a reader comes to them."""
    letters: dict[str, str] = {}
    for row in table.rows.itertuples(index=False):
        for value in row:
            if isinstance(value, Noted):
                letters.setdefault(value.note, letter(len(letters)))
    columns, texts = [], []
    for place, name in enumerate(table.rows):
        column = table.rows.iloc[:, place]
        shown = cells(column)
        columns.append(Column(str(name), _is_numeric(shown)))
        texts.append([
            [text, letters[value.note]] if isinstance(value, Noted) else [text, ""]
            for value, text in zip(column, shown, strict=True)
        ])  # fmt: skip
    rows = [list(row) for row in zip(*texts, strict=True)]
    notes = [(mark, note) for note, mark in letters.items()]
    return LaidOut(
        table.name, table.title or table.name, table.caption, table.place, table.shaded, columns, rows, notes
    )


def letter(index: int) -> str:
    """``a`` to ``z``, then ``aa``, ``ab`` and so on."""
    head, last = divmod(index, 26)
    return (letter(head - 1) if head else "") + chr(ord("a") + last)


def cells(column: pd.Series) -> list[str]:
    """The texts of a column: its numbers with equal decimals, as many as the smallest needs to be seen."""
    values = [value.value if isinstance(value, Noted) else value for value in column]
    decimals = _decimals([float(v) for v in values if isinstance(v, float) and math.isfinite(v)])
    return [
        EMPTY if isinstance(noted, Noted) and noted.value is None else _cell(value, decimals)
        for noted, value in zip(column, values, strict=True)
    ]


def _decimals(numbers: Sequence[float]) -> int:
    """Two, or as many as the smallest number needs for two digits that count and all have, at most six."""
    small = [abs(n) for n in numbers if n]
    if not small:
        return 2
    needed = 1 - math.floor(math.log10(min(small)))
    given = max(len(f"{n:.6f}".rstrip("0").partition(".")[2]) for n in small)
    return max(2, min(6, needed, given))


def _cell(value: Any, decimals: int) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.{decimals}f}" if isinstance(value, float) else str(value)


def _is_numeric(texts: Iterable[str]) -> bool:
    """Whether a column holds numbers, intervals or sizes, and nothing else."""
    filled = [text for text in texts if text not in ("", EMPTY)]
    return all(re.fullmatch(r"[-+\[]*\d[\d.,\]+ x-]*", text) for text in filled)


def render(table: LaidOut) -> dict[str, str]:
    """The table's text in each format, by file ending."""
    return {"csv": _csv(table), "md": _markdown(table), "tex": _latex(table)}


def _csv(table: LaidOut) -> str:
    """Values alone, and the notes of a row in a last column, so that a program reads numbers as numbers."""
    said = dict(table.notes)
    frame = pd.DataFrame(
        [["" if text == EMPTY else text for text, _ in row] for row in table.rows],
        columns=[column.name for column in table.columns],
    )
    if said:
        frame["Notes"] = [
            "; ".join(dict.fromkeys(said[mark] for _, mark in row if mark)) for row in table.rows
        ]
    return frame.to_csv(index=False, lineterminator="\n")


def _markdown(table: LaidOut) -> str:
    def line(values: Iterable[str]) -> str:
        return f"| {' | '.join(values)} |"

    lines = [
        line(escape_markdown(column.name) for column in table.columns),
        line("--:" if column.numeric else ":--" for column in table.columns),
    ]
    lines += [
        line(escape_markdown(text) + (f" <sup>{mark}</sup>" if mark else "") for text, mark in row)
        for row in table.rows
    ]
    notes = "".join(f"- <sup>{mark}</sup> {escape_markdown(note)}\n" for mark, note in table.notes)
    return "\n".join(lines) + f"\n\n{escape_markdown(table.caption)}\n" + (f"\n{notes}" if notes else "")


_LONGEST = 40
"""Rows of a table that still fits on a page; a longer one breaks over pages."""
_WIDE = 24
"""Characters from which on a column's text breaks into lines."""

_ALONE = r"""% Compiles by itself, and by the command input where booktabs and longtable are loaded.
\expandafter\ifx\csname @twoclasseserror\endcsname\documentclass\else
\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[a4paper,landscape,margin=1cm]{geometry}
\usepackage{array,booktabs,longtable,textcomp}
\begin{document}
\def\closetable{\end{document}}
\fi
"""


def _latex(table: LaidOut) -> str:
    long = len(table.rows) > _LONGEST
    widest = [
        max((len(text) for text in (column.name, *(row[i][0] for row in table.rows))), default=0)
        for i, column in enumerate(table.columns)
    ]
    broken = [
        not column.numeric and width > _WIDE for column, width in zip(table.columns, widest, strict=True)
    ]
    share = 0.5 / max(1, sum(broken))
    layout = "".join(
        "r" if column.numeric else f"p{{{share:.3f}\\linewidth}}" if breaks else "l"
        for column, breaks in zip(table.columns, broken, strict=True)
    )
    head = " & ".join(f"\\shortstack{{{_stacked(column.name)}}}" for column in table.columns) + r" \\"
    body = [
        " & ".join(
            escape_latex(text) + (f"\\textsuperscript{{{mark}}}" if mark else "") for text, mark in row
        )
        + r" \\"
        for row in table.rows
    ]
    notes = [f"\\textsuperscript{{{mark}}} {escape_latex(note)}" for mark, note in table.notes]
    caption = f"\\caption{{{escape_latex(table.caption)}}}\\label{{tab:{_label(table.name)}}}"
    below = (
        "\\par\\smallskip\\begin{minipage}{\\linewidth}\\raggedright " + "; ".join(notes) + "\\end{minipage}"
    )
    if long:
        lines = [
            r"\begingroup\scriptsize\setlength{\tabcolsep}{3pt}",
            f"\\begin{{longtable}}{{{layout}}}",
            caption + r"\\",
            r"\toprule", head, r"\midrule", r"\endhead", r"\bottomrule", r"\endfoot",
            *body,
            r"\end{longtable}",
            *([below] if notes else []),
            r"\endgroup",
        ]  # fmt: skip
    else:
        lines = [
            r"\begin{table}[htbp]\centering\scriptsize\setlength{\tabcolsep}{3pt}",
            caption,
            f"\\begin{{tabular}}{{{layout}}}",
            r"\toprule", head, r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            *([below] if notes else []),
            r"\end{table}",
        ]  # fmt: skip
    return _ALONE + "\n".join(lines) + "\n\\ifdefined\\closetable\\closetable\\fi\n"


def _stacked(text: str) -> str:
    """A column's head in lines of about a dozen characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) > 12:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return r"\\".join(escape_latex(line) for line in lines)


def _label(name: str) -> str:
    return re.sub("[^A-Za-z0-9]+", "-", name)


def sizes(heights: pd.Series, widths: pd.Series) -> list[str]:
    """Heights and widths as ``512 x 1024``."""
    return [f"{height} x {width}" for height, width in zip(heights, widths, strict=True)]


def escape_markdown(text: str) -> str:
    """Text that stays in its cell, and means itself: no HTML, no link and no emphasis.

    An underscore inside a word, as keys have them, is none in the first place.
    """
    plain = str(text).replace("\n", " ").replace("<", "&lt;")
    return re.sub(r"[\\`*|]|\](?=[(\[])|(?<!\w)_|_(?!\w)", r"\\\g<0>", plain)


def escape_latex(text: str) -> str:
    """Text that means itself in LaTeX; what its fonts lack is named by its code point."""
    special = {c: f"\\{c}" for c in "&%$#_{}"} | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "\N{MULTIPLICATION SIGN}": r"$\times$",
        EMPTY: "--",
        # Between brackets at the start of a row LaTeX would look for an optional argument.
        "[": "{[}",
        "]": "{]}",
    }
    known = (special.get(c, c) for c in str(text).replace("\n", " "))
    return "".join(c if ord(c[0]) < 0x180 else f"(U+{ord(c[0]):04X})" for c in known)
