"""Where names stand in a figure, so that they cover neither each other nor what they name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter


def plain_numbers(ax: Axes) -> None:
    """Numbers on logarithmic axes as text: matplotlib's own are formulas, and the style has none."""
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            narrow = high / low < 30
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(
                FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
                if narrow
                else NullFormatter()
            )


_SIDES = (
    (9, 0, "left"), (-9, 0, "right"), (9, 12, "left"), (9, -12, "left"),
    (-9, 12, "right"), (-9, -12, "right"), (0, 24, "center"), (0, -24, "center"),
)  # fmt: skip
"""Where a point's name may stand, in points from it, in the order of preference."""


def name_points(ax: Axes, points: pd.DataFrame, everything: pd.DataFrame) -> None:
    """Writes points' names beside them, where neither names nor points stand; one without room has none."""
    ax.get_figure(root=True).draw_without_rendering()  # type: ignore[union-attr]
    taken: list[Any] = []
    dots = ax.transData.transform(everything[["cost", "score"]].to_numpy())
    for (x, y), name in zip(points[["cost", "score"]].itertuples(index=False), points["name"], strict=True):
        for right, up, side in _SIDES:
            text = ax.annotate(
                name, (x, y), xytext=(right, up), textcoords="offset points", ha=side, va="center",
                fontsize=9, bbox={"facecolor": "#ffffff", "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip
            box = text.get_window_extent()
            inside = ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 + 4
            covers = any(box.overlaps(other) for other in taken) or any(
                box.x0 - 3 < left < box.x1 + 3 and box.y0 - 3 < low < box.y1 + 3 for left, low in dots
            )
            if inside and not covers:
                taken.append(box)
                break
            text.remove()


def name_ends(ax: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Writes lines' names at their ends, moved apart where they would cover each other."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    point = figure.dpi / 72
    placed = -math.inf
    for x, y, name, colour in sorted(ends, key=lambda end: end[1]):
        height = float(ax.transData.transform((x, y))[1])
        placed = max(height, placed + 14 * point)
        ax.annotate(
            name, (x, y), xytext=(8, (placed - height) / point), textcoords="offset points", va="center",
            color=colour, annotation_clip=False,
        )  # fmt: skip
