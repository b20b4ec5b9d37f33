"""Draws the figures and writes the report, ``reports/index.html``, from what the stages measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure
from safetensors.numpy import load_file

from experiments.config import params as config
from experiments.config.params import Params
from experiments.datasets.base import Pixels, read_image, read_labels
from experiments.evaluate import EVALUATE, PREDICTIONS
from experiments.reporting import figures, maps
from experiments.running import command, storage
from experiments.samples.prepared import PreparedDataset
from experiments.speed import SPEED
from experiments.tables import SUMMARY, TABLES, provenance_line
from experiments.train import TRAIN

REPORT = Path("reports/index.html")
FIGURES = Path("reports/figures")


@dataclass(frozen=True)
class Section:
    """A figure of the report and what it says."""

    name: str
    title: str
    text: str


def main() -> None:
    command.parser("report", __doc__).parse_args()
    params = config.load()
    summary = pd.read_csv(SUMMARY)
    scores = {key: json.loads((EVALUATE / f"{key}.json").read_text()) for key in params.experiments}
    with storage.folder(FIGURES) as folder:
        sections = []
        for section, figure in _figures(params, summary, scores):
            figures.save(figure, folder, section.name)
            sections.append(section)
    storage.write_text(REPORT, _page(params, summary, sections))


def _figures(params: Params, summary: pd.DataFrame, scores: dict[str, Any]) -> list[tuple[Section, Figure]]:
    papers = {key: experiment.paper for key, experiment in params.experiments.items()}
    measured = provenance_line(params)
    speed = _fastest(pd.read_csv(SPEED))
    with_speed = summary.assign(fps=summary["experiment"].map(speed["fps"])).dropna(subset="fps")
    histories = {
        key: {seed: pd.read_csv(TRAIN / key / f"seed-{seed}" / "history.csv") for seed in params.seeds}
        for key in params.experiments
    }
    bands = {
        key + suffix: s[name]
        for key, s in scores.items()
        for name, suffix in (("boundary_iou", ""), ("boundary_iou_bilinear", figures.UNGUIDED))
        if name in s
    }
    curves = 100 * pd.DataFrame(bands).T
    curves.columns = curves.columns.astype(int)
    drawn = [
        (
            Section("miou-macs", "mIoU against multiply-accumulates",
                    f"{measured} MACs are of the papers' own networks at the papers' input size."),
            figures.score_against_cost(summary, "measured_macs_g", "MACs G (log)", measured),
        ),
        (
            Section("miou-fps", "mIoU against frames per second",
                    f"{measured} FPS are of the papers' own networks on "
                    f"{_all(speed['device'])}, input {_all(speed['input'])}, batch 1."),
            figures.score_against_cost(with_speed, "fps", "frames per second (log)", measured),
        ),
        (
            Section("boundary-iou", "IoU near label boundaries",
                    f"{measured} Mean IoU over the pixels closer to a label boundary than the band's width. "
                "Dashed: the same trained network, its scores upsampled bilinearly instead of guided."),
            figures.boundary_iou(curves, papers),
        ),
        (
            Section("training", "Training curves",
                    f"{measured} Mean of the loss between two rows of history.csv."),
            figures.training_curves(histories, papers),
        ),
    ]  # fmt: skip
    spgnet = summary[summary["paper"] == "spgnet"]
    if len(spgnet) > 1:
        about = Section(
            "spgnet-cost",
            "SPGNet: stages and guidance at equal cost",
            f"{measured} Does a second stage help at the parameters and MACs of a deeper single one (RQ2)? "
            "Parameters and MACs are of the paper's own networks.",
        )
        drawn.append((about, figures.cost_comparison(spgnet, measured)))
    for name, keys in _by_dataset(params).items():
        data = PreparedDataset.load(name)
        suffix = "" if len(_by_dataset(params)) == 1 else f"-{name}"
        iou = pd.DataFrame({key: _class_iou(scores[key]) for key in keys}).T
        drawn.append((
            Section(f"class-iou{suffix}", f"IoU of each class on {name}",
                    f"{measured} Empty: the class is neither in the labels nor in the predictions."),
            figures.class_iou(iou, measured),
        ))  # fmt: skip
        for paper in dict.fromkeys(papers[key] for key in keys):
            of_paper = [key for key in keys if papers[key] == paper]
            picture = _gallery(data, of_paper)
            if picture is not None:
                about = Section(
                    f"gallery-{paper}{suffix}",
                    f"Predictions of {paper} on {name}",
                    f"{measured} Validation images spread evenly over the split; first seed.",
                )
                drawn.append((about, picture))
            shown = _main_experiment(summary, of_paper)
            picture = _maps(data, shown)
            if picture is not None:
                about = Section(
                    f"maps-{paper}{suffix}",
                    f"What {shown} computes on the way, on {name}",
                    f"{measured} First seed. Offsets: hue is the direction (red right, cyan left), "
                    "saturation the length, full at the longest of the picture.",
                )
                drawn.append((about, picture))
    return drawn


def _by_dataset(params: Params) -> dict[str, list[str]]:
    """Experiments by the data set that they ran on."""
    groups: dict[str, list[str]] = {}
    for key in params.experiments:
        groups.setdefault(params.run(key).dataset, []).append(key)
    return groups


def _class_iou(scores: dict[str, Any]) -> pd.Series:
    """Per cent by class, mean over the seeds."""
    return 100 * pd.DataFrame([seed["class_iou"] for seed in scores["seeds"]]).astype(float).mean()


def _fastest(timings: pd.DataFrame) -> pd.DataFrame:
    """By experiment, the best of the precisions and modes at batch 1."""
    ran = timings[(timings["batch"] == 1) & timings["fps"].notna()].copy()
    ran["input"] = ran["height"].astype(str) + " x " + ran["width"].astype(str)
    return ran.sort_values("fps", ascending=False).drop_duplicates("experiment").set_index("experiment")


def _all(values: pd.Series) -> str:
    return ", ".join(values.unique())


def _main_experiment(summary: pd.DataFrame, keys: list[str]) -> str:
    """The first of a paper's experiments that mirrors a published row and has maps, or the last."""
    published = set(summary.loc[summary["published_source"].notna(), "experiment"])
    return next((key for key in keys if key in published), keys[-1])


