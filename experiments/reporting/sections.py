"""The report's figures, a function each: from what the stages measured to a picture and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

from experiments.config.params import Params
from experiments.measuring.jobs import ceilings, count_details
from experiments.reporting import captions, claim_tables
from experiments.reporting.captions import joined
from experiments.reporting.tables import class_iou, main_experiments, sizes
from experiments.samples.prepared import PreparedDataset
from experiments.training.folder import Trainings

UNGUIDED = " (bilinear)"
"""Ends the name of a curve of a network whose learned upsampling is replaced by bilinear."""


@dataclass(frozen=True)
class Drawing:
    """A figure of the report: what it says, and how it is drawn."""

    name: str
    title: str
    text: str
    function: str
    """Of ``reporting.figures``, by name: importing it takes seconds, and often nothing is to be drawn."""
    arguments: tuple[Any, ...]
    """Values, tables and files: the figure is a function of these and of the code."""


@dataclass(frozen=True)
class Measured:
    """All that figures are drawn from."""

    params: Params
    keys: list[str]
    """The experiments that are shown."""
    summary: pd.DataFrame
    """Of those, one row each; an experiment that shares its scores with another has none of its own."""
    speed: pd.DataFrame
    scores: dict[str, dict[str, Any]]
    """Of the experiments with scores of their own."""

    @property
    def worth(self) -> str:
        """What the scores are, in words."""
        return captions.worth(self.params)

    @property
    def scored(self) -> pd.DataFrame:
        """The summary's rows with a score."""
        return self.summary.dropna(subset="measured_miou")

    def by_paper(self) -> dict[str, list[str]]:
        """Experiments with scores by their paper."""
        groups: dict[str, list[str]] = {}
        for key in self.scores:
            groups.setdefault(self.params.experiments[key].paper, []).append(key)
        return groups

    def by_paper_and_dataset(self) -> dict[tuple[str, str], list[str]]:
        """Experiments with scores by their paper and the data set that they ran on."""
        groups: dict[tuple[str, str], list[str]] = {}
        for key, found in self.scores.items():
            groups.setdefault((self.params.experiments[key].paper, found["dataset"]), []).append(key)
        return groups


def claims(measured: Measured) -> list[Drawing]:
    """Effects of the claims with their intervals, of this run and of each reference."""
    params = measured.params
    sources = [("claims", "Claims", measured.worth, claim_tables.present_rows(params))]
    sources += [
        (f"claims-{kept.name}", f"Claims: {kept.where}", f"{kept.where}.", kept.claims())
        for kept in claim_tables.all_references(params)
    ]
    drawings = []
    for name, title, conditions, rows in sources:
        effects = claim_tables.effects(rows)
        if len(effects):
            text = f"{conditions} {claim_tables.METHOD} Claims about costs stand in the table."
            drawings.append(Drawing(name, title, text, "claim_effects", (effects, conditions)))
    return drawings


def score_against_cost(measured: Measured) -> list[Drawing]:
    """mIoU against parameters, multiply-accumulates and frames per second."""
    speed = _fastest(measured.speed)
    rows = measured.scored
    rows = rows.assign(fps=rows["experiment"].map(speed["fps"])).dropna(subset="measured_macs_g")
    costs = {"measured_parameters_m": "parameters M (log)", "measured_macs_g": "MACs G (log)"}
    text = (
        f"{measured.worth} Parameters and MACs are of the paper's own networks at the paper's input size, "
        "scores of the networks that were trained here."
    )
    drawings = []
    for paper, of_paper in rows.groupby("paper", sort=False):
        shown, also = dict(costs), ""
        if of_paper["fps"].notna().all():
            shown["fps"] = "frames per second (log)"
            also = f" FPS likewise, on {joined(speed['device'])}, input {joined(speed['input'])}, batch 1."
        drawings.append(
            Drawing(
                f"miou-cost-{paper}",
                f"{paper}: mIoU against cost",
                text + also,
                "score_against_cost",
                (of_paper, shown, measured.worth),
            )
        )
    return drawings


def roofline(measured: Measured) -> list[Drawing]:
    """Multiply-accumulates a second against those for each byte, below what the device does at most."""
    top = ceilings(measured.params)
    speed = _fastest(measured.speed)
    if speed.empty or "bytes_a_second" not in top:
        return []
    rows = measured.summary[["experiment", "paper"]].merge(speed.reset_index(), on="experiment")
    rows["intensity"] = rows["macs"] / (rows["traffic_mb"] * 2**20)
    rows["macs_a_second"] = rows["macs"] * rows["fps"]
    text = (
        f"On {joined(rows['device'])}, input {joined(rows['input'])}, batch 1, the fastest mode of each "
        "network. The lines are matrix products and copies that were measured in the same run. Bytes: "
        "weights once, every output of a product out and in again, which is the least that has to move "
        "without fusion."
    )
    used = {name: top["macs_a_second"][name] for name in rows["precision"] if name in top["macs_a_second"]}
    return [Drawing("roofline", "Roofline", text, "roofline", (rows, used, top["bytes_a_second"]))]


