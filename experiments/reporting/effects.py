"""The figure of the claims: effects with their intervals."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

LOOKS: dict[str, dict[str, Any]] = {
    "supported": {"color": "#0072B2", "marker": "^", "markersize": 8},
    "contradicted": {"color": "#D55E00", "marker": "v", "markersize": 8},
    "open": {"color": "#767676", "marker": "o", "markersize": 6},
}
"""Of each verdict: a colour of Okabe and Ito's, which the colour-blind can tell apart, and a shape."""

_STYLE: Any = {"font.size": 10, "svg.hashsalt": "reproducible", "svg.fonttype": "none"}


def claim_effects(rows: pd.DataFrame, conditions: str) -> Figure:
    """Effects with intervals, a panel for each paper, the greatest first; a line at zero.

    Args:
        rows: of ``claim_tables.effects``.
        conditions: where the numbers come from.
    """
    papers = dict(list(rows.groupby("paper", sort=False)))
    heights = [len(of_paper) + 0.8 for of_paper in papers.values()]
    size = (11.0, 1.5 + 0.27 * sum(heights) + 0.3 * len(heights))
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            len(papers), 1, figsize=size, sharex=True, squeeze=False, layout="constrained",
            gridspec_kw={"height_ratios": heights},
        )  # fmt: skip
        for ax, (paper, of_paper) in zip(axes[:, 0], papers.items(), strict=True):
            _panel(ax, of_paper.sort_values("difference", kind="stable"))
            ax.set_title(str(paper), loc="left", size=11, weight="bold")
        # One claim of many whose interval is huge would squeeze all others onto the zero line.
        ends = pd.concat([rows["low"], rows["high"], rows["difference"]]).abs()
        limit = 1.08 * min(ends.max(), max(2.5 * ends.median(), 1.1 * rows["difference"].abs().max()))
        axes[-1, 0].set(xlim=(-limit, limit), xlabel="difference, points of the claim's metric (IoU %)")
        handles: list[Any] = [
            Line2D([], [], linestyle="", label=name, **look) for name, look in LOOKS.items()
        ]
        grey: dict[str, Any] = {"color": "#444444"}
        handles += [
            Line2D([], [], linewidth=3.5, label="95 % over seeds", **grey),
            Line2D([], [], linewidth=3.5, alpha=0.35, label="95 % over images", **grey),
            Line2D([], [], linewidth=0.9, label="all three tests", **grey),
            Line2D([], [], linestyle="", marker="|", markersize=11, label="margin, where not zero", **grey),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        figure.suptitle(conditions, size=9)
    return figure


def _panel(ax: Axes, rows: pd.DataFrame) -> None:
    """One paper's effects, the greatest at the top."""
    for place, row in enumerate(rows.to_dict("records")):
        look: dict[str, Any] = LOOKS[row["verdict"]]
        colour = {"color": look["color"]}
        ax.plot([row["low"], row["high"]], [place, place], linewidth=0.9, **colour)
        ax.plot([row["seeds_low"], row["seeds_high"]], [place + 0.14] * 2, linewidth=3.0, **colour)
        ax.plot(
            [row["images_low"], row["images_high"]], [place - 0.14] * 2, linewidth=3.0, alpha=0.35, **colour
        )
        ax.plot(row["difference"], place, linestyle="", markeredgecolor="white", zorder=3, **look)
        if row["margin"]:
            ax.plot(row["margin"], place, marker="|", markersize=13, color="#444444", zorder=2)
    ax.axvline(0, color="black", linewidth=0.9, zorder=1)
    ax.set_yticks(range(len(rows)), rows["says"], size=9)
    ax.set_ylim(-0.7, len(rows) - 0.3)
    ax.grid(axis="x", alpha=0.3)
    ax.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
