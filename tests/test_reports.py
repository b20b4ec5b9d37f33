from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import warnings
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from conftest import ROOT, Workspace
from matplotlib.text import Text
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

import models
from experiments.config.params import load_params
from experiments.measuring import counters, counting, formulations, latency
from experiments.measuring.jobs import timing_jobs
from experiments.reporting import figures, published, rendering
from experiments.reporting.rendering import Noted, Table
from experiments.running import paths, stopping
from experiments.running.errors import StageError
from experiments.running.storage import StorageError
from experiments.running.work import Context

KEYS = ("spgnet-small", "gun-small")
PUBLISHED = (
    "paper,table,row,metric,value,unit,split,mark,source\n"
    'spgnet,cityscapes-test,"SPGNet, 2 x ResNet-50",miou,81.1,%,test,S,"a paper, table 1"\n'
    "spgnet,cityscapes-test,Another & Co,miou,70,%,,R,a paper\n"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which every stage but the report has run."""
    workspace = Workspace(tmp_path_factory.mktemp("finished")).write()
    folder = workspace.folder / "results/published"
    folder.mkdir(parents=True)
    (folder / "spgnet.csv").write_text(PUBLISHED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.folder)
        for stage in ("prepare", "train", "evaluate", "complexity", "speed", "claims", "tables"):
            assert not workspace.call(stage)
    return workspace.folder


def copy(source: str, target: str) -> None:
    """Copies a file, but for weights, which nothing changes and which are large."""
    (os.link if source.endswith(".safetensors") else shutil.copy2)(source, target)


@pytest.fixture
def measured(workspace: Workspace, finished: Path) -> Workspace:
    """A workspace with both experiments scored, counted and timed, and with tables."""
    shutil.copytree(finished, workspace.folder, dirs_exist_ok=True, copy_function=copy)
    return workspace


@pytest.fixture
def scored(measured: Workspace) -> Workspace:
    """A workspace with one scored experiment and nothing else measured."""
    Path("results/tiny/summary.csv").unlink()
    for path in ("train/spgnet-small", "evaluate/spgnet-small", "speed"):
        shutil.rmtree(Path("results/tiny") / path)
    for path in ("results/complexity", "reports"):
        shutil.rmtree(path)
    Path("results/tiny/evaluate/spgnet-small.json").unlink()
    return measured


@pytest.mark.parametrize("stage", ["train", "evaluate", "complexity", "speed"])
def test_the_lock_of_a_killed_stage_goes_though_its_job_is_done(measured: Workspace, stage: str) -> None:
    """Its worker may have ended the job: a run of kills ended with a file too many."""
    lock = Path("results/tiny/locks/digest.lock")
    lock.parent.mkdir()
    lock.write_text(json.dumps({"host": socket.gethostname(), "process": 2**22 + 1, "started": "1"}))
    assert not measured.call(stage)
    assert not lock.parent.exists()


class TestBenchmarks:
    @staticmethod
    def write(path: Path, processor: str = "a CPU", **medians: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = [
            {"fullname": f"tests/benchmarks/{name}", "stats": {"median": median}, "extra_info": {"steps": 2}}
            for name, median in medians.items()
        ]
        path.write_text(json.dumps({"machine_info": {"cpu": {"brand_raw": processor}}, "benchmarks": found}))

    def test_the_report_has_their_ratios_to_the_first_run(self, measured: Workspace) -> None:
        self.write(paths.BENCHMARK_BASELINE, loader=0.2)
        self.write(paths.LATEST_BENCHMARKS, loader=0.1, sampler=0.3)
        assert not measured.call("tables")
        assert not measured.call("report")
        rows = pd.read_csv("reports/tables/speed-benchmarks.csv")
        assert list(rows["Median ms"]) == [100, 300]
        assert list(rows["Times the baseline"].fillna(0)) == [0.5, 0]
        assert "Benchmarks of parts" in Path("reports/index.html").read_text()

    @pytest.mark.parametrize(
        ("content", "said"),
        [("{", "is not JSON"), ("{}", "is no file of pytest-benchmark"), ("", "is of another machine")],
    )
    def test_a_file_that_cannot_be_used_is_named_in_the_table(
        self, measured: Workspace, content: str, said: str
    ) -> None:
        self.write(paths.LATEST_BENCHMARKS, loader=0.1)
        self.write(paths.BENCHMARK_BASELINE, "another CPU", loader=0.2)
        if content:
            paths.BENCHMARK_BASELINE.write_text(content)
        assert not measured.call("tables")
        text = Path("reports/tables/speed-benchmarks.md").read_text()
        assert f"{paths.BENCHMARK_BASELINE}: {said}" in text


class TestTables:
    def test_an_interval_stands_beside_its_mean_if_the_first_row_has_none_too(self) -> None:
        first = {"Method": "SegNet", "mIoU": 1, "mIoU, other": 2, "MACs": 3}
        second = {"Method": "GUN", "mIoU": 4, "95 %": 5, "mIoU, other": 6, "95 %, other": 7, "MACs": 8}
        table = rendering.of_rows([first, second, {"Method": "neither"}])
        assert list(table) == list(second)
        assert list(table["95 %"].fillna(0)) == [0, 5, 0]
        assert list(rendering.of_rows([second, first])) == list(second)

    def test_the_summary_has_a_row_per_experiment_with_both_numbers(self, measured: Workspace) -> None:
        summary = pd.read_csv("results/tiny/summary.csv").set_index("experiment")
        assert list(summary.index) == list(KEYS)
        scores = json.loads(Path("results/tiny/evaluate/spgnet-small.json").read_text())
        assert summary.loc["spgnet-small", "measured_miou"] == round(100 * scores["miou"], 2)
        assert summary.loc["spgnet-small", "published_miou"] == 81.1
        assert summary.loc["spgnet-small", "published_source"] == "a paper, table 1"
        assert summary["published_miou"].isna()["gun-small"]

    def test_a_papers_table_also_shows_the_rows_that_are_not_run(self, measured: Workspace) -> None:
        table = pd.read_csv("reports/tables/spgnet-cityscapes-test.csv")
        assert list(table["Method"]) == ["SPGNet, 2 x ResNet-50", "Another & Co"]
        assert list(table["Experiment"].fillna("")) == ["spgnet-small", ""]

    def test_a_number_of_a_stand_in_says_that_it_is_not_comparable(self, measured: Workspace) -> None:
        assert "spgnet-cityscapes-test" in json.loads(Path("reports/tables/tables.json").read_text())
        table = json.loads(Path("reports/tables/spgnet-cityscapes-test.json").read_text())
        assert "not comparable" in table["caption"]
        for path in Path("reports/tables").glob("spgnet-*.*"):
            if path.suffix != ".csv":
                assert "not comparable" in path.read_text()
        header = Path("reports/tables/spgnet-cityscapes-test.csv").read_text().splitlines()[0]
        assert "mIoU %, this run" in header

    def test_a_check_is_called_one(self, measured: Workspace) -> None:
        measured.profile["scores"] = "check"
        measured.write()
        assert not measured.call("tables")
        header = Path("reports/tables/spgnet-cityscapes-test.csv").read_text().splitlines()[0]
        assert "mIoU %, this run (check)" in header
        assert not measured.call("report")
        page = Path("reports/index.html").read_text()
        first = page[page.index("<main") :].split("</p>")[0]
        assert "This is a" in first
        assert "check" in first

    def test_numbers_of_a_column_have_equal_decimals(self, measured: Workspace) -> None:
        table = pd.read_csv("reports/tables/spgnet-cityscapes-test.csv", dtype=str)
        assert list(table["mIoU %, published"]) == ["81.10", "70.00"]

    def test_a_small_network_has_more_than_0_parameters(self) -> None:
        assert rendering.cells(pd.Series([0.003, 59.52, None])) == ["0.003", "59.520", ""]

    def test_the_iou_of_each_class_has_a_table(self, measured: Workspace) -> None:
        table = pd.read_csv("reports/tables/class-iou-scenes.csv")
        assert list(table["Experiment"]) == list(KEYS)
        assert {"road", "bicycle"} <= set(table)

    def test_latex_escapes_what_it_must(self, measured: Workspace) -> None:
        text = Path("reports/tables/spgnet-cityscapes-test.tex").read_text()
        assert r"Another \& Co" in text
        table = text[text.index(r"\caption") :].split(r"\label")[0]
        assert not re.search(r"(?<!\\)[%_]", table)

    def test_dvc_is_shown_the_few_numbers_that_matter(self, measured: Workspace) -> None:
        found = json.loads(Path("results/tiny/metrics/gun-small.json").read_text())
        assert set(found) == {"miou"}

    def test_scores_that_are_shared_are_named_and_not_repeated(self, scored: Workspace) -> None:
        experiments = scored.params["experiments"]
        experiments["gun-same"] = experiments["gun-small"] | {"row": "another name"}
        scored.write()
        assert not scored.call("evaluate", "gun-same")
        assert not scored.call("tables")
        table = pd.read_csv("reports/tables/gun-ablation.csv", dtype=str).set_index("Experiment")
        row = table.fillna("").loc["gun-same"].to_dict()
        assert row["mIoU %, this run"] == ""
        assert "as gun-small: the same function of the same inputs here" in row["Notes"]
        summary = pd.read_csv("results/tiny/summary.csv").set_index("experiment")
        assert summary["measured_miou"].isna()["gun-same"]
        assert not Path("results/tiny/metrics/gun-same.json").exists()


class TestWhatThereIs:
    """Tables and report show what there is and name what is missing."""

    def run(self, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> str:
        capsys.readouterr()
        for stage in ("tables", "report"):
            assert not workspace.call(stage), stage
        return capsys.readouterr().out

    def test_one_experiment(self, scored: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
        assert "spgnet-small: not scored; run 'python -m experiments.evaluate KEY'" in self.run(
            scored, capsys
        )
        assert "gun-small" in Path("reports/index.html").read_text()

    def test_nothing_at_all(self, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
        assert "0 experiments with scores" in self.run(workspace, capsys)

    def test_a_new_experiment(self, measured: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
        experiments = measured.params["experiments"]
        experiments["gun-new"] = experiments["gun-small"] | {
            "options": {"backbone": "drn_d_14_narrow", "guidance": "high-res"}
        }
        measured.write()
        assert "Not shown: gun-new: not scored" in self.run(measured, capsys)

    def test_a_score_of_other_settings_is_not_shown(
        self, measured: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        measured.profile["recipe"]["steps"] = 5
        measured.write()
        said = self.run(measured, capsys)
        assert "spgnet-small, gun-small: scored with other settings, data or code" in said
        assert pd.read_csv("results/tiny/summary.csv")["measured_miou"].isna().all()

    def test_a_score_of_another_profile_is_not_shown(
        self, measured: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        measured.params["profiles"]["other"] = measured.profile
        measured.params["profile"] = "other"
        measured.write()
        assert not measured.call("prepare")
        said = self.run(measured, capsys)
        assert "0 experiments with scores" in said
        measured.params["profile"] = "tiny"
        measured.write()
        assert "2 experiments with scores" in self.run(measured, capsys)

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"seeds": [{}]}', '{"miou": NaN, "seeds": 3}'])
    def test_a_broken_score(
        self, measured: Workspace, capsys: pytest.CaptureFixture[str], content: str
    ) -> None:
        Path("results/tiny/evaluate/gun-small.json").write_text(content)
        said = self.run(measured, capsys)
        assert "results/tiny/evaluate/KEY.json: " in said
        assert "1 experiment with scores" in said

    @pytest.mark.parametrize("folder", ["results/complexity", "results/tiny/speed"])
    @pytest.mark.parametrize("content", ["", "{"])
    def test_a_broken_file_of_another_stage(self, measured: Workspace, folder: str, content: str) -> None:
        path = next(path for path in sorted(Path(folder).iterdir()) if "ceilings" not in path.name)
        path.write_text(content)
        message = measured.call("tables")
        assert message.startswith(f"tables: {path}: ")
        assert "remove it and run 'python -m experiments." in message

    def test_counts_and_timings_of_other_settings_are_not_shown(self, measured: Workspace) -> None:
        measured.params["experiments"]["gun-small"]["options"]["guidance"] = "high-res"
        measured.profile["speed"]["repetitions"] = 3
        measured.write()
        assert not measured.call("tables")
        summary = pd.read_csv("results/tiny/summary.csv").set_index("experiment")
        assert summary["measured_macs_g"].isna().to_dict() == {"spgnet-small": False, "gun-small": True}
        assert not Path("reports/tables/speed.csv").exists()

    def test_a_report_without_tables(self, scored: Workspace) -> None:
        message = scored.call("report")
        assert message == (
            "report: results/tiny/summary.csv: no such file; run 'python -m experiments.tables' first"
        )

    def test_a_report_of_some_experiments(self, measured: Workspace) -> None:
        assert not measured.call("report", "gun-small")
        assert not measured.call("report", "gun-small", "spgnet-small")
        assert Path("reports/figures/training.svg").is_file()

    def test_a_report_that_is_asked_to_stop_leaves_the_page_and_goes_on_later(
        self, measured: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert not measured.call("report")
        page = Path("reports/index.html")
        before = page.read_bytes()
        shutil.rmtree("reports/figures")
        Path("results/tiny/report.json").unlink()
        with monkeypatch.context() as patch:
            patch.setattr(stopping, "reset", lambda: stopping.set_deadline(0))
            assert measured.call("report") == str(stopping.OUT_OF_TIME)
        assert "report: stopped with" in capsys.readouterr().err
        assert page.read_bytes() == before
        assert not measured.call("report")
        assert page.read_bytes() == before

    def test_a_report_is_drawn_again_when_what_it_shows_has_changed(
        self, measured: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert not measured.call("report")
        before = {path: path.read_bytes() for path in Path("reports").rglob("*") if path.is_file()}
        capsys.readouterr()
        assert not measured.call("report")
        assert "is as it was" in capsys.readouterr().out
        assert not measured.call("report", "--again")
        after = {path: path.read_bytes() for path in Path("reports").rglob("*") if path.is_file()}
        assert before == after  # the same numbers give the same bytes
        measured.profile["description"] = "another"
        measured.write()
        assert not measured.call("report")
        assert "another" in Path("reports/index.html").read_text()


class TestPublished:
    def test_every_published_number_has_a_source_and_a_known_metric(self) -> None:
        numbers = published.load(ROOT / "results/published")
        assert set(numbers["paper"]) == {"spgnet", "gun", "semask", "alignseg"}
        units = {"miou": "%", "miou_ms": "%", "parameters": "M", "macs": "G", "fps": "1/s"}
        units |= {"subsampling": ""}
        assert {(m, u) for m, u in zip(numbers["metric"], numbers["unit"], strict=True)} <= set(units.items())
        assert numbers["source"].str.len().min() > 10
        # A reader can look every source up: none is a file that this repository does not have.
        assert not numbers["source"].str.contains("sources/").any()

    def test_experiments_that_mirror_a_published_row_name_it_exactly(self) -> None:
        """The main models have published numbers: a typing error in a row's name would lose them."""
        rows = {
            tuple(row)
            for row in published.load(ROOT / "results/published")[["paper", "table", "row"]].to_numpy()
        }
        experiments = load_params(ROOT / "params.yaml").experiments
        found = {key for key, e in experiments.items() if (e.paper, e.table, e.row) in rows}
        assert {"spgnet-r50", "spgnet-r18-spg", "gun-fusion", "semask-t-fpn", "alignseg-r101"} <= found

    @pytest.mark.parametrize(
        ("text", "error", "message"),
        [
            ("spgnet,t,r,miou,81.1,%,val,S,", StageError, "line 2: no source"),
            ("spgnet,t,r,miou,about 80,%,val,S,a paper", StageError, "line 2: value is 'about 80'"),
            (
                "spgnet,t,r,miou,1,%,,S,a\nspgnet,t,r,miou,2,%,,S,b",
                StageError,
                "gives miou of 'r' in t twice",
            ),
            ("spgnet,t,r,miou,1,%,val,I,a", StageError, "line 2: mark is 'I'; expected S"),
            (None, StorageError, "has no column 'mark'"),
        ],
    )
    def test_what_is_not_a_published_number_is_refused(
        self, tmp_path: Path, text: str | None, error: type[Exception], message: str
    ) -> None:
        header = ",".join(published.COLUMNS) if text is not None else "paper,table"
        (tmp_path / "spgnet.csv").write_text(f"{header}\n{text or ''}\n")
        with pytest.raises(error, match=message):
            published.load(tmp_path)


class TestComplexity:
    def test_counts_a_convolution_by_hand(self) -> None:
        with torch.device("meta"):
            network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.BatchNorm2d(8)).eval()
        counted = counters.count_operators(network, (10, 20))
        assert counted.macs == counters.count_calls(network, (10, 20)) == 10 * 20 * 3 * 8 * 9
        assert counted.activations == 10 * 20 * 8
        assert any("batch_norm" in name for name in counted.uncounted)
        assert sum(counted.uncounted_macs.values()) == 10 * 20 * 8  # a scale and a shift for each value
        assert counting.count_parameters(network) == 3 * 8 * 9 + 8 + 8 + 8

    def test_the_estimate_of_an_embedding_bag_is_of_every_row_that_it_adds(self) -> None:
        class Bag(torch.nn.Module):
            def forward(self, image: torch.Tensor) -> torch.Tensor:
                table = image[0, 0, :, :3]  # (10, 3)
                indices = torch.zeros(4, 6, dtype=torch.long, device=image.device)
                return F.embedding_bag(indices, table, mode="sum")

        counted = counters.count_operators(Bag(), (10, 20))
        assert sum(counted.uncounted_macs.values()) == 4 * 6 * 3

    def test_the_rules_for_shapes_are_torch_s(self) -> None:
        layouts = (torch.contiguous_format, torch.channels_last)
        maps = [torch.empty(2, 6, 8, 10, device="meta").to(memory_format=layout) for layout in layouts]
        grid, ones = torch.empty(2, 3, 5, 2, device="meta"), torch.empty(6, device="meta")
        calls: list[Callable[[torch.Tensor], torch.Tensor]] = [
            lambda x: F.interpolate(x, (16, 11), mode="bilinear", align_corners=True),
            lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
            torch.nn.Upsample(scale_factor=1.5, mode="bilinear"),
            lambda x: F.grid_sample(x, grid, align_corners=True),
            lambda x: F.layer_norm(x.movedim(1, -1), (6,)),
            lambda x: F.layer_norm(x, (8, 10)),
            lambda x: F.batch_norm(x, ones, ones, ones, ones),
            F.gelu,
            lambda x: F.gelu(x, approximate="tanh"),
        ]
        for x in maps:
            for call in calls:
                expected = call(x)
                with counters.ShapeRules(), torch.no_grad():
                    actual = call(x)
                assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
                assert actual.stride() == expected.stride()

    def test_counts_attention_on_meta_tensors(self) -> None:
        class Attention(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                tokens = x.flatten(2).transpose(1, 2)
                return torch.nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)

        counted = counters.count_operators(Attention(), (4, 5))
        assert counted.macs == counters.count_calls(Attention(), (4, 5)) == 2 * 20 * 20 * 3

    def test_counts_a_deformable_convolution_and_what_its_taps_sample(self) -> None:
        class Deformable(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                offsets, weight = x.new_zeros(1, 2 * 9, *x.shape[-2:]), x.new_zeros(8, 3, 3, 3)
                convolved: torch.Tensor = deform_conv2d(x, offsets, weight, padding=1)
                return convolved

        counted = counters.count_operators(Deformable(), (4, 5))
        assert counted.macs == counters.count_calls(Deformable(), (4, 5)) == 4 * 5 * 8 * 3 * 9
        assert counted.sampling == 4 * (4 * 5 * 3 * 9)

    @pytest.mark.parametrize(("mode", "each"), [("bilinear", 4), ("nearest", 0)])
    def test_bilinear_sampling_of_a_grid_is_four_multiply_adds_a_value(self, mode: str, each: int) -> None:
        class Sampler(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.nn.functional.grid_sample(x, x.new_zeros(1, 6, 7, 2), mode, align_corners=False)

        counted = counters.count_operators(Sampler(), (4, 5))
        assert (counted.macs, counted.sampling) == (0, each * 3 * 6 * 7)

    def test_modules_add_up_to_the_network(self) -> None:
        with torch.device("meta"):
            network = models.create("gun", 5, backbone="drn_d_22").eval().requires_grad_(False)
        counted = counters.count_operators(network, (64, 128))
        parts = {name: macs for name, macs in counted.by_module.items() if name and "." not in name}
        assert sum(parts.values()) == counted.by_module[""] == counted.macs
        assert max(parts, key=lambda name: parts[name]) == "encoder"

    @pytest.mark.parametrize(
        ("model", "options"),
        [
            ("spgnet", {"backbone": "resnet18"}),
            ("gun", {"guidance": "large-rf"}),
            ("alignseg", {"backbone": "resnet18s"}),
            ("semask", {"backbone": "swin_nano", "attention": "global"}),
        ],
    )
    def test_both_counters_agree_with_fvcore_which_computes_what_it_counts(
        self, model: str, options: dict[str, Any]
    ) -> None:
        class Logits(torch.nn.Module):
            def __init__(self, network: models.Segmenter):
                super().__init__()
                self.network = network

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = self.network(images).logits
                return logits

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what fvcore uses of torch, and of tracing
            analysis = pytest.importorskip("fvcore.nn").FlopCountAnalysis(
                Logits(models.create(model, 7, **options).eval()), torch.zeros(1, 3, 64, 96)
            )
            by_operator = (
                analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).by_operator()
            )
        products = ("conv", "linear", "matmul", "addmm", "bmm", "baddbmm", "einsum")
        with torch.device("meta"):
            network = models.create(model, 7, **options).eval().requires_grad_(False)
        counted = counters.count_operators(network, (64, 96))
        assert counted.macs == counters.count_calls(network, (64, 96))
        assert counted.macs == pytest.approx(sum(by_operator[name] for name in products), rel=0.01)

    def test_both_counters_agree_at_the_paper_s_own_scale(self, measured: Workspace) -> None:
        counts = pd.read_csv("results/complexity.csv")
        columns = "experiment model backbone parameters macs macs_check height width num_classes uncounted"
        assert list(counts.columns)[:10] == columns.split()
        assert (counts["macs"] == counts["macs_check"]).all()
        assert (counts["backbone"][0], counts["num_classes"][0]) == ("resnet50", 19)  # not the profile's

    def test_alignseg_counts_as_its_authors_wrote_it_too(self) -> None:
        with torch.device("meta"):
            network = models.create("alignseg", 19, backbone="resnet101s").eval().requires_grad_(False)
        ours = counters.count_calls(network, (1024, 2048))
        note = formulations.write_as_published(network)
        published = counters.count_calls(network, (1024, 2048))
        assert "auxiliary head" in note
        # What networks/alignseg.py of the authors' repository counts on tensors without content.
        assert published == 968_162_875_392
        assert ours < 0.86 * published

    def test_the_published_formulation_computes_the_same(self) -> None:
        images = torch.randn(1, 3, 64, 96)
        for model, options, multiplies_more in (
            ("alignseg", {"backbone": "resnet18s"}, True),
            ("gun", {"backbone": "drn_d_22"}, True),
            ("semask", {"backbone": "swin_nano"}, False),
        ):
            torch.manual_seed(0)
            network = models.create(model, 5, **options).eval()
            with torch.inference_mode():
                ours = network(images).logits
                assert bool(formulations.write_as_published(network)) is multiplies_more
                torch.testing.assert_close(network(images).logits, ours, rtol=1e-4, atol=1e-5)

    def test_only_what_changed_is_counted_again_and_equal_networks_once(
        self, prepared: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted = []
        create = models.create

        def remember(name: str, num_classes: int, **options: Any) -> models.Segmenter:
            counted.append(name)
            return create(name, num_classes, **options)

        monkeypatch.setattr(models, "create", remember)
        experiments = prepared.params["experiments"]
        # A loss's weight is no part of the network that is counted.
        experiments["semask-a"] = experiments["gun-small"] | {
            "model": "semask",
            "options": {"backbone": "swin_nano"},
        }
        experiments["semask-b"] = experiments["semask-a"] | {
            "options": {"backbone": "swin_nano", "prior_weight": 1.0}
        }
        prepared.write()
        assert not prepared.call("complexity")
        assert counted.count("semask") == 1
        counted.clear()
        experiments["gun-small"]["options"]["guidance"] = "high-res"
        prepared.write()
        assert not prepared.call("complexity")
        assert set(counted) == {"gun"}
        counts = pd.read_csv("results/complexity.csv").set_index("experiment")
        assert counts["macs"]["semask-a"] == counts["macs"]["semask-b"]


def test_speed_has_a_row_for_each_precision_and_says_where_it_ran(workspace: Workspace) -> None:
    workspace.profile["speed"] |= {"precisions": ["float32", "bfloat16"]}
    workspace.params["experiments"].pop("gun-small")
    workspace.write()
    assert not workspace.call("speed")
    timings = pd.read_csv("results/tiny/speed.csv")
    assert list(timings["precision"]) == ["float32", "bfloat16"]
    assert (timings["fps"] > 0).all()
    assert (timings["latency_ms_p95"] >= timings["latency_ms_median"]).all()
    assert timings["device"].str.len().min() > 3
    assert (timings["latency_ms_low"] <= timings["latency_ms_median"]).all()
    assert len(list(Path("results/tiny/speed").glob("ceilings-*"))) == 1
    assert (timings["compute_share"] > 0).all()


def test_every_network_is_timed_in_the_most_wanted_way_before_any_in_another(workspace: Workspace) -> None:
    workspace.profile["speed"] |= {"modes": ["eager", "channels-last"], "rounds": 2}
    workspace.write()
    params = load_params()
    names = [job.name for job in timing_jobs(params, params.runs())]
    eager = [f"{key} (float32, eager, batch 1)" for key in KEYS]
    assert names[:5] == ["what the device does at most", *eager, *eager]
    assert all("channels-last" in name for name in names[5:])


def test_what_a_device_cannot_run_is_a_row_with_its_reason(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    workspace.profile["speed"] |= {"modes": ["cuda-graphs", "eager"], "end_to_end": True}
    workspace.params["experiments"].pop("gun-small")
    workspace.write()
    assert not workspace.call("speed")
    timings = pd.read_csv("results/tiny/speed.csv")
    graphs = timings["mode"] == "cuda-graphs"
    assert timings.loc[graphs, "fps"].isna().all()
    assert timings.loc[graphs, "note"].str.contains("needs an NVIDIA GPU").all()
    assert (timings.loc[~graphs, "fps"] > 0).all()
    assert list(timings.loc[~graphs, "end_to_end"]) == [False, True]


class TestLatency:
    def test_interval_of_a_median_leaves_out_what_few_timings_cannot_tell(self) -> None:
        assert latency.interval([1.0, 2.0, 3.0]) == (1.0, 3.0)
        # Of 20 values the 6th and the 15th: the sign test's interval of 95.9 %.
        assert latency.interval([float(i) for i in range(1, 21)]) == (6.0, 15.0)

    def test_no_more_digits_than_the_interval_allows(self) -> None:
        noisy = latency.describe([0.010123, 0.014345, 0.012789], 1)
        assert noisy["latency_ms_median"] == 13
        assert noisy["fps"] == 78
        steady = latency.describe([0.0100123, 0.0100124, 0.0100125], 2)
        assert steady["latency_ms_median"] == 10.01
        assert steady["fps"] == 199.8


@pytest.mark.parametrize(
    "scores", [[50.0] * 6, [50.0, 50.2, 50.4, 50.6, 50.8, 51.0], [0.0] * 3 + [90.0] * 3],
    ids=("equal", "spread", "ends"),
)  # fmt: skip
def test_names_beside_points_cover_neither_each_other_nor_a_point(scores: list[float]) -> None:
    points = pd.DataFrame(
        {
            "name": [f"semask-{i}" for i in range(6)],
            "paper": "semask",
            "group": "published",
            "main": True,
            "score": scores,
            "cost": [40.0, 41.0, 42.0, 60.0, 61.0, 90.0],
        }
    )
    figure = figures.score_against_cost(points, "MACs", True)
    figure.draw_without_rendering()
    axes = figure.axes[0]
    boxes = [Text.get_window_extent(name) for name in axes.texts]
    dots = axes.transData.transform(points[["cost", "score"]].to_numpy())
    plt.close(figure)
    assert boxes
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert not any(box.contains(x, y) for box in boxes for x, y in dots)


def test_a_long_name_beside_intervals_starts_inside_the_figure(tmp_path: Path) -> None:
    """It is laid out as wide as it is in the SVG, whose letters are not fitted to pixels."""
    name = "gun: Encoder: two resolutions, shared weights (bilinear upsampling)"
    rows = pd.DataFrame({"name": [name], "value": [31.2], "low": [30.8], "high": [31.6], "verdict": [""]})
    context = Context(None, print, print)
    figures.draw(context, "intervals", ([("", "#0072b2", rows)], "mIoU %", False), tmp_path, "figure")
    starts = re.findall(r'translate\((\S+) \S+\)">gun: Encoder', (tmp_path / "figure.svg").read_text())
    assert len(starts) == 1
    assert float(starts[0]) > 0


def test_the_numbers_on_logarithmic_axes_can_be_read(tmp_path: Path) -> None:
    """Matplotlib writes them as formulas, which figures do not have: a name may hold dollar signs."""
    context = Context(None, print, print)
    lines = [{"name": "danet", "x": [0.1, 0.5, 2.0], "y": [1.0, 40.0, 3000.0], "low": [], "high": []}]
    figures.draw(context, "curves", (lines, "megapixels", "MACs", True), tmp_path, "figure")
    drawn = (tmp_path / "figure.svg").read_text()
    assert "mathdefault" not in drawn
    assert ">1000<" in drawn


HOSTILE = "</td><script>alert(1)</script> $x$ \\input{a} & % # _ ~ ^ | {b}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a*b*c", r"a\*b\*c"),
        ("`x` | y", r"\`x\` \| y"),
        ("[l](u) [a][b]", r"[l\](u) [a\][b]"),
        ("_e_ boundary_iou@4", r"\_e\_ boundary_iou@4"),
        ("<b> & \\n", r"&lt;b> & \\n"),
        ("[-0.21, +0.55]", "[-0.21, +0.55]"),
    ],
)
def test_a_name_means_itself_in_markdown(text: str, expected: str) -> None:
    assert rendering.escape_markdown(text) == expected


