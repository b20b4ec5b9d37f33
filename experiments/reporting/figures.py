"""The report's figures, each from tables that the other stages wrote, in one style (``report.mplstyle``)."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.reporting.labels import name_ends, name_points, plain_numbers
from experiments.running import storage
from experiments.running.work import Context

STYLE = Path(__file__).with_name("report.mplstyle")

BLUE, ORANGE, GREEN, PINK, GREY, INK = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#767676", "#1b1b1b"
"""Of Okabe and Ito's colours, which the colour-blind can tell apart, and two neutral ones."""

PAPER_COLOURS = {"spgnet": BLUE, "gun": ORANGE, "semask": GREEN, "alignseg": PINK}

VERDICTS: dict[str, tuple[str, str]] = {
    "supported": (BLUE, "^"), "contradicted": (ORANGE, "v"), "open": (GREY, "o"), "no claim": (GREY, "s"),
}  # fmt: skip
"""Colour and marker of each verdict; the last of a difference that no measured claim is about."""

_WIDTH = 8.0
"""Inches. The page shows a figure at its own size or smaller, so that its text has the page's size."""


def draw(
    context: Context,  # noqa: ARG001 (drawing takes a second and says nothing)
    function: str,
    arguments: Sequence[Any],
    folder: Path,
    name: str,
) -> str:
    """Draws one figure and writes its files, the same bytes for the same arguments.

    Args:
        context: of the job.
        function: of this module.
        arguments: of the function.
        folder: where to.
        name: of the files, without their ending.

    Returns:
        What to say when it is done.
    """
    with plt.style.context(STYLE), plt.rc_context({"svg.hashsalt": name}):  # ids differ between figures
        figure: Figure = globals()[function](*arguments)
        hovers = _name_hovers(figure)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
        storage.write_text(folder / f"{name}.svg", _with_titles(drawn.getvalue(), hovers))
        picture = io.BytesIO()
        figure.savefig(picture, format="png", dpi=100, metadata={"Software": None})
        storage.write_bytes(folder / f"{name}.png", picture.getbuffer())
    plt.close(figure)
    return "drawn"


def intervals(
    groups: Sequence[tuple[str, str, pd.DataFrame]], label: str, zero: bool, notes: Sequence[str] = ()
) -> Figure:
    """Values with 95 % intervals, a row each, in panels one above the other.

    Args:
        groups: title, colour or nothing (then of the verdicts), and rows with ``name``, ``value``, ``low``,
            ``high`` (NaN without an interval) and ``verdict``; the first row at the top.
        label: of the axis.
        zero: whether the values are differences, whose zero is a line.
        notes: what markers and lines mean, beyond the verdicts.
    """
    names = [
        [textwrap.fill(name, 46, max_lines=2, placeholder="…") for name in rows["name"]]
        for *_, rows in groups
    ]
    line = 0.36 if any("\n" in name for of_group in names for name in of_group) else 0.27
    heights = [len(rows) + 0.6 for *_, rows in groups]
    height = line * sum(heights) + 0.36 * len(groups) + 0.95
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(_WIDTH, height), sharex=True, squeeze=False, layout="constrained",
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    used: dict[str, tuple[str, str]] = {}
    for ax, labels, (title, colour, rows) in zip(axes[:, 0], names, groups, strict=True):
        for place, row in enumerate(rows.to_dict("records")):
            verdict = _known(row["verdict"])
            own, marker = colour or VERDICTS[verdict][0], VERDICTS[verdict][1]
            if not colour:
                used[verdict] = VERDICTS[verdict]
            if math.isfinite(row["low"]):
                ax.plot([row["low"], row["high"]], [place, place], color=own, linewidth=2.4, alpha=0.55)
            point = ax.plot(row["value"], place, marker=marker, color=own, linestyle="", markersize=7)[0]
            spread = f" [{row['low']:.2f}, {row['high']:.2f}]" if math.isfinite(row["low"]) else ""
            _hover(point, f"{row['name']}: {row['value']:.2f}{spread} {row['verdict']}".strip())
        if zero:
            ax.axvline(0, color=INK, linewidth=1.0, zorder=1)
        ax.set_yticks(range(len(rows)), labels, fontsize=9.5)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.grid(visible=False, axis="y")
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
        if title:
            ax.set_title(" ")  # keeps the room; the title itself starts at the figure's edge
    axes[-1, 0].set_xlabel(label)
    _limit(axes[-1, 0], pd.concat([rows for *_, rows in groups]), zero)
    for ax, (_, colour, rows) in zip(axes[:, 0], groups, strict=True):
        _mark_cut(ax, rows, colour)
    handles = [
        Line2D([], [], linestyle="", marker=marker, color=colour, label=name)
        for name, (colour, marker) in used.items()
    ]
    handles += [Line2D([], [], color=GREY, linewidth=2.4, alpha=0.55, label=note) for note in notes]
    if handles:
        figure.legend(handles=handles, loc="outside lower left", ncols=4)
    figure.draw_without_rendering()  # lays it out
    figure.set_layout_engine("none")
    for ax, (title, *_) in zip(axes[:, 0], groups, strict=True):
        figure.text(0.008, ax.get_position().y1 + 0.07 / height, title, fontsize=10.5, fontweight="bold")
    return figure


