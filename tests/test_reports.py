from __future__ import annotations

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from conftest import ROOT, World
from matplotlib.text import Text

import models
from experiments import complexity, tables
from experiments.config import params as config
from experiments.reporting import figures, published
from experiments.running.command import StageError


def write_scores(key: str, miou: float) -> None:
    scores = {"profile": "tiny", "dataset": "scenes", "miou": miou, "pixel_accuracy": 0.5, "seeds": [{}]}
    path = Path(f"results/evaluate/{key}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(scores))


@pytest.fixture(scope="module")
def counted_and_timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real counts and timings of the tiny experiments."""
    world = World(tmp_path_factory.mktemp("counted")).write()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(world.folder)
        assert not world.call("complexity")
        assert not world.call("speed")
    return world.folder / "results"


@pytest.fixture
def measured(world: World, counted_and_timed: Path) -> World:
    """A world with made-up scores and published numbers, real counts and timings."""
    shutil.copytree(counted_and_timed, "results")
    for key, miou in (("spgnet-small", 0.1234), ("gun-small", 0.25)):
        write_scores(key, miou)
    folder = Path("results/published")
    folder.mkdir(parents=True)
    (folder / "spgnet.csv").write_text(
        "paper,table,row,metric,value,unit,source\n"
        'spgnet,cityscapes-test,"SPGNet, 2 x ResNet-50",miou,81.1,%,"a paper, table 1"\n'
        "spgnet,cityscapes-test,Another & Co,miou,70,%,a paper\n"
    )
    assert not world.call("tables")
    return world


class TestTables:
    def test_the_summary_has_a_row_an_experiment_with_both_numbers(self, measured: World) -> None:
        summary = pd.read_csv("results/summary.csv").set_index("experiment")
        assert list(summary.index) == ["spgnet-small", "gun-small"]
        assert summary.loc["spgnet-small", "measured_miou"] == 12.34
        assert summary.loc["spgnet-small", "published_miou"] == 81.1
        assert summary.loc["spgnet-small", "published_source"] == "a paper, table 1"
        assert summary["published_miou"].isna()["gun-small"]

    def test_a_papers_table_also_shows_the_rows_that_are_not_run(self, measured: World) -> None:
        table = pd.read_csv("reports/tables/spgnet-cityscapes-test.csv")
        assert list(table["Method"]) == ["SPGNet, 2 x ResNet-50", "Another & Co"]
        assert list(table["Experiment"].fillna("")) == ["spgnet-small", ""]

    def test_a_number_of_a_stand_in_says_that_it_is_not_comparable(self, measured: World) -> None:
        for path in Path("reports/tables").glob("spgnet-*.*"):
            if path.suffix != ".csv":
                assert "not comparable" in path.read_text()
        header = Path("reports/tables/spgnet-cityscapes-test.csv").read_text().splitlines()[0]
        assert "mIoU % measured (tiny: scenes)" in header

    def test_latex_escapes_what_it_must(self, measured: World) -> None:
        text = Path("reports/tables/spgnet-cityscapes-test.tex").read_text()
        assert r"Another \& Co" in text
        assert not re.search(r"(?<!\\)[%_]", text.split(r"\label")[0].replace("\\begin{table}", ""))

    def test_an_experiment_that_is_not_evaluated_is_named(self, measured: World) -> None:
        Path("results/evaluate/gun-small.json").unlink()
        assert "run 'python -m experiments.evaluate gun-small' first" in measured.call("tables")

    def test_several_seeds_are_counted(self, measured: World) -> None:
        measured.params["seeds"] = [0, 1]
        params = config.load(measured.write().folder / "params.yaml")
        assert "2 seeds" in tables.provenance_line(params)


class TestPublished:
    def test_every_published_number_has_a_source_and_a_known_metric(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(ROOT)
        numbers = published.load()
        assert set(numbers["paper"]) == {"spgnet", "gun", "semask", "alignseg"}
        units = {"miou": "%", "miou_ms": "%", "parameters": "M", "macs": "G", "fps": "1/s"}
        assert {(m, u) for m, u in zip(numbers["metric"], numbers["unit"], strict=True)} <= set(units.items())
        assert numbers["source"].str.len().min() > 10

    def test_experiments_that_mirror_a_published_row_name_it_exactly(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The main models have published numbers: a typing error in a row's name would lose them."""
        monkeypatch.chdir(ROOT)
        rows = {tuple(row) for row in published.load()[["paper", "table", "row"]].to_numpy()}
        experiments = config.load().experiments
        found = {key for key, e in experiments.items() if (e.paper, e.table, e.row) in rows}
        assert {"spgnet-r50", "spgnet-r18-spg", "gun-fusion", "semask-t-fpn", "alignseg-r101"} <= found

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("spgnet,t,r,miou,81.1,%,", "line 2: no source"),
            ("spgnet,t,r,miou,about 80,%,a paper", "line 2: value is 'about 80'"),
        ],
    )
    def test_a_number_without_source_or_value_is_refused(self, world: World, line: str, message: str) -> None:
        folder = Path("results/published")
        folder.mkdir(parents=True)
        (folder / "spgnet.csv").write_text(f"{','.join(published.COLUMNS)}\n{line}\n")
        with pytest.raises(StageError, match=message):
            published.load()


