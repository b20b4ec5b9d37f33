"""Copies of this repository, in which whole pipelines run as a user runs them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from conftest import ROOT, Workspace, stage_environment

STAGES = ("prepare", "train", "evaluate", "complexity", "speed", "claims", "tables", "report")
COMPARED = tuple(stage for stage in STAGES if stage != "report")
"""The stages that write what is compared, or what it is a function of."""
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

    @property
    def environment(self) -> dict[str, str]:
        """Of commands that run on the clone's own sources."""
        return {**stage_environment(), "PYTHONPATH": str(self.folder)}

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command in the clone, on the clone's own sources."""
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=900
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
        """Runs the stages that write what is compared, with options for those that have workers."""
        for stage in COMPARED:
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
    """Fails with the names of the files that one of two runs lacks, or that differ."""
    one_has = sorted(set(ours) ^ set(theirs))
    assert not one_has, f"one run has {one_has}"
    differing = [name for name in ours if ours[name] != theirs[name]]
    assert not differing, f"two runs differ in {differing}"
