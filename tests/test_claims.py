"""The claims stage on counts that are made up, so that every effect is known."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, Workspace

from experiments import datasets
from experiments.config.params import load_params
from experiments.datasets.base import DataError
from experiments.reporting import references
from experiments.reporting.drawing import Drawing, Measured
from experiments.reporting.evidence import gather
from experiments.reporting.measurements import present
from experiments.reporting.papers import Ablation, PaperPage
from experiments.reporting.sections import ablations
from experiments.reporting.summary import complexity, speed, summarise
from experiments.reporting.tables import ablation_tables
from experiments.running import storage
from experiments.samples.identity import Identities
from experiments.scoring.counts import Counts, Evaluation

IMAGES, CLASSES, WIDTHS = 40, 19, [1, 3]
LEVELS = {"spgnet-small": 0.60, "gun-small": 0.50, "gun-same-level": 0.50, "gun-guided": 0.55}
"""IoU of each experiment."""
NOISE = 0.004
"""Standard deviation between trainings."""


def claim(better: str, worse: str | None = None, metric: str = "miou", **more: Any) -> dict[str, Any]:
    """An entry of ``claims``."""
    entry: dict[str, Any] = {
        "paper": better.split("-")[0],
        "says": f"{better} over {worse}",
        "source": "question",
    }
    sides: dict[str, Any] = {"better": better, "worse": worse} if worse else {"better": better}
    return entry | sides | {"metric": metric} | more


CLAIMS = {
    "true": claim("spgnet-small", "gun-small", published=9.0),
    "false": claim("gun-small", "spgnet-small"),
    "unclear": claim("gun-same-level", "gun-small"),
    "by-more-than-5": claim("spgnet-small", "gun-small", margin=5.0),
    "at-boundaries": claim("spgnet-small", "gun-small", "boundary_iou@3"),
    "of-a-class": claim("spgnet-small", "gun-small", "class_iou@road"),
    "of-a-rare-class": claim("spgnet-small", "gun-small", "class_iou@train"),
    "same-network": claim("gun-guided", "gun-guided@bilinear"),
    "no-guidance": claim("gun-small", "gun-small@bilinear"),
    "one-training": claim("spgnet-small", "spgnet-twin"),
    "repeated": claim("spgnet-twin", "gun-small"),
    "no-such-band": claim("spgnet-small", "gun-small", "boundary_iou@2"),
    "other-protocol": claim("spgnet-small", "gun-small", "miou_ms"),
    "elsewhere": claim("spgnet-small", "gun-small", dataset="cityscapes"),
    "not-scored": claim("gun-unscored", "gun-small"),
    "heavier": claim("spgnet-small", "gun-small", "parameters_ratio", margin=2.0),
    "lighter": claim("gun-small", "spgnet-small", "macs"),
    "fast": claim("gun-small", None, "fps", margin=0.001),
}


def made_up_counts(level: float, seed: int, key: str, widths: Sequence[int] = WIDTHS) -> Counts:
    """Counts of a network with this IoU on every image, class and band, but for chance."""
    generator = np.random.default_rng((seed, *key.encode()))
    training = NOISE * generator.standard_normal()
    unions = np.random.default_rng(0).integers(2000, 4000, (IMAGES, 1 + len(widths), CLASSES))
    unions[3:, :, 16] = 0  # trains, on three images only
    share = level + training + 0.01 * generator.standard_normal(unions.shape)
    hits = np.rint(unions * share.clip(0, 1)).astype(np.int64)
    return Counts([f"image-{i}" for i in range(IMAGES)], list(widths), hits, unions, unions)


def fake(levels: Mapping[str, float], seconds: float = 0.9) -> None:
    """Trainings and counts of experiments by their level, as the stages would leave them."""
    params = load_params()
    identities = Identities(params.runs(), params.seeds)
    for key, level in levels.items():
        for seed in params.seeds:
            identity = identities.of(key, seed)
            folder = params.paths.training(key, seed)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "weights.safetensors").touch()
            about = {
                "digest": identity.training, "seconds_per_step": seconds, "recipe": {"steps": 4000},
                "device": "a device", "commit": "c0ffee", "uncommitted_changes": False,
                "time": "2026-01-02T03:04:05+00:00",
            }  # fmt: skip
            storage.write_json(folder / "run.json", about)
            bilinear = made_up_counts(0.50, seed, key) if key == "gun-guided" else None
            confusion = np.eye(CLASSES, dtype=np.int64)
            counts = made_up_counts(level, seed, key, params.active.evaluation.trimap_widths)
            Evaluation(identity.scoring, counts, confusion, bilinear, None).save(
                params.paths.counts(key, seed)
            )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = Workspace(tmp_path_factory.mktemp("claims"))
    experiments = workspace.params["experiments"]
    variants: dict[str, dict[str, Any]] = {
        "gun-same-level": {"auxiliary_weight": 0.0, "guidance": "none"},
        "gun-guided": {"guidance": "fusion"},
        "gun-unscored": {"guidance": "high-res"},
    }
    for key, options in variants.items():
        chosen = {"backbone": "drn_d_14_narrow", **options}
        experiments[key] = experiments["gun-small"] | {"options": chosen}
    experiments["spgnet-twin"] = experiments["spgnet-small"] | {"row": "the same under another name"}
    workspace.params["seeds"] = [0, 1, 2, 3, 4]
    workspace.params["claims"] = CLAIMS
    workspace.profile["evaluation"]["gallery"] = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.folder)
        assert not workspace.write().call("prepare")
        fake(LEVELS)
        assert not workspace.call("evaluate", *LEVELS, "spgnet-twin")
        assert not workspace.call("complexity", "spgnet-small", "gun-small")
        for stage in ("claims", "tables"):
            assert not workspace.call(stage)
    return workspace.folder


@pytest.fixture
def measured(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with five seeds of four experiments, and their claims."""
    workspace = Workspace(tmp_path / "copy")
    shutil.copytree(finished, workspace.folder)
    monkeypatch.chdir(workspace.folder)
    workspace.params = json.loads(json.dumps(load_params().model_dump(mode="json")))
    return workspace


