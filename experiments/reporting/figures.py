"""The report's figures, each from tables and files that the other stages wrote."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.datasets.base import LabelClass, Pixels

PAPER_COLOURS = {"spgnet": "#0072B2", "gun": "#D55E00", "semask": "#009E73", "alignseg": "#CC79A7"}
"""Okabe and Ito's colours, which the colour-blind can tell apart."""

UNGUIDED = " (bilinear)"
"""Ends the name of a curve of a network whose learned upsampling is replaced by bilinear."""

_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "reproducible",  # ids in the file would differ between runs
    "svg.fonttype": "none",
}


def save(figure: Figure, folder: Path, name: str) -> None:
    """Writes ``<name>.svg`` and ``<name>.png``, the same bytes for the same figure."""
    figure.savefig(folder / f"{name}.svg", bbox_inches="tight", metadata={"Date": None})
    figure.savefig(folder / f"{name}.png", bbox_inches="tight", dpi=150, metadata={"Software": None})
    plt.close(figure)


def score_against_cost(summary: pd.DataFrame, cost: str, label: str, conditions: str) -> Figure:
    """mIoU of every experiment against a cost on a logarithmic axis, a panel a paper.

    The panels have the same axes, and each shows the other papers' experiments in grey.

    Args:
        summary: rows of ``results/summary.csv`` with a column ``cost``.
        cost: name of the column on the horizontal axis.
        label: of that axis.
        conditions: where the scores come from.
    """
    panels = list(summary.groupby("paper", sort=False))
    across = min(2, len(panels))
    down = math.ceil(len(panels) / across)
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            down, across, figsize=(6.8 * across, 4.3 * down), squeeze=False, sharex=True, sharey=True
        )
        for ax, (paper, rows) in zip(axes.flat, panels, strict=False):
            ax.scatter(summary[cost], summary["measured_miou"], s=18, color="0.85")
            ax.scatter(rows[cost], rows["measured_miou"], s=32, color=PAPER_COLOURS[str(paper)], zorder=3)
            ax.set(xscale="log", title=paper)
        for ax, (_, rows) in zip(axes.flat, panels, strict=False):
            _name_points(ax, rows[cost], rows["measured_miou"], rows["experiment"])
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        figure.supxlabel(label, size=10)
        figure.supylabel("mIoU %", size=10)
        figure.suptitle(conditions, size=9)
        figure.tight_layout()
    return figure


def training_curves(histories: dict[str, dict[int, pd.DataFrame]], papers: Mapping[str, str]) -> Figure:
    """Loss against step, one panel a paper, one line an experiment (mean over its seeds).

    Args:
        histories: by experiment and seed, ``history.csv``.
        papers: the paper of each experiment.
    """
    panels = list(dict.fromkeys(papers[key] for key in histories))
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(4.2 * len(panels), 6.5), squeeze=False, sharey=True
        )
        for ax, paper in zip(axes[0], panels, strict=True):
            shown = [key for key in histories if papers[key] == paper]
            for key, look in zip(shown, _looks(len(shown)), strict=True):
                loss = pd.concat(histories[key]).groupby("step")["loss"].mean()
                ax.plot(loss.index, loss, label=key, **look)
            ax.set(title=paper, xlabel="step", yscale="log")
            # Below the axes: a paper has up to 25 experiments, which would cover the curves.
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize=6)
        axes[0][0].set_ylabel("training loss (all terms)")
        figure.tight_layout()
    return figure


def class_iou(scores: pd.DataFrame, conditions: str) -> Figure:
    """Heat map of the IoU in per cent of every class (columns) and experiment (rows)."""
    with plt.rc_context({**_STYLE, "axes.grid": False}):
        height = 1.5 + 0.32 * len(scores)
        figure, axes = plt.subplots(figsize=(max(7, 0.55 * len(scores.columns)), height))
        sns.heatmap(
            scores, ax=axes, annot=len(scores.columns) <= 30, fmt=".0f", cmap="viridis", vmin=0, vmax=100,
            annot_kws={"size": 7}, cbar_kws={"label": "IoU %"},
        )  # fmt: skip
        axes.set_title(conditions, size=9)
        axes.set(xlabel="", ylabel="")
    return figure


def boundary_iou(bands: pd.DataFrame, papers: Mapping[str, str]) -> Figure:
    """mIoU inside the band around label boundaries against the band's width, a panel a paper.

    Args:
        bands: mIoU in per cent, experiments by width in pixels; a name that ends in ``UNGUIDED`` is
            drawn dashed, in the colour of the experiment that it belongs to.
        papers: the paper of each experiment.
    """
    panels = list(dict.fromkeys(papers[str(key).removesuffix(UNGUIDED)] for key in bands.index))
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(4.2 * len(panels), 6.5), squeeze=False, sharey=True
        )
        for ax, paper in zip(axes[0], panels, strict=True):
            shown = [key for key in map(str, bands.index) if papers[key.removesuffix(UNGUIDED)] == paper]
            guided = list(dict.fromkeys(key.removesuffix(UNGUIDED) for key in shown))
            looks = dict(zip(guided, _looks(len(guided)), strict=True))
            for key in shown:
                look = looks[key.removesuffix(UNGUIDED)]
                style = look | {"linestyle": "--"} if key.endswith(UNGUIDED) else look
                ax.plot(bands.columns, bands.loc[key], label=key, **style)
            ax.set(title=paper, xlabel="width of the band, pixels")
            # Below the axes: a paper has up to 25 experiments, which would cover the curves.
            ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize=6)
        axes[0][0].set_ylabel("mIoU % inside the band")
        figure.tight_layout()
    return figure