def macs_by_size(measured: Measured) -> list[Drawing]:
    """Multiply-accumulates against the input's size."""
    counts = {}
    for key in main_experiments(measured.summary):
        details = count_details(measured.params, key)
        if details is not None:
            counts[key] = details["by_size"]
    text = (
        "Counted on the papers' own networks. Convolutions grow with the pixels, as the dashed line does; "
        "attention over the whole map grows faster."
    )
    title = "Multiply-accumulates against input size"
    return [Drawing("macs-size", title, text, "macs_by_size", (counts,))] if counts else []


def boundary_iou(measured: Measured) -> list[Drawing]:
    """IoU near label boundaries against the band's width."""
    drawings = []
    for paper, keys in measured.by_paper().items():
        bands = {
            key + suffix: measured.scores[key][name]
            for key in keys
            for name, suffix in (("boundary_iou", ""), ("boundary_iou_bilinear", UNGUIDED))
            if name in measured.scores[key]
        }
        text = (
            f"{measured.worth} Mean IoU over the pixels closer to a label boundary than the band's width. "
            "Dashed: the same trained network, its scores upsampled bilinearly instead of guided."
        )
        title = f"{paper}: IoU near label boundaries"
        drawings.append(Drawing(f"boundary-iou-{paper}", title, text, "boundary_iou", (bands,)))
    return drawings


def training_curves(measured: Measured) -> list[Drawing]:
    """Loss against step."""
    trainings = Trainings(measured.params.paths.trainings)
    drawings = []
    for paper, keys in measured.by_paper().items():
        histories: dict[str, list[Path]] = {}
        for key in keys:
            if measured.scores[key]["same_training_as"]:
                continue  # drawn under the other's name
            found = [trainings.find(seed["training"]) for seed in measured.scores[key]["seeds"]]
            files = [training.history for training in found if training and training.history.is_file()]
            if files:
                histories[key] = files
        text = (
            f"{measured.worth} Mean of the loss between two rows of history.csv. Experiments that share a "
            "training are one line."
        )
        if histories:
            title = f"{paper}: training curves"
            drawings.append(Drawing(f"training-{paper}", title, text, "training_curves", (histories,)))
    return drawings


def class_scores(measured: Measured) -> list[Drawing]:
    """IoU of each class."""
    drawings = []
    for (paper, dataset), keys in measured.by_paper_and_dataset().items():
        iou = pd.DataFrame({key: class_iou(measured.scores[key]) for key in keys}).T
        text = f"{measured.worth} Empty: the class is neither in the labels nor in the predictions."
        name, title = f"class-iou-{paper}-{dataset}", f"{paper}: IoU of each class of {dataset}"
        drawings.append(Drawing(name, title, text, "class_iou", (iou, measured.worth)))
    return drawings


def galleries(measured: Measured) -> list[Drawing]:
    """Predictions, and what the main model of each paper computes on the way."""
    drawings = []
    for (paper, dataset), keys in measured.by_paper_and_dataset().items():
        data = PreparedDataset.load(measured.params.run(keys[0]))
        main = _main_experiment(measured.summary, keys)
        kept, of_main = [], []
        for sample in data.val.samples:
            pictures = {key: measured.params.paths.predictions(key) / f"{sample.name}.png" for key in keys}
            own = {"image": sample.image, "labels": sample.labels}
            if all(path.is_file() for path in pictures.values()):
                kept.append(own | pictures)
            maps = pictures[main].with_suffix(".safetensors")
            if pictures[main].is_file() and has_maps(maps):
                of_main.append(own | {"prediction": pictures[main], "maps": maps})
        if kept:
            name, title = f"gallery-{paper}-{dataset}", f"{paper}: predictions on {dataset}"
            text = f"{measured.worth} Validation images spread evenly over the split; first seed."
            drawings.append(Drawing(name, title, text, "predictions", (kept, data.classes)))
        if of_main:
            name, title = f"maps-{paper}-{dataset}", f"{paper}: what {main} computes on the way, on {dataset}"
            text = (
                f"{measured.worth} First seed. Offsets: hue is the direction (red right, cyan left), "
                "saturation the length, full at the longest of the picture."
            )
            drawings.append(Drawing(name, title, text, "model_maps", (of_main, data.classes)))
    return drawings


SECTIONS: tuple[Callable[[Measured], list[Drawing]], ...] = (
    claims,
    score_against_cost,
    roofline,
    macs_by_size,
    boundary_iou,
    class_scores,
    galleries,
    training_curves,
)
"""In the order of the page. Each gives nothing where nothing was measured."""


def has_maps(path: Path) -> bool:
    """Whether a model kept maps of an image."""
    if not path.is_file():
        return False
    with safe_open(path, "np") as file:
        return bool(file.keys())


def _fastest(timings: pd.DataFrame) -> pd.DataFrame:
    """By experiment, the best of the precisions and modes at batch 1."""
    ran = timings[(timings["batch"] == 1) & timings["fps"].notna() & (timings["end_to_end"] == 0)].copy()
    ran["input"] = sizes(ran["height"], ran["width"])
    return ran.sort_values("fps", ascending=False).drop_duplicates("experiment").set_index("experiment")


def _main_experiment(summary: pd.DataFrame, keys: list[str]) -> str:
    """The first of a paper's experiments that mirrors a published row, or the last."""
    published = set(summary.loc[summary["published_source"] != "", "experiment"])
    return next((key for key in keys if key in published), keys[-1])