@pytest.fixture(scope="module")
def kept(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of references with one that was kept of it."""
    folder = tmp_path_factory.mktemp("kept") / "copy"
    shutil.copytree(finished, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert not Workspace(folder).call("claims", "--keep", "first")
    return folder / "results/reference"


@pytest.fixture
def reference(measured: Workspace, kept: Path) -> Path:
    """A reference beside the run that it was kept of."""
    shutil.copytree(kept, "results/reference")
    return Path("results/reference/first")


def verdicts(path: str | Path = "results/tiny/claims.csv") -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False, dtype=str).set_index("claim")


class TestVerdicts:
    def test_every_claim_has_a_row_with_the_promised_columns(self, finished: Path) -> None:
        table = verdicts(finished / "results/tiny/claims.csv")
        assert list(table.index) == list(CLAIMS)
        assert list(table)[:13] == [
            "paper", "metric", "better", "worse", "seeds", "images", "difference", "low", "high", "p",
            "verdict", "published", "source",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("key", "verdict", "reason"),
        [
            ("true", "supported", ""),
            ("false", "contradicted", ""),
            ("unclear", "open", "if effect and spread stay as they are"),
            ("by-more-than-5", "supported", ""),
            ("at-boundaries", "supported", ""),
            ("of-a-class", "supported", ""),
            ("of-a-rare-class", "not measured", "3 images hold the class 'train'; at least 10 are needed"),
            ("same-network", "supported", ""),
            ("no-guidance", "not measured", "gun-small has no learned upsampling to take away"),
            ("one-training", "not measured", "both sides are one training under this profile"),
            ("repeated", "not measured", "the same trainings as of '"),
            ("no-such-band", "not measured", "no band of 2 pixels; add it to trimap_widths"),
            ("other-protocol", "not measured", "not scored by the multi-scale protocol here"),
            ("elsewhere", "not measured", "needs cityscapes; measured on scenes"),
            ("not-scored", "not measured", "gun-unscored: not scored; run"),
            ("heavier", "does not hold", ""),
            ("lighter", "holds", ""),
            ("fast", "not measured", "gun-small: not timed; run 'python -m experiments.speed'"),
        ],
    )
    def test_each_verdict(self, finished: Path, key: str, verdict: str, reason: str) -> None:
        row = verdicts(finished / "results/tiny/claims.csv").loc[key]
        assert row["verdict"] == verdict
        assert reason in row["reason"]
        assert bool(row["p"]) == (verdict in ("supported", "contradicted", "open"))
        assert bool(row["difference"]) == (verdict != "not measured")

    @pytest.mark.parametrize(
        ("together", "reason"), [(2, ""), (8, "40 images, of 5 sequences; at least 10 are needed")]
    )
    def test_images_of_one_sequence_count_as_one(
        self, measured: Workspace, monkeypatch: pytest.MonkeyPatch, together: int, reason: str
    ) -> None:
        """Here in pairs, which leave enough, and eight by eight, which do not."""

        def sequences(cls: type, names: list[str]) -> list[str]:
            return [str(number // together) for number in range(len(names))]

        before = verdicts().loc["unclear"]
        assert (before["images"], before["sequences"]) == ("40", "40")
        monkeypatch.setattr(datasets.dataset_class("scenes"), "sequences", classmethod(sequences))
        Path("results/tiny/claims.json").unlink()
        assert not measured.call("claims")
        row = verdicts().loc["unclear"]
        assert row["reason"].startswith(reason)
        if not reason:
            assert (row["images"], row["sequences"]) == ("40", str(40 // together))
            assert row["images_low"] != before["images_low"]

    def test_a_data_set_that_is_no_more_is_named(self) -> None:
        with pytest.raises(DataError, match="there is no data set 'gone', which says what its images are of"):
            datasets.sequences("gone", ["a"])

    @pytest.mark.parametrize(
        ("key", "baseline", "claim"),
        [
            ("spgnet-small", "gun-small", "true"),
            ("gun-small", "spgnet-small", "false"),
            ("gun-small", "gun-same-level", "unclear"),
            ("spgnet-twin", "gun-small", "true"),
            ("gun-guided", "gun-small", ""),
        ],
    )
    def test_an_ablation_has_the_verdict_of_the_claim_in_either_direction(
        self, measured: Workspace, key: str, baseline: str, claim: str
    ) -> None:
        params = load_params()
        run = gather(params, present(params)).run
        row = run.verdict(key, baseline)
        assert (row["claim"] if row else "") == claim

    @staticmethod
    def compared(*pairs: tuple[str, str]) -> tuple[pd.DataFrame, list[Drawing]]:
        """The table and the figures of a page with these ablations."""
        params = load_params()
        found = present(params)
        evidence = gather(params, found)
        summary = summarise(params, found.scores, found.reasons, complexity(params))
        page = PaperPage("gun", "GUN", ablations=(Ablation("Sizes", pairs),))
        shown = Measured(params, list(params.experiments), [page], evidence, summary, speed(params))
        return ablation_tables(params, evidence, summary, page)[0].rows, ablations(shown)

    def test_one_comparison_under_two_names_is_shown_once(self, measured: Workspace) -> None:
        table, drawings = self.compared(
            ("spgnet-small", "gun-small"), ("spgnet-twin", "gun-small"), ("spgnet-twin", "spgnet-small")
        )
        cells = list(table["Difference, this run"])
        assert float(cells[0]) == pytest.approx(10, abs=1)
        assert [(cell.value, cell.note) for cell in cells[1:]] == [
            (None, "as spgnet-small beside gun-small: the same trainings here"),
            (None, "both are one and the same here"),
        ]
        assert [len(drawing.arguments[0][0][2]) for drawing in drawings] == [1, 1]

    def test_one_experiment_beside_two_has_a_name_for_each(self, measured: Workspace) -> None:
        _, drawings = self.compared(
            ("gun-guided", "gun-small"), ("gun-guided", "spgnet-small"), ("spgnet-small", "gun-small")
        )
        names = drawings[-1].arguments[0][0][2]["name"]
        beside = [name.split("beside ")[1] for name in names if "beside" in name]
        assert beside == ["gun-small", "spgnet-small"]
        assert (len(names), names.nunique()) == (3, 3)

    def test_what_a_killed_process_left_half_written_goes_though_nothing_is_to_do(
        self, measured: Workspace
    ) -> None:
        ended = subprocess.Popen(["true"])
        ended.wait()
        left = []
        for name in ("claims.csv", "claims.json"):
            left.append(storage._beside(Path("results/tiny") / name, "partial"))
            left[-1] = left[-1].with_name(left[-1].name.replace(str(os.getpid()), str(ended.pid)))
            left[-1].write_text("half")
        assert not measured.call("claims")
        assert [path for path in left if path.exists()] == []

    def test_a_damaged_table_is_written_again(self, measured: Workspace) -> None:
        path = Path("results/tiny/claims.csv")
        before = path.read_bytes()
        path.write_text("a,b\n")
        assert not measured.call("claims")
        assert path.read_bytes() == before

    def test_dvc_shows_how_many_are_decided(self, finished: Path) -> None:
        shown = json.loads((finished / "results/tiny/metrics/claims/verdicts.json").read_text())
        counts = verdicts(finished / "results/tiny/claims.csv")["verdict"].value_counts()
        assert shown == {name: counts[name] for name in ("supported", "contradicted", "open")}

    def test_a_difference_is_of_the_scores_that_evaluate_wrote(self, measured: Workspace) -> None:
        row = {str(name): str(value) for name, value in verdicts().loc["true"].items()}
        scores = [json.loads(Path(f"results/tiny/evaluate/{key}.json").read_text()) for key in LEVELS]
        assert float(row["difference"]) == pytest.approx(
            100 * (scores[0]["miou"] - scores[1]["miou"]), abs=1e-3
        )
        assert (row["seeds"], row["images"], row["published"]) == ("5", str(IMAGES), "9.0")
        for ends in (("low", "high"), ("seeds_low", "seeds_high"), ("images_low", "images_high")):
            assert 8 < float(row[ends[0]]) < float(row["difference"]) < float(row[ends[1]]) < 12

    @pytest.mark.parametrize("section", ["experiments", "recipes"])
    def test_sides_that_a_profile_trains_differently_are_not_compared(
        self, measured: Workspace, section: str
    ) -> None:
        measured.params["recipes"]["own"] = {"extends": "plain"}
        measured.params["experiments"]["gun-small"]["recipe"] = "own"
        measured.profile[section] = {"gun-small" if section == "experiments" else "own": {"steps": 3}}
        measured.write()
        fake({"gun-small": 0.5})
        assert not measured.call("evaluate", *LEVELS)
        assert not measured.call("claims")
        row = verdicts().loc["true"]
        assert (row["verdict"], row["difference"]) == ("not measured", "")
        assert (
            row["reason"]
            == "under this profile gun-small is trained with steps 3, and the other side otherwise"
        )
        assert verdicts().loc["same-network", "verdict"] == "supported"

    def test_an_exception_that_changes_nothing_is_none(self, measured: Workspace) -> None:
        measured.profile["experiments"] = {"gun-small": {"steps": measured.profile["recipe"]["steps"]}}
        measured.write()
        assert not measured.call("claims")
        assert verdicts().loc["true", "verdict"] == "supported"

    def test_two_seeds_are_too_few(self, measured: Workspace) -> None:
        measured.params["seeds"] = [0, 1]
        measured.write()
        assert not measured.call("evaluate", *LEVELS)
        assert not measured.call("claims")
        assert verdicts().loc["true", "reason"] == "2 seeds; at least 3 are needed"

    def test_a_time_at_another_size_is_not_the_papers(self, measured: Workspace) -> None:
        measured.params["claims"] = {"fast": CLAIMS["fast"]}
        measured.write()
        assert not measured.call("speed", "gun-small")
        assert not measured.call("claims")
        assert verdicts().loc["fast", "reason"] == "timed at 32 x 64; the claim is of 64 x 96"
        measured.profile["speed"]["size"] = [64, 96]
        measured.write()
        assert not measured.call("speed", "gun-small")
        assert not measured.call("claims")
        assert verdicts().loc["fast", "verdict"] == "holds"

    def test_nothing_is_done_twice_and_a_changed_claim_is_judged_again(
        self, measured: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = Path("results/tiny/claims.csv").read_bytes()
        assert not measured.call("claims")
        assert "as it was" in capsys.readouterr().out
        measured.params["claims"]["true"]["margin"] = 20.0
        measured.write()
        assert not measured.call("claims")
        assert verdicts().loc["true", "verdict"] == "contradicted"
        measured.params["claims"]["true"]["margin"] = None
        measured.write()
        assert not measured.call("claims")
        assert Path("results/tiny/claims.csv").read_bytes() == before

    def test_other_images_on_one_side_are_refused(self, measured: Workspace) -> None:
        path = Path("results/tiny/evaluate/gun-small/seed-2.npz")
        found = Evaluation.load(path)
        found.counts.images[0] = "another"
        found.save(path)
        Path("results/tiny/claims.csv").unlink()
        assert measured.call("claims") == (
            f"claims: {path}: other images than the other experiments; run 'python -m experiments.evaluate'"
        )


class TestThePlan:
    def test_names_open_claims_with_seeds_and_hours(
        self, measured: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        capsys.readouterr()
        assert not measured.call("claims", "--plan")
        lines = [line for line in capsys.readouterr().out.splitlines() if line.endswith("unclear")]
        assert len(lines) == 1
        hours, seeds, trainings = lines[0].split()[1:4]
        assert int(trainings) == 2 * (int(seeds) - 5)
        assert float(hours) == pytest.approx(int(trainings) * 1.0)  # of 0.9 s times 4000 steps

    def test_says_what_three_seeds_would_cost(
        self, measured: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        measured.params["seeds"] = [0]
        measured.write()
        assert not measured.call("evaluate", *LEVELS)
        capsys.readouterr()
        assert not measured.call("claims", "--plan")
        said = capsys.readouterr().out
        line = next(line for line in said.splitlines() if line.endswith("true"))
        assert line.split()[1:4] == ["4.00", "3", "4"]


Damage = Callable[[Path], object]


def edit(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Changes a JSON file of a reference."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


class TestReferences:
    def test_verdicts_are_computed_again_from_the_kept_counts_alone(
        self, measured: Workspace, reference: Path
    ) -> None:
        kept = (reference / "claims.csv").read_bytes()
        (reference / "claims.csv").unlink()
        for folder in ("results/tiny", "data", "results/complexity"):
            shutil.rmtree(folder)
        (reference / "claims.csv").write_bytes(kept.replace(b"supported", b"open"))
        assert not measured.call("claims", "--from", "first")
        assert (reference / "claims.csv").read_bytes() == kept

    def test_it_says_where_its_numbers_come_from(self, reference: Path) -> None:
        about = json.loads((reference / "about.json").read_text())
        assert about["device"] == ["a device"]
        assert (about["commits"], about["date"], about["seeds"]) == (
            ["c0ffee"],
            "2026-01-02",
            [0, 1, 2, 3, 4],
        )
        assert about["training_hours"] == pytest.approx(20.0)
        text = Path("results/reference/README.md").read_text()
        for fact in ("## first", "scenes, val", "a device", "`c0ffee`", "2026-01-02", "| supported |"):
            assert fact in text

    def test_it_keeps_only_the_bands_that_a_claim_is_about(self, reference: Path) -> None:
        kept = Evaluation.load(reference / "evaluate/gun-small/seed-0.npz").counts
        whole = Evaluation.load(Path("results/tiny/evaluate/gun-small/seed-0.npz")).counts
        assert kept.widths == [3]
        np.testing.assert_array_equal(kept.unions[:, 1], whole.unions[:, 2])
        assert kept.mean_iou() == whole.mean_iou()

    def test_it_grows_by_what_another_run_of_the_same_settings_measures(
        self, measured: Workspace, reference: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = {file: file.read_bytes() for file in reference.rglob("*") if file.is_file()}
        for first, second in (("spgnet", "gun"), ("gun", "spgnet")):
            shutil.rmtree(reference)
            for paper in (first, second):
                self.leave_out({"spgnet": "gun", "gun": "spgnet"}[paper])
                assert not measured.call("tables")
                capsys.readouterr()
                assert not measured.call("claims", "--keep", "first")
                self.put_back()
            said = capsys.readouterr().out
            assert "in it already, and of the present settings: " + first in said
            for file, content in whole.items():
                assert file.read_bytes() == content, file

    def test_what_is_of_other_settings_does_not_stay_in_it(
        self, measured: Workspace, reference: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        measured.params["recipes"]["plain"]["momentum"] = 0.5
        measured.write()
        fake({"gun-small": 0.5})
        assert not measured.call("evaluate", "gun-small")
        assert not measured.call("tables")
        capsys.readouterr()
        assert not measured.call("claims", "--keep", "first")
        assert "claims: no longer in it: spgnet-small, " in capsys.readouterr().out
        about = json.loads((reference / "about.json").read_text())
        assert list(about["experiments"]) == ["gun-small"]
        assert [path.stem for path in (reference / "evaluate").glob("*.json")] == ["gun-small"]

    def test_it_has_the_counts_of_an_experiment_whose_owner_is_not_scored(
        self, measured: Workspace, reference: Path
    ) -> None:
        # As after "evaluate spgnet-twin", which scores the training of spgnet-small under its own name alone.
        Path("results/tiny/evaluate/spgnet-small.json").unlink()
        assert not measured.call("tables")
        assert not measured.call("claims", "--keep", "first")
        table = verdicts(reference / "claims.csv")["verdict"]
        assert (table["repeated"], table["true"]) == ("supported", "not measured")
        counts = reference / "evaluate/spgnet-small/seed-1.npz"
        kept = counts.read_bytes()
        # And if another run adds to the reference.
        self.leave_out("spgnet")
        assert not measured.call("tables")
        assert not measured.call("claims", "--keep", "first")
        assert counts.read_bytes() == kept

    @pytest.mark.parametrize("seeds", ["seed-1", "seed-*"])
    def test_what_lost_its_counts_does_not_stay_in_it(
        self, measured: Workspace, reference: Path, capsys: pytest.CaptureFixture[str], seeds: str
    ) -> None:
        for file in (reference / "evaluate/spgnet-small").glob(f"{seeds}.npz"):
            file.unlink()
        self.leave_out("spgnet")
        assert not measured.call("tables")
        capsys.readouterr()
        assert not measured.call("claims", "--keep", "first")
        assert "claims: no longer in it: spgnet-small, spgnet-twin" in capsys.readouterr().out
        assert not (reference / "evaluate/spgnet-small.json").exists()

    @staticmethod
    def leave_out(paper: str) -> None:
        """Puts the scores of a paper's experiments out of the way."""
        for file in Path("results/tiny/evaluate").glob(f"{paper}-*"):
            file.rename(file.with_name(f"away-{file.name}"))

    @staticmethod
    def put_back() -> None:
        for file in Path("results/tiny/evaluate").glob("away-*"):
            file.rename(file.with_name(file.name.removeprefix("away-")))

    def test_tables_and_report_show_it_beside_the_present_run(
        self, measured: Workspace, reference: Path
    ) -> None:
        for stage in ("tables", "report"):
            assert not measured.call(stage)
        table = pd.read_csv("reports/tables/claims.csv", dtype=str)
        same = (table["Compared"] == "gun-small - spgnet-small") & (table["Metric"] == "miou")
        row = table[same].iloc[0]
        assert row["Verdict, reference first"] == "contradicted"
        # The present run is the one that was kept: no table shows its numbers twice.
        assert not [column for column in table if "this run" in str(column)]
        scores = pd.read_csv("reports/tables/gun-ablation.csv")
        assert "mIoU %, reference first" in scores
        assert Path("reports/figures/claims.svg").is_file()
        assert "conclusions come from the" in Path("reports/index.html").read_text()

    def test_an_experiment_that_is_another_one_now_has_no_number_in_it(
        self, measured: Workspace, reference: Path
    ) -> None:
        measured.params["experiments"]["gun-small"]["options"]["guidance"] = "large-rf"
        measured.write()
        assert not measured.call("claims", "--from", "first")
        row = verdicts(reference / "claims.csv").loc["true"]
        assert row["reason"] == "gun-small: has other settings in reference 'first'"

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda f: (f / "about.json").unlink(), "about.json: no such file"),
            (edit("about.json", lambda a: a.update(schema=0)), "about.json: has schema 0, expected 1"),
            (edit("about.json", lambda a: a.pop("seeds")), "about.json: has no 'seeds'"),
            (lambda f: (f / "evaluate/gun-small.json").unlink(), "evaluate/gun-small.json: no such file"),
            (
                lambda f: (f / "evaluate/gun-small/seed-1.npz").unlink(),
                "gun-small/seed-1.npz: no such file; take it from git, or keep it again",
            ),
            (
                lambda f: (f / "evaluate/gun-small/seed-1.npz").write_bytes(b"PK"),
                "File is not a zip file); take it from git, or keep it again",
            ),
            (
                lambda f: (f / "complexity.csv").write_text("a\n"),
                "complexity.csv: has no column 'experiment'",
            ),
            (
                edit("evaluate/gun-small.json", lambda s: s.pop("split")),
                "evaluate/gun-small.json: not scores of this edition, 'split' is missing",
            ),
            (
                edit("evaluate/gun-small.json", lambda s: s["seeds"].pop()),
                "has the seeds [0, 1, 2, 3], and",
            ),
            (
                edit("evaluate/gun-small.json", lambda s: s.update(dataset="camvid")),
                "dataset is 'camvid' and in",
            ),
        ],
    )
    def test_a_damaged_one_is_refused_in_one_line(
        self, measured: Workspace, reference: Path, damage: Damage, message: str
    ) -> None:
        damage(reference)
        said = measured.call("claims", "--from", "first")
        assert said.startswith("claims: results/reference/first/")
        assert message in said
        assert "\n" not in said

    def test_an_unknown_one_names_those_that_there_are(self, measured: Workspace, reference: Path) -> None:
        assert measured.call("claims", "--from", "second") == (
            "claims: results/reference/second: no such reference; there is first"
        )

    @pytest.mark.parametrize("name", ["../elsewhere", "A name"])
    def test_a_name_that_is_no_folders_is_refused(self, measured: Workspace, name: str) -> None:
        assert "expected a name of the characters" in measured.call("claims", "--keep", name)

    def test_nothing_is_kept_of_nothing(self, workspace: Workspace) -> None:
        assert "nothing is scored to keep" in workspace.call("claims", "--keep", "first")
        assert not Path("results/reference").exists()