def _limit(ax: Axes, rows: pd.DataFrame, zero: bool) -> None:
    """Keeps one huge interval from squeezing all others onto a line; it then runs out of the picture."""
    ends = pd.concat([rows["low"], rows["high"]]).dropna()
    if not zero or ends.empty:
        return
    most = max(rows["value"].abs().max() * 1.1, 2.5 * ends.abs().median())
    low, high = max(ends.min(), -most), min(ends.max(), most)
    room = 0.05 * (high - low)
    ax.set_xlim(min(low, 0) - room, max(high, 0) + room)


def _known(verdict: str) -> str:
    """A verdict that has a look."""
    return verdict if verdict in VERDICTS else "no claim"


def _mark_cut(ax: Axes, rows: pd.DataFrame, colour: str) -> None:
    """An arrow at the picture's edge for every interval that goes on beyond it."""
    left, right = ax.get_xlim()
    for place, row in enumerate(rows.to_dict("records")):
        own = colour or VERDICTS[_known(row["verdict"])][0]
        for end, marker, is_cut in (
            (left, "<", row["low"] < left), (right, ">", row["high"] > right),
        ):  # fmt: skip
            if is_cut:
                ax.plot(end, place, marker=marker, color=own, markersize=7, clip_on=False)


def score_against_cost(points: pd.DataFrame, label: str, front: bool) -> Figure:
    """mIoU against a cost on a logarithmic axis.

    Args:
        points: ``name``, ``score``, ``cost``, ``group`` (a legend's entry), ``paper`` and ``main`` (whether
            it is named); score and cost of a row are of the same network.
        label: of the cost's axis.
        front: whether less cost is better, and so the Pareto front at the left; else at the right.
    """
    figure, ax = plt.subplots(figsize=(_WIDTH, 4.6), layout="constrained")
    handles = []
    markers = dict(zip(dict.fromkeys(points["group"]), "osD^vP*X", strict=False))
    for (group, paper), rows in points.groupby(["group", "paper"], sort=False):
        colour = PAPER_COLOURS.get(str(paper), GREY)
        look: dict[str, Any] = {"linestyle": "", "marker": markers.get(group, "o"), "color": colour}
        look["markerfacecolor"] = "none" if str(group).startswith("published") else colour
        handles.append(Line2D([], [], label=f"{paper}: {group}", **look))
        for row in rows.to_dict("records"):
            size = 8.5 if row["main"] else 6
            point = ax.plot(row["cost"], row["score"], markersize=size, zorder=3, **look)[0]
            _hover(point, f"{row['name']} ({group}): {row['score']:.2f} at {row['cost']:.4g}")
        corners = _front(rows, front)
        if len(corners) > 1:
            # One of each table or source: across data sets there is no front.
            where: Any = "post" if front else "pre"
            ax.step(
                *zip(*corners, strict=True), where=where, color=colour, linewidth=1.0, alpha=0.6, zorder=1
            )
    handles.append(Line2D([], [], color=GREY, linewidth=1.0, label="Pareto front of each"))
    ax.set(xscale="log", xlabel=label, ylabel="mIoU %")
    plain_numbers(ax)
    ax.margins(x=0.12, y=0.12)
    figure.legend(handles=handles, loc="outside lower left", ncols=2)
    name_points(ax, points[points["main"]], points)
    return figure


