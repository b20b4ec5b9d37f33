"""The report's figures, each from tables and files that the other stages wrote."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter
from safetensors.numpy import load_file

from experiments.datasets.base import LabelClass, Pixels, read_image, read_labels
from experiments.reporting import maps
from experiments.reporting.effects import claim_effects  # noqa: F401 (drawn by its name)
from experiments.reporting.sections import UNGUIDED
from experiments.running import storage
from experiments.running.work import Context

PAPER_COLOURS = {"spgnet": "#0072B2", "gun": "#D55E00", "semask": "#009E73", "alignseg": "#CC79A7"}
"""Okabe and Ito's colours, which the colour-blind can tell apart."""

_STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "svg.hashsalt": "reproducible",  # ids in the file would differ between runs
    "svg.fonttype": "none",
    "text.parse_math": False,  # a name with two dollar signs is no formula
}


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
    figure: Figure = globals()[function](*arguments)
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) if axis.get_scale() == "log"):
        # Numbers as text: matplotlib's own are formulas, and the style has none.
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))
    with plt.rc_context(_STYLE):  # which the names inside an SVG depend on
        for ending, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            picture = io.BytesIO()
            figure.savefig(picture, format=ending, dpi=110, metadata=metadata)
            storage.write_bytes(folder / f"{name}.{ending}", picture.getbuffer())
    plt.close(figure)
    return "drawn"


def score_against_cost(rows: pd.DataFrame, costs: Mapping[str, str], conditions: str) -> Figure:
    """mIoU of a paper's experiments against costs on logarithmic axes, side by side.

    Args:
        rows: of the summary, of one paper.
        costs: label of the axis by column of ``rows``.
        conditions: where the scores come from.
    """
    colour = paper_colour(str(rows["paper"].iloc[0]))
    with plt.rc_context(_STYLE):
        size = (6.0 * len(costs), max(4.3, 1.5 + 0.13 * len(rows)))
        figure, axes = plt.subplots(1, len(costs), figsize=size, squeeze=False, sharey=True)
        room = 1.9 / size[0]  # beside each panel, for the names of its points
        figure.subplots_adjust(
            left=0.7 / size[0], right=1 - room, bottom=0.6 / size[1], top=1 - 0.4 / size[1],
            wspace=1.9 * len(costs) / (size[0] - 0.7 - 1.9 * len(costs)),
        )  # fmt: skip
        for ax, (column, label) in zip(axes[0], costs.items(), strict=True):
            ax.scatter(rows[column], rows["measured_miou"], s=32, color=colour)
            ax.set(xscale="log", xlabel=label)
        axes[0][0].set_ylabel("mIoU %")
        figure.suptitle(conditions, size=9)
        for ax, column in zip(axes[0], costs, strict=True):
            _name_points(ax, rows[column], rows["measured_miou"], rows["experiment"])
    return figure


def roofline(rows: pd.DataFrame, compute: Mapping[str, float], copy: float) -> Figure:
    """What networks reach, below the two limits of the device.

    Args:
        rows: ``paper``, ``experiment``, ``intensity`` (multiply-accumulates for each byte) and
            ``macs_a_second``.
        compute: multiply-accumulates a second of a matrix product, by precision.
        copy: bytes a second of a copy.
    """
    with plt.rc_context(_STYLE):
        figure, ax = plt.subplots(figsize=(10.0, max(5.0, 1.5 + 0.13 * len(rows))))
        figure.subplots_adjust(left=0.1, right=0.76, top=0.96, bottom=0.1)
        for paper, points in rows.groupby("paper", sort=False):
            colour = paper_colour(str(paper))
            ax.scatter(
                points["intensity"], points["macs_a_second"], s=26, color=colour, label=paper, zorder=3
            )
        ridges = [limit / copy for limit in compute.values()]
        low = 0.5 * min(rows["intensity"].min(), *ridges)
        high = 2.0 * max(rows["intensity"].max(), *ridges)
        for (precision, limit), ridge in zip(compute.items(), ridges, strict=True):
            ax.plot([low, ridge, high], [low * copy, limit, limit], color="0.25", linewidth=1.2)
            label = f"{precision}: {limit / 1e9:.3g} G a second"
            ax.annotate(
                label, (high, limit), xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=8
            )
        middle = (low * min(ridges)) ** 0.5
        copied = f"copy: {copy / 1e9:.3g} GB a second"
        ax.annotate(copied, (middle, middle * copy), xytext=(6, -10), textcoords="offset points", fontsize=8)
        ax.set(
            xscale="log", yscale="log", xlim=(low, high), xlabel="multiply-accumulates for each byte",
            ylabel="multiply-accumulates a second",
        )  # fmt: skip
        ax.legend(frameon=False, fontsize=8, loc="lower left")
        _name_points(ax, rows["intensity"], rows["macs_a_second"], rows["experiment"])
    return figure


