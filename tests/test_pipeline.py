"""The whole pipeline as a user runs it: `dvc repro` in clones of this repository."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT, Workspace, stage_environment

pytestmark = pytest.mark.pipeline

STAGES = ("prepare", "train", "evaluate", "complexity", "speed", "claims", "tables", "report")
NOT_REPRODUCIBLE = re.compile(r"(^|/)(speed(\b|/)|run\.json$|report\.json$|claims\.json$)")
"""Timings and provenance, which may differ between two runs."""


class Clone(Workspace):
    """A copy of the repository with tiny params, in a git repository of its own."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        for name in ("models", "experiments", ".dvc", "dvc.yaml", ".dvcignore", ".gitignore"):
            source = ROOT / name
            if source.is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "cache", "tmp")
                shutil.copytree(source, folder / name, ignore=ignored)
            else:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, folder / name)
        shutil.copytree(ROOT / "results/published", folder / "results/published")
        (folder / "results/reference").mkdir()
        shutil.copy(ROOT / "results/reference/README.md", folder / "results/reference")
        self.write()
        for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "clone"]):
            author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
            subprocess.run(["git", *author, *arguments], cwd=folder, check=True)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the clone, on the clone's own sources."""
        environment = {**stage_environment(), "PYTHONPATH": str(self.folder)}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=900
        )

    def dvc(self, *arguments: str) -> str:
        """Output of a dvc command, which has to succeed."""
        done = self.run("dvc", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self) -> set[str]:
        """Runs the pipeline; names of the stages that it ran."""
        return set(re.findall(r"Running stage '([^']+)'", self.dvc("repro")))

    def stages(self, *spreading: str) -> None:
        """Runs the stages by themselves, with options for those that have workers."""
        for stage in STAGES:
            with_workers = stage in ("train", "evaluate", "complexity")
            done = self.run("python", "-m", f"experiments.{stage}", *(spreading if with_workers else ()))
            assert done.returncode == 0, f"{stage}: {done.stdout}{done.stderr}"

    def generated(self) -> dict[str, bytes]:
        """What the pipeline wrote and promises to write again, by path."""
        files = [
            path
            for folder in ("results", "reports/tables")
            for path in (self.folder / folder).rglob("*")
            if path.is_file() and not NOT_REPRODUCIBLE.search(path.relative_to(self.folder).as_posix())
        ]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in files}


def assert_same(ours: dict[str, bytes], theirs: dict[str, bytes]) -> None:
    assert set(ours) == set(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []


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


def test_kills_at_random_moments_leave_the_same_bytes(expected: dict[str, bytes], tmp_path: Path) -> None:
    clone = Clone(tmp_path / "clone")
    clone.profile["training"]["checkpoint_every"] = 1
    clone.write()
    assert not clone.run("python", "-m", "experiments.prepare").returncode
    chance = random.Random(5)
    environment = {**stage_environment(), "PYTHONPATH": str(clone.folder)}
    for stage in ("train", "evaluate"):
        for number in chance.sample([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL], 4)[:3]:
            command = ["python", "-m", f"experiments.{stage}"]
            running = subprocess.Popen(command, cwd=clone.folder, env=environment)
            with suppress(subprocess.TimeoutExpired):
                running.wait(chance.uniform(1, 8 if stage == "train" else 3))
            running.send_signal(number)
            running.wait()
            partial = [p for p in clone.folder.rglob("*.safetensors") if p.stat().st_size == 0]
            assert partial == []
        assert clone.run("python", "-m", f"experiments.{stage}").returncode == 0
    clone.stages()
    found = clone.generated()
    # The number of steps between checkpoints is not part of what a training is.
    assert_same(found, expected)


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
    assert set(header) == {"Path", "miou", "pixel_accuracy"}
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