def _front(rows: pd.DataFrame, cheaper: bool) -> list[tuple[float, float]]:
    """Cost and score of the points that none beats in both, by rising cost.

    Args:
        rows: with ``cost`` and ``score``.
        cheaper: whether less cost is better; else more of it is.
    """
    best, found = -math.inf, []
    ordered = rows.sort_values(["cost", "score"], ascending=[cheaper, False], kind="stable")
    for cost, score in zip(ordered["cost"], ordered["score"], strict=True):
        if score > best:
            best = score
            found.append((float(cost), float(score)))
    return found if cheaper else found[::-1]


def curves(lines: Sequence[Mapping[str, Any]], label: str, height_label: str, log: bool = False) -> Figure:
    """At most eight lines, each named at its end, with a band from its lowest to its highest if it has one.

    Args:
        lines: ``name``, ``x``, ``y``, ``low`` and ``high`` (empty without a band).
        label: of the horizontal axis.
        height_label: of the other one.
        log: whether both axes are logarithmic.
    """
    colours = iter((BLUE, ORANGE, GREEN, PINK, "#56b4e9", "#e69f00", INK, GREY))
    dashes = iter(("-", "--", "-.", ":", "-", "--", "-.", ":"))
    figure, ax = plt.subplots(figsize=(_WIDTH, 4.4), layout="constrained")
    ends = []
    for line in lines[:8]:
        look: dict[str, Any] = {"linestyle": next(dashes), "marker": "o", "markersize": 4}
        colour = next(colours)
        drawn = ax.plot(line["x"], line["y"], color=colour, **look)[0]
        _hover(drawn, line["name"])
        if line["low"]:
            ax.fill_between(line["x"], line["low"], line["high"], color=colour, alpha=0.15, linewidth=0)
        ends.append((line["x"][-1], line["y"][-1], line["name"], colour))
    if log:
        ax.set(xscale="log", yscale="log")
        plain_numbers(ax)
    ax.set(xlabel=label, ylabel=height_label)
    name_ends(ax, ends)
    return figure


def losses(histories: Mapping[str, Sequence[Path]]) -> Figure:
    """Training loss against step, a line for each experiment: the mean over its seeds.

    Args:
        histories: ``history.csv`` of every seed, by experiment.
    """
    lines = []
    for key, paths in histories.items():
        loss = pd.concat([pd.read_csv(path) for path in paths]).groupby("step")["loss"].mean()
        lines.append({"name": key, "x": loss.index.tolist(), "y": loss.tolist(), "low": [], "high": []})
    return curves(lines, "step", "training loss, all terms")