class TestComplexity:
    def test_counts_a_convolution_by_hand(self) -> None:
        with torch.device("meta"):
            network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8)).eval()
        macs, uncounted = complexity.count_macs(network, (10, 20))
        assert macs == 10 * 20 * 3 * 8 * 9
        assert any("batch_norm" in name for name in uncounted)
        assert complexity.count_parameters(network) == 3 * 8 * 9 + 8 + 8 + 8

    def test_counts_attention_on_meta_tensors(self) -> None:
        class Attention(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                tokens = x.flatten(2).transpose(1, 2)
                return torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

        macs, _ = complexity.count_macs(Attention(), (4, 5))
        assert macs == 2 * 20 * 20 * 3

    def test_the_second_counter_agrees_with_the_first(self, measured: World) -> None:
        counts = pd.read_csv("results/complexity.csv")
        columns = "experiment model backbone parameters macs macs_check height width num_classes uncounted"
        assert list(counts.columns) == columns.split()
        assert (counts["macs"] == counts["macs_check"]).all()
        assert (counts["backbone"][0], counts["num_classes"][0]) == ("resnet50", 19)  # not the profile's

    def test_only_what_changed_is_counted_again(
        self, measured: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted = []
        create = models.create

        def remember(name: str, num_classes: int, **options: object) -> models.Segmenter:
            counted.append(name)
            return create(name, num_classes, **options)

        monkeypatch.setattr(models, "create", remember)
        measured.params["experiments"]["gun-small"]["options"]["guidance"] = "high-res"
        measured.write()
        assert not measured.call("complexity")
        assert set(counted) == {"gun"}


def test_speed_has_a_row_for_each_precision_and_says_where_it_ran(measured: World) -> None:
    measured.params["profiles"]["tiny"]["speed"] |= {"precisions": ["float32", "bfloat16"]}
    measured.params["experiments"].pop("gun-small")
    measured.write()
    assert not measured.call("speed")
    timings = pd.read_csv("results/speed.csv")
    assert list(timings["precision"]) == ["float32", "bfloat16"]
    assert (timings["fps"] > 0).all()
    assert (timings["latency_ms_p95"] >= timings["latency_ms_median"]).all()
    assert timings["device"].str.len().min() > 3
    assert sorted(p.name for p in Path("results/speed").iterdir()) == ["spgnet-small.json"]


@pytest.mark.parametrize(
    "scores", [[50.0] * 25, list(range(25)), [0.0] * 12 + [90.0] * 13], ids=("equal", "spread", "ends")
)
def test_names_beside_points_cover_neither_each_other_nor_another_panel(scores: list[float]) -> None:
    summary = pd.DataFrame(
        {
            "experiment": [f"semask-{i}" for i in range(25)],
            "paper": ["semask"] * 25,
            "measured_miou": scores,
            "measured_macs_g": 40.0,
        }
    )
    figure = figures.score_against_cost(summary, "measured_macs_g", "MACs G", "conditions")
    figure.canvas.draw()
    axes = figure.axes[0]
    boxes = sorted((Text.get_window_extent(name) for name in axes.texts), key=lambda box: box.y0)
    plt.close(figure)
    assert len(boxes) == 25
    assert all(above.y0 >= below.y1 for below, above in pairwise(boxes))
    assert boxes[0].y0 > axes.bbox.y0 - 10
    assert boxes[-1].y1 < axes.bbox.y1 + 10
