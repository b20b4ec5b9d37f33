"""The whole pipeline as a user runs it: `dvc repro` in clones of this repository."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, World, stage_environment

pytestmark = pytest.mark.pipeline

NOT_REPRODUCIBLE = re.compile(r"(^|/)(speed\b|run\.json$)")
"""Timings and provenance, which may differ between two runs."""


class Clone(World):
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
        self.write()
        for arguments in (["init", "-q"], ["add", "-A"]):
            subprocess.run(["git", *arguments], cwd=folder, check=True)

    def dvc(self, *arguments: str) -> str:
        """Output of a dvc command, which has to succeed."""
        # Not the tests' own copy of the sources, but the clone's.
        environment = {**stage_environment(), "PYTHONPATH": str(self.folder)}
        done = subprocess.run(
            ["dvc", *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def repro(self) -> set[str]:
        """Runs the pipeline; names of the stages that it ran."""
        return set(re.findall(r"Running stage '([^']+)'", self.dvc("repro")))

    def generated(self) -> dict[str, bytes]:
        """What the pipeline wrote and promises to write again, by path."""
        files = [
            path
            for folder in ("results", "reports/tables")
            for path in (self.folder / folder).rglob("*")
            if path.is_file() and not NOT_REPRODUCIBLE.search(path.relative_to(self.folder).as_posix())
        ]
        return {path.relative_to(self.folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    clone = Clone(tmp_path_factory.mktemp("first") / "clone")
    clone.repro()
    return clone


def test_two_clean_runs_write_the_same_bytes(first: Clone, tmp_path: Path) -> None:
    second = Clone(tmp_path / "clone")
    second.repro()
    ours, theirs = first.generated(), second.generated()
    assert set(ours) == set(theirs)
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert "results/train/gun-small/seed-0/weights.safetensors" in ours
    assert "results/summary.csv" in ours


def test_the_report_shows_every_figure_and_table(first: Clone) -> None:
    page = (first.folder / "reports/index.html").read_text()
    linked = set(re.findall(r'(?:href|src)="((?:figures|tables)/[^"]+)"', page))
    assert linked
    assert all((first.folder / "reports" / name).is_file() for name in linked)
    drawn = {f"figures/{path.name}" for path in (first.folder / "reports/figures").iterdir()}
    assert drawn <= linked
    assert "not comparable" in page


def test_metrics_and_plots_are_declared(first: Clone) -> None:
    assert "results/evaluate/gun-small.json" in first.dvc("metrics", "show")
    assert "index.html" in first.dvc("plots", "show")
    columns = (first.folder / "results/summary.csv").read_text().splitlines()[0].split(",")
    (plot,) = yaml.safe_load((ROOT / "dvc.yaml").read_text())["plots"]
    assert {plot["results/summary.csv"]["x"], plot["results/summary.csv"]["y"]} <= set(columns)


def test_a_second_run_runs_nothing_and_a_change_runs_what_it_concerns(first: Clone) -> None:
    assert first.repro() == set()
    first.params["experiments"]["spgnet-small"]["options"]["stages"] = 1
    first.write()
    both = {"complexity", "speed", "tables", "report"}
    assert first.repro() == {"train@spgnet-small", "evaluate@spgnet-small"} | both
    source = first.folder / "models/gun.py"
    source.write_text(source.read_text() + "# changed\n")
    assert {stage for stage in first.repro() if "@" in stage} == {"train@gun-small", "evaluate@gun-small"}


def test_a_typing_error_stops_before_anything_runs(tmp_path: Path) -> None:
    clone = Clone(tmp_path / "clone")
    clone.params["experiments"]["gun-small"]["options"]["guidence"] = "fusion"
    clone.write()
    done = subprocess.run(
        ["dvc", "repro"], cwd=clone.folder, env=stage_environment(), capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "experiments.gun-small.options.guidence: unknown key; did you mean 'guidance'?" in done.stderr
    assert not (clone.folder / "data").exists()


def test_dvc_follows_every_source_of_a_training() -> None:
    from experiments import train
    from experiments.running import sources

    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    followed = set(stages["train"]["do"]["deps"])
    for model in ("spgnet", "gun", "semask", "alignseg"):
        needed = {path.relative_to(ROOT).as_posix() for path in sources.files([f"models.{model}"])}
        needed |= {f"experiments/{name}.py" for name in train.SOURCES}
        folders = ("models/parts", "models/backbones", "models/decoders")
        needed = {next((f for f in folders if name.startswith(f"{f}/")), name) for name in needed}
        assert needed - {f"models/{model}.py"} <= followed
        assert f"models/{model}.py" not in followed  # only through the experiment's own model
    assert "models/${item.model}.py" in followed
    assert all(
        (ROOT / name).exists() for name in followed if "$" not in name and not name.startswith("data/")
    )