def paired(names: Sequence[str], values: Mapping[str, Sequence[float]]) -> Figure:
    """Two values for each name, joined by a line, so that their difference is what is seen.

    Args:
        names: from the top.
        values: per cent by series, in the order of the names.
    """
    figure, ax = plt.subplots(figsize=(_WIDTH, 0.27 * len(names) + 1.1), layout="constrained")
    places = list(range(len(names)))
    ends = list(values.values())
    ax.hlines(places, list(ends[0]), list(ends[1]), color=GREY, linewidth=1.2, zorder=1)
    for (series, numbers), (colour, marker) in zip(values.items(), ((BLUE, "o"), (ORANGE, "D")), strict=True):
        ax.plot(numbers, places, linestyle="", marker=marker, color=colour, markersize=6.5, label=series)
    ax.set_yticks(places, names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set(xlabel="IoU %")
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    figure.legend(loc="outside lower left", ncols=2)
    return figure


def shares(bars: Sequence[tuple[str, Mapping[str, float]]], label: str) -> Figure:
    """Where a total goes: a bar for each network, its parts in order, each named inside or above it.

    Args:
        bars: name of a network, and its parts in per cent, the largest first.
        label: of the axis.
    """
    figure, ax = plt.subplots(figsize=(_WIDTH, 0.85 * len(bars) + 0.8), layout="constrained")
    for place, (_, parts) in enumerate(bars):
        left = 0.0
        for number, (name, share) in enumerate(parts.items()):
            colour = (
                GREY if name == "other" else (BLUE, ORANGE, GREEN, PINK, "#56b4e9", "#e69f00")[number % 6]
            )
            bar = ax.barh(place, share, left=left, color=colour, height=0.5, edgecolor="white", linewidth=1)[
                0
            ]
            _hover(bar, f"{name}: {share:.1f} %")
            if share >= 7:
                fits = f"{name} {share:.0f} %"
                text = fits if len(fits) * 0.95 < share else f"{share:.0f} %"
                ax.text(left + share / 2, place - 0.36, text, ha="center", va="bottom", fontsize=9)
            left += share
    ax.set_yticks(range(len(bars)), [name for name, _ in bars])
    ax.set_ylim(len(bars) - 0.6, -0.75)
    ax.set(xlim=(0, 100), xlabel=label)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", length=0)
    return figure


def roofline(rows: pd.DataFrame, compute: Mapping[str, float], copy: float) -> Figure:
    """What networks reach, below the two limits of the device.

    Args:
        rows: ``paper``, ``experiment``, ``intensity`` (multiply-accumulates for each byte), ``macs_a_second``
            and ``main``: whether it is named.
        compute: multiply-accumulates a second of a matrix product, by precision.
        copy: bytes a second of a copy.
    """
    figure, ax = plt.subplots(figsize=(_WIDTH, 4.6), layout="constrained")
    for paper, points in rows.groupby("paper", sort=False):
        colour = PAPER_COLOURS.get(str(paper), GREY)
        for row in points.to_dict("records"):
            point = ax.plot(
                row["intensity"], row["macs_a_second"] / 1e9, linestyle="", marker="o", color=colour, zorder=3
            )[0]
            _hover(point, f"{row['experiment']}: {row['macs_a_second'] / 1e9:.4g} G a second")
        ax.plot([], [], linestyle="", marker="o", color=colour, label=str(paper))
    ridges = [limit / copy for limit in compute.values()]
    low = 0.5 * min(rows["intensity"].min(), *ridges)
    high = 2.0 * max(rows["intensity"].max(), *ridges)
    for (precision, limit), ridge in zip(compute.items(), ridges, strict=True):
        ax.plot([low, ridge, high], [low * copy / 1e9, limit / 1e9, limit / 1e9], color=INK, linewidth=1.2)
        ax.annotate(precision, (high, limit / 1e9), xytext=(-2, 3), textcoords="offset points", ha="right")
    ax.set(xscale="log", yscale="log", xlim=(low, high), xlabel="multiply-accumulates for each byte")
    ax.set_ylabel("thousand million MACs a second")
    plain_numbers(ax)
    figure.legend(loc="outside lower left", ncols=4)
    everything = rows.assign(
        cost=rows["intensity"], score=rows["macs_a_second"] / 1e9, name=rows["experiment"]
    )
    name_points(ax, everything[everything["main"]], everything)
    return figure


def _hover(artist: Any, text: str) -> None:
    """Says what appears when the artist is pointed at in the page."""
    artist.hover = text


def _name_hovers(figure: Figure) -> dict[str, str]:
    """Gives every artist with a hover text an id; the texts by id."""
    found = {}
    for number, artist in enumerate(figure.findobj(lambda artist: hasattr(artist, "hover"))):
        artist.set_gid(f"hover-{number}")
        found[f"hover-{number}"] = str(getattr(artist, "hover"))  # noqa: B009 (an attribute of ours)
    return found


def _with_titles(svg: str, hovers: Mapping[str, str]) -> str:
    """An SVG with a title, which browsers show on hovering, in every group that has a text."""

    def opened(group: re.Match[str]) -> str:
        return f"<g><title>{escape(hovers[group[1]])}</title>"

    return re.sub(r'<g id="(hover-\d+)">', opened, svg)
