"""The whole pipeline as a user runs it: `dvc repro` in clones of this repository."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
from clones import STAGES, Clone, assert_same
from soak import Soak

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    clone = Clone(tmp_path_factory.mktemp("first") / "clone")
    assert clone.repro() == set(STAGES)
    return clone


@pytest.fixture(scope="module")
def expected(first: Clone) -> dict[str, bytes]:
    """What a clean run writes."""
    return first.generated()


def test_a_clean_run_writes_everything(first: Clone, expected: dict[str, bytes]) -> None:
    assert "results/tiny/train/gun-small/seed-0/weights.safetensors" in expected
    assert "results/tiny/evaluate/gun-small/seed-0.npz" in expected
    assert {"results/tiny/summary.csv", "results/tiny/claims.csv", "results/complexity.csv"} <= set(expected)


@pytest.mark.parametrize("workers", ["1", "3"])
def test_any_number_of_workers_writes_the_same_bytes(
    expected: dict[str, bytes], tmp_path: Path, workers: str
) -> None:
    clone = Clone(tmp_path / "clone")
    clone.stages("--workers", workers)
    assert_same(clone.generated(), expected)


def test_two_shards_one_after_the_other_write_the_same_bytes(
    expected: dict[str, bytes], tmp_path: Path
) -> None:
    clone = Clone(tmp_path / "clone")
    assert not clone.run("python", "-m", "experiments.prepare").returncode
    for stage in ("train", "evaluate"):
        for shard in ("1/2", "2/2"):
            done = clone.run("python", "-m", f"experiments.{stage}", "--shard", shard)
            assert done.returncode == 0, done.stderr
    # DVC, or whoever comes after, finds it done.
    clone.stages()
    assert_same(clone.generated(), expected)


def test_six_kills_leave_the_bytes_of_an_undisturbed_run(tmp_path: Path) -> None:
    """`make soak` does fifty."""
    soak = Soak(Clone(tmp_path / "clone"), random.Random(5))
    undisturbed = soak.undisturbed()
    for number in range(6):
        print(soak.kill(number))
    assert_same(soak.finish(), undisturbed)


def test_the_report_shows_every_figure_and_table(first: Clone) -> None:
    page = (first.folder / "reports/index.html").read_text()
    linked = set(re.findall(r'(?:href|src)="((?:figures|tables)/[^"]+)"', page))
    assert linked
    assert all((first.folder / "reports" / name).is_file() for name in linked)
    drawn = {f"figures/{path.name}" for path in (first.folder / "reports/figures").iterdir()}
    assert drawn <= linked
    assert "not comparable" in page


def test_metrics_and_plots_are_declared(first: Clone) -> None:
    shown = first.dvc("metrics", "show")
    assert "results/tiny/metrics/gun-small.json" in shown
    header = re.split(r"\s{2,}", shown.splitlines()[0].strip())
    assert set(header) == {"Path", "miou"}
    assert "index.html" in first.dvc("plots", "show")


def test_a_second_run_runs_nothing_and_a_change_runs_what_it_concerns(first: Clone) -> None:
    assert first.repro() == set()
    trained = {path: path.stat().st_mtime_ns for path in first.folder.rglob("weights.safetensors")}

    def retrained() -> set[str]:
        now = {path: path.stat().st_mtime_ns for path in first.folder.rglob("weights.safetensors")}
        changed = {path.parent.parent.name for path in now if now[path] != trained.get(path)}
        trained.update(now)
        return changed - {"earlier"}

    first.params["experiments"]["spgnet-small"]["options"]["stages"] = 1
    first.write()
    first.repro()
    assert retrained() == {"spgnet-small"}
    source = first.folder / "models/gun.py"
    source.write_text(source.read_text() + "# changed\n")
    first.repro()
    assert retrained() == {"gun-small"}
    # Another profile, and back: nothing is lost and nothing is done again.
    first.params["profiles"]["other"] = json.loads(json.dumps(first.profile))
    first.params["profiles"]["other"]["recipe"]["steps"] = 2
    first.params["profile"] = "other"
    first.write()
    first.repro()
    assert retrained() == {"spgnet-small", "gun-small"}
    first.params["profile"] = "tiny"
    first.write()
    first.repro()
    assert retrained() == set()
    assert first.repro() == set()


def test_an_experiment_of_dvcs_changes_one_setting(first: Clone) -> None:
    """`dvc exp run -S` trains what the setting concerns, and `dvc exp show` has its score."""
    first.dvc("exp", "run", "-n", "faster", "-S", "experiments.gun-small.options.guidance=fusion")
    shown = json.loads(first.dvc("exp", "show", "--json"))
    assert "gun-small.json" in json.dumps(shown)
    assert "faster" in first.dvc("exp", "list")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("guidence", "experiments.gun-small.options.guidence: unknown key; did you mean 'guidance'?"),
        ("profile", "tyni"),
        ("root", "nowhere: no such folder"),
    ],
)
def test_a_mistake_stops_before_anything_runs_and_loses_nothing(
    tmp_path: Path, change: str, message: str
) -> None:
    clone = Clone(tmp_path / "clone")
    kept = clone.folder / "data/prepared/tiny/kept"
    kept.mkdir(parents=True)
    if change == "guidence":
        clone.params["experiments"]["gun-small"]["options"]["guidence"] = "fusion"
    elif change == "profile":
        clone.params["profile"] = "tyni"
    else:
        clone.profile.update(datasets={"camvid": {"root": "nowhere"}}, stand_in="camvid")
    clone.write()
    done = clone.run("dvc", "repro")
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert kept.exists()