def gallery(rows: Sequence[Mapping[str, Pixels]], classes: Sequence[LabelClass]) -> Figure:
    """Pictures in a grid, a row for each image, and the classes' colours.

    Args:
        rows: RGB pictures by title, as many in each row; a picture is stretched to the size of its
            row's first, and a title is written where it differs from the one above.
        classes: for the legend.
    """
    height, width = next(iter(rows[0].values())).shape[:2]
    across = len(rows[0])
    # Room, in inches, for titles between the rows.
    changing = [title for row, above in itertools.pairwise(rows) for title in row.keys() - above.keys()]
    between = 0.1 + 0.13 * max((1 + title.count("\n") for title in changing), default=0)
    tall = 1.9 * height / width
    with plt.rc_context({**_STYLE, "axes.grid": False}):
        size = (1.9 * across, tall * len(rows) + between * (len(rows) - 1) + 1.1)
        figure, axes = plt.subplots(len(rows), across, squeeze=False, figsize=size)
        above = [""] * across
        for i, row in enumerate(rows):
            for j, (title, picture) in enumerate(row.items()):
                axes[i][j].imshow(picture, interpolation="nearest", extent=(0, width, height, 0))
                axes[i][j].axis("off")
                if title != above[j]:
                    axes[i][j].set_title(title, size=7, pad=2)
            above = list(row)
        handles = [
            plt.Rectangle((0, 0), 1, 1, color=np.array(c.colour) / 255, label=c.name) for c in classes[:30]
        ]
        per_line = max(3, min(10, 2 * across))
        figure.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.5 / size[1]), ncols=per_line,
            fontsize=7, frameon=False,
        )  # fmt: skip
        figure.subplots_adjust(
            left=0.01, right=0.99, top=1 - 0.5 / size[1], bottom=0.6 / size[1], wspace=0.03,
            hspace=between / tall,
        )  # fmt: skip
    return figure


def cost_comparison(summary: pd.DataFrame, conditions: str) -> Figure:
    """mIoU against parameters and against multiply-accumulates, side by side: who wins at equal cost.

    Args:
        summary: rows of ``results/summary.csv``, of one paper.
        conditions: where the scores come from.
    """
    costs = {"measured_parameters_m": "parameters M", "measured_macs_g": "MACs G"}
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True)
        for ax, (column, label) in zip(axes, costs.items(), strict=True):
            ax.scatter(summary[column], summary["measured_miou"], s=40, color=PAPER_COLOURS["spgnet"])
            ax.set(xlabel=label)
        axes[0].set_ylabel("mIoU %")
        figure.suptitle(conditions, size=9)
        for ax, column in zip(axes, costs, strict=True):
            _name_points(ax, summary[column], summary["measured_miou"], summary["experiment"])
        figure.tight_layout()
    return figure


def _looks(count: int) -> list[dict[str, Any]]:
    """Keywords of as many lines that can be told apart: ten colours, and a new marker for each ten."""
    colours = sns.color_palette("tab10")
    return [
        {
            "color": colours[i % 10],
            "marker": "osD^vPX*"[i // 10 % 8],
            "markersize": 3.5,
            "linewidth": 1.2,
        }
        for i in range(count)
    ]


def _name_points(axes: Axes, x: pd.Series, y: pd.Series, names: pd.Series) -> None:
    """Writes the points' names in a column on the right, from each a line to its point.

    Names beside their points would cover each other: ablations score and cost nearly the same. Call
    it when the axes have their limits, their scales, and their size.
    """
    size = 6.5
    inches = axes.get_position().height * axes.figure.get_figure(root=True).get_size_inches()[1]
    gap = min(1.45 * size / 72 / inches, 1 / max(1, len(names)))
    order = np.argsort(y.to_numpy(), kind="stable")
    points = axes.transAxes.inverted().transform(axes.transData.transform(np.column_stack([x, y])))
    # Lines of text a gap apart: the mean of pushing all up from the lowest and all down from the
    # highest, which leaves each near its point, then back inside the axes.
    step = gap * np.arange(len(order))
    heights = points[order, 1]
    up = np.maximum.accumulate(heights - step) + step
    down = (np.minimum.accumulate((heights - step)[::-1])[::-1]) + step
    places = np.minimum((up + down) / 2, 1 + step - step[-1])
    places = np.maximum(places, step)
    for i, place in zip(order, places, strict=True):
        axes.annotate(
            names.iloc[i], (x.iloc[i], y.iloc[i]), xytext=(1.03, place), textcoords="axes fraction",
            fontsize=size, va="center", annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "linewidth": 0.35, "color": "0.55", "relpos": (0, 0.5), "shrinkA": 0,
            },
        )  # fmt: skip