def test_a_default_run_has_tables_and_a_report_beside_the_committed_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `make reproduce` ends with; its own data set has other classes than a reference's."""
    monkeypatch.chdir(tmp_path)
    params = (ROOT / "params.yaml").read_text()
    # Pictures would need trained weights.
    Path("params.yaml").write_text(params.replace("gallery: 4", "gallery: 0"))
    for folder in ("results/published", "results/reference"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    workspace = Workspace(tmp_path)
    assert not workspace.call("prepare")
    fake(dict.fromkeys(load_params().experiments, 0.5))
    for stage in ("evaluate", "claims", "tables", "report"):
        assert not workspace.call(stage), stage
    names = json.loads(Path("reports/tables/tables.json").read_text())
    assert {"claims", "gun-cityscapes-test", "gun-confusion-gun-fusion", "peers"} <= set(names)
    assert Path("reports/index.html").is_file()
    # The reference's, as it kept what it counted, and not those of a run whose scores say nothing.
    shown = pd.read_csv("reports/tables/gun-confusion-gun-fusion.csv", index_col="Class")
    counts = Path("results/reference/camvid-cpu/evaluate/gun-fusion").glob("seed-*.npz")
    total = np.sum([Evaluation.load(path).confusion for path in counts], axis=0)
    np.testing.assert_allclose(shown.to_numpy(), 100 * total / total.sum(1, keepdims=True), atol=0.051)


def test_the_committed_references_are_described_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    params = load_params()
    kept = [references.load(name, params) for name in references.names()]
    assert (ROOT / "results/reference/README.md").read_text() == references.readme(kept)


def test_the_readme_gives_every_verdict_of_the_reference_and_no_other() -> None:
    table = verdicts(ROOT / "results/reference/camvid-cpu/claims.csv")
    again = verdicts(ROOT / "results/reference/camvid-cpu-replication/claims.csv")
    tested = table[table["verdict"].isin(["supported", "contradicted", "open"]) & (table["unit"] == "points")]
    decided = tested[tested["verdict"] != "open"]

    def shown(table: pd.DataFrame, key: str) -> str:
        row = {str(name): str(value) for name, value in table.loc[key].items()}
        low, high = (f"{float(row[end]):+.1f}" for end in ("low", "high"))
        return f"{float(row['difference']):+.1f} [{low}, {high}] | {row['verdict']} |"

    expected = {f"| `{key}` | {shown(table, key)} {shown(again, key)}" for key in map(str, decided.index)}
    said = " ".join((ROOT / "README.md").read_text().split())
    result = r"\S+ \[\S+ \S+\] \| (?:supported|contradicted|open) \|"
    given = re.findall(rf"\| `[a-z0-9-]+` \| {result} {result}", said)
    assert sorted(given) == sorted(expected)
    assert f"Of the {len(tested)} claims about scores that it tests {len(decided)} have a verdict" in said


def test_a_published_difference_is_that_of_the_published_scores() -> None:
    params = load_params(ROOT / "params.yaml")
    numbers = pd.concat(pd.read_csv(path) for path in (ROOT / "results/published").glob("*.csv"))
    values = numbers.set_index(["paper", "table", "row", "metric"])["value"]
    for key, each in params.claims.items():
        if each.published is None or not each.what.is_score:
            continue
        found = [params.experiments[side.experiment] for side in each.sides().values()]
        better, worse = (values[e.paper, e.table, e.row, each.metric] for e in found)
        assert each.published == pytest.approx(better - worse), key