def macs_by_size(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Multiply-accumulates against pixels, a line for each network.

    Args:
        counts: by network, then by size such as ``512x1024``.
    """
    with plt.rc_context(_STYLE):
        figure, ax = plt.subplots(figsize=(8.0, 6.0))
        for (key, by_size), look in zip(counts.items(), line_styles(len(counts)), strict=True):
            points = sorted((math.prod(map(int, size.split("x"))), macs) for size, macs in by_size.items())
            pixels, macs = ([point[i] for point in points] for i in (0, 1))
            ax.plot([p / 1e6 for p in pixels], [m / 1e9 for m in macs], label=key, **look)
            linear = [macs[0] * p / pixels[0] / 1e9 for p in pixels]
            ax.plot([p / 1e6 for p in pixels], linear, "--", color=look["color"], linewidth=0.8)
        ax.set(xscale="log", yscale="log", xlabel="megapixels of the input", ylabel="MACs G")
        _legend_below(figure, ax)
    return figure


def training_curves(histories: Mapping[str, Sequence[Path]]) -> Figure:
    """Loss against step, one line an experiment (mean over its seeds).

    Args:
        histories: ``history.csv`` of every seed, by experiment.
    """
    with plt.rc_context(_STYLE):
        figure, ax = plt.subplots(figsize=(8.0, 6.0))
        for (key, paths), look in zip(histories.items(), line_styles(len(histories)), strict=True):
            loss = pd.concat([pd.read_csv(path) for path in paths]).groupby("step")["loss"].mean()
            ax.plot(loss.index, loss, label=key, **look)
        ax.set(xlabel="step", yscale="log", ylabel="training loss (all terms)")
        _legend_below(figure, ax)
    return figure


def class_iou(scores: pd.DataFrame, conditions: str) -> Figure:
    """Heat map of the IoU in per cent of every class (columns) and experiment (rows)."""
    with plt.rc_context({**_STYLE, "axes.grid": False}):
        size = (max(7, 0.55 * len(scores.columns) + 3), 1.5 + 0.32 * len(scores))
        figure, axes = plt.subplots(figsize=size, layout="constrained")
        picture = axes.imshow(scores, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        figure.colorbar(picture, label="IoU %")
        axes.set_xticks(range(len(scores.columns)), scores.columns, rotation=90, size=8)
        axes.set_yticks(range(len(scores)), scores.index, size=8)
        if len(scores.columns) <= 30:
            for (row, column), value in np.ndenumerate(scores.to_numpy()):
                if np.isfinite(value):
                    colour = "white" if value < 60 else "black"
                    axes.text(column, row, f"{value:.0f}", size=7, ha="center", va="center", color=colour)
        axes.set_title(conditions, size=9)
    return figure


def boundary_iou(bands: Mapping[str, Mapping[str, float | None]]) -> Figure:
    """mIoU inside the band around label boundaries against the band's width.

    Args:
        bands: share by width in pixels, by experiment; a name that ends in ``UNGUIDED`` is drawn
            dashed, in the colour of the experiment that it belongs to.
    """
    guided = list(dict.fromkeys(key.removesuffix(UNGUIDED) for key in bands))
    looks = dict(zip(guided, line_styles(len(guided)), strict=True))
    with plt.rc_context(_STYLE):
        figure, ax = plt.subplots(figsize=(8.0, 6.0))
        for key, by_width in bands.items():
            look = looks[key.removesuffix(UNGUIDED)]
            style = look | {"linestyle": "--"} if key.endswith(UNGUIDED) else look
            known = {int(width): 100 * value for width, value in by_width.items() if value is not None}
            ax.plot(list(known), list(known.values()), label=key, **style)
        ax.set(xlabel="width of the band, pixels", ylabel="mIoU % inside the band")
        _legend_below(figure, ax)
    return figure


def predictions(kept: Sequence[Mapping[str, Path]], classes: Sequence[LabelClass]) -> Figure:
    """Image, labels and predictions, a row for each image.

    Args:
        kept: files of each image by title: ``image`` and label maps.
        classes: of the labels.
    """
    rows = [
        {
            title: read_image(path) if title == "image" else maps.colourise(read_labels(path), classes)
            for title, path in row.items()
        }
        for row in kept
    ]
    return gallery(rows, classes)


def model_maps(kept: Sequence[Mapping[str, Path]], classes: Sequence[LabelClass]) -> Figure:
    """Image, labels, prediction and what the model computed on the way, a row for each image.

    Args:
        kept: files of each image: ``image``, ``labels``, ``prediction`` and ``maps``.
        classes: of the labels.
    """
    rows: list[dict[str, Pixels]] = []
    for row in kept:
        labels = read_labels(row["labels"])
        rows.append(
            {
                "image": read_image(row["image"]),
                "labels": maps.colourise(labels, classes),
                "prediction": maps.colourise(read_labels(row["prediction"]), classes),
                **maps.pictures(load_file(row["maps"]), labels, classes),
            }
        )
    return gallery(rows, classes)


def gallery(rows: Sequence[Mapping[str, Pixels]], classes: Sequence[LabelClass]) -> Figure:
    """Pictures in a grid, a row for each image, and the classes' colours.

    Args:
        rows: RGB pictures by title, as many in each row; a picture is stretched to the size of its
            row's first, and a title is written where it differs from the one above.
        classes: for the legend.
    """
    height, width = next(iter(rows[0].values())).shape[:2]
    across, gap = len(rows[0]), max(2, width // 24)
    # One picture for all: axes for each of them would take seconds to draw.
    titles = [room_for_titles(row, above) for row, above in zip(rows, [{}, *rows], strict=False)]
    inches = 1.9 / width  # of a pixel
    tops = np.cumsum([round(lines * 0.13 / inches) + gap for lines in titles]) + height * np.arange(len(rows))
    mosaic = np.full((tops[-1] + height, across * (width + gap) - gap, 3), 255, np.uint8)
    per_line = max(3, min(10, 2 * across))
    legend = 0.35 + 0.17 * -(-min(len(classes), 30) // per_line)
    size = (mosaic.shape[1] * inches + 0.2, mosaic.shape[0] * inches + legend + 0.2)
    with plt.rc_context({**_STYLE, "axes.grid": False}):
        figure = plt.figure(figsize=size)
        axes = figure.add_axes(
            (0.1 / size[0], legend / size[1], 1 - 0.2 / size[0], 1 - (legend + 0.2) / size[1])
        )
        axes.axis("off")
        for i, (row, top) in enumerate(zip(rows, tops, strict=True)):
            for j, (title, picture) in enumerate(row.items()):
                left = j * (width + gap)
                mosaic[top : top + height, left : left + width] = stretched(picture, height, width)
                if i == 0 or title not in rows[i - 1]:
                    axes.text(left + width / 2, top - gap / 3, title, size=7, ha="center", va="bottom")
        axes.imshow(mosaic, interpolation="none")
        handles = [
            plt.Rectangle((0, 0), 1, 1, color=np.array(c.colour) / 255, label=c.name) for c in classes[:30]
        ]
        figure.legend(
            handles=handles, loc="upper center", bbox_to_anchor=(0.5, legend / size[1]), ncols=per_line,
            fontsize=7, frameon=False,
        )  # fmt: skip
    return figure


def room_for_titles(row: Mapping[str, Pixels], above: Mapping[str, Pixels]) -> int:
    """Lines of text that the titles over a row of pictures need, where they differ from those above."""
    return max((1 + title.count("\n") for title in row.keys() - above.keys()), default=0)


def stretched(picture: Pixels, height: int, width: int) -> Pixels:
    """A picture (h, w, 3) at another size, pixels repeated or left out."""
    rows = np.arange(height) * picture.shape[0] // height
    columns = np.arange(width) * picture.shape[1] // width
    resized: Pixels = picture[rows[:, None], columns]
    return resized


def paper_colour(paper: str) -> str:
    """The colour of a paper's points; a paper of one's own has a grey."""
    return PAPER_COLOURS.get(paper, "#555555")


def _legend_below(figure: Figure, axes: Axes) -> None:
    """A legend below the axes: a paper has up to 25 experiments, which would cover the curves."""
    handles, labels = axes.get_legend_handles_labels()
    lines = -(-len(handles) // 3)
    bottom = 0.7 + 0.17 * lines
    figure.set_size_inches(8.0, 4.6 + bottom)
    figure.subplots_adjust(left=0.1, right=0.98, top=0.98, bottom=bottom / (4.6 + bottom))
    figure.legend(handles, labels, loc="lower center", ncols=3, frameon=False, fontsize=8)


def line_styles(count: int) -> list[dict[str, Any]]:
    """Keywords of as many lines that can be told apart: ten colours, and a new marker for each ten."""
    colours = mpl.color_sequences["tab10"]
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