def _gallery(data: PreparedDataset, keys: list[str]) -> Figure | None:
    """Image, labels and every experiment's prediction, a row for each kept image."""
    rows = []
    for sample in data.samples["val"]:
        kept = [PREDICTIONS / key / f"{sample.name}.png" for key in keys]
        if all(path.is_file() for path in kept):
            row = {"image": read_image(sample.image)}
            for title, path in zip(["labels", *keys], [sample.labels, *kept], strict=True):
                row[title] = maps.colourise(read_labels(path), data.classes)
            rows.append(row)
    return figures.gallery(rows, data.classes) if rows else None


def _maps(data: PreparedDataset, key: str) -> Figure | None:
    """Image, labels, prediction and maps of one experiment, a row for each kept image."""
    rows: list[dict[str, Pixels]] = []
    for sample in data.samples["val"]:
        kept = PREDICTIONS / key / f"{sample.name}.safetensors"
        if kept.is_file():
            labels = read_labels(sample.labels)
            prediction = read_labels(kept.with_suffix(".png"))
            rows.append(
                {
                    "image": read_image(sample.image),
                    "labels": maps.colourise(labels, data.classes),
                    "prediction": maps.colourise(prediction, data.classes),
                    **maps.pictures(load_file(kept), labels, data.classes),
                }
            )
    if not rows or len(rows[0]) == 3:  # an experiment without maps
        return None
    return figures.gallery(rows, data.classes)


def _page(params: Params, summary: pd.DataFrame, sections: list[Section]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "reporting/templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    tables = []
    for path in sorted(TABLES.glob("*.csv")):
        caption = path.with_suffix(".md").read_text(encoding="utf-8").rstrip().rsplit("\n\n", 1)[1]
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        tables.append(
            {"name": path.stem, "caption": caption, "columns": list(table), "rows": table.to_numpy().tolist()}
        )
    return environment.get_template("report.html.j2").render(
        profile_name=params.profile,
        profile=params.active,
        measured=provenance_line(params),
        experiments=len(summary),
        tables=tables,
        sections=sections,
    )


if __name__ == "__main__":
    command.run("report", main)