def test_every_latex_table_compiles_as_it_is(measured: Workspace) -> None:
    latex = shutil.which("pdflatex")
    if latex is None:
        pytest.skip("needs pdflatex ('apt-get install texlive-latex-recommended')")
    hostile = Table("hostile", HOSTILE, pd.DataFrame({HOSTILE: [Noted(HOSTILE, HOSTILE), "[λ] é"] * 25}))
    Path("reports/tables/hostile.tex").write_text(rendering.render(rendering.lay_out(hostile))["tex"])
    for name in ("hostile", "spgnet-cityscapes-test", "complexity"):
        command = [latex, "-halt-on-error", "-interaction=batchmode", f"{name}.tex"]
        done = subprocess.run(command, cwd="reports/tables", capture_output=True, text=True)
        log = Path(f"reports/tables/{name}.log").read_text(errors="replace")
        assert done.returncode == 0, log[-2000:]


def test_hostile_names_stay_text_in_every_format() -> None:
    table = Table("a-}b", HOSTILE, pd.DataFrame({HOSTILE: [Noted(HOSTILE, HOSTILE)]}))
    found = rendering.render(rendering.lay_out(table))
    assert "<script>" not in found["md"]
    head = found["md"].splitlines()[0]
    assert head.count("|") - head.count("\\|") == 2
    assert "\\input{" not in found["tex"]
    assert "\\label{tab:a-b}" in found["tex"]
    assert (
        r"\textbackslash{}input\{a\} \& \% \# \_ \textasciitilde{} \textasciicircum{} | \{b\}" in found["tex"]
    )


def test_a_page_of_hostile_names_holds_no_element_of_theirs_and_loads_nothing_from_outside(
    workspace: Workspace,
) -> None:
    workspace.params["experiments"]["gun-small"]["row"] = HOSTILE
    workspace.profile["description"] = HOSTILE
    shutil.copytree(ROOT / "results/published", "results/published")
    workspace.write()
    assert not workspace.call("prepare")
    assert not workspace.call("tables")
    assert not workspace.call("report")
    page = Path("reports/index.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert page.count("<script") == 1  # the page's own, and no other runs
    assert re.search(r"script-src 'sha256-[\w+/=]{44}'", page)
    loaded = re.findall(r'(?:src|href)="([^"]*)"', page) + re.findall(r"url\(([^)]*)\)", page)
    assert loaded
    assert not any(re.match(r"(?:[a-z]+:)?//|javascript:|data:text", name) for name in loaded)
