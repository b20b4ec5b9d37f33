"""The layout: which folder may import which, and that everything stands where it says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from experiments import datasets
from experiments.datasets import preparation
from experiments.running import digests

LAYERS = ("running", "config", "datasets", "samples", "training", "scoring", "measuring", "reporting")
STAGES = {
    "prepare", "train", "evaluate", "complexity", "speed", "claims", "tables", "report",
}  # fmt: skip
COMMANDS = STAGES | {"cluster", "predict"}


def modules() -> dict[str, Path]:
    """Every module of the code by its dotted name."""
    found = {}
    for package in ("models", "experiments"):
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of this repository that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # A package of which only modules are imported is not itself what is imported.
            found |= names if names <= set(known) else {node.module, *names}
    return {name for name in found if name in known}


def test_only_commands_stand_at_the_top() -> None:
    files = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert files - {"__init__"} == COMMANDS
    folders = {path.name for path in (ROOT / "experiments").iterdir() if (path / "__init__.py").exists()}
    assert folders == set(LAYERS)


def test_folders_import_downwards_only_and_no_stage_imports_a_stage() -> None:
    known = modules()
    wrong = []
    for name, path in known.items():
        parts = name.split(".")
        for other in imports(path, known):
            target = other.split(".")
            if parts[0] == "models":
                wrong += [(name, other)] * (target[0] == "experiments")
                continue
            if target[0] == "models" or len(target) < 2 or len(parts) < 2:
                continue
            own = LAYERS.index(parts[1]) if parts[1] in LAYERS else len(LAYERS)
            below = LAYERS.index(target[1]) if target[1] in LAYERS else len(LAYERS)
            if below > own or (own == below == len(LAYERS) and parts[1] != target[1]):
                wrong.append((name, other))
    assert wrong == []


def test_no_import_goes_in_a_circle() -> None:
    known = modules()
    graph = {name: imports(path, known) - {name} for name, path in known.items()}
    state: dict[str, int] = {}

    def visit(name: str, trail: list[str]) -> None:
        state[name] = 1
        for other in sorted(graph[name]):
            assert state.get(other) != 1, " -> ".join([*trail, name, other])
            if other not in state:
                visit(other, [*trail, name])
        state[name] = 2

    for name in graph:
        if name not in state:
            visit(name, [])


def test_dvc_follows_the_folders_that_decide_a_result() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert set(stages) == STAGES
    assert {"models", *digests.TRAINING_CODE} <= set(stages["train"]["deps"])
    assert {"models", *digests.SCORING_CODE} <= set(stages["evaluate"]["deps"])
    assert {"models", *digests.COUNTING_CODE} <= set(stages["complexity"]["deps"])
    assert {"models", *digests.TIMING_CODE} <= set(stages["speed"]["deps"])
    assert {"experiments/reporting", "results/published"} <= set(stages["tables"]["deps"])
    for name, stage in stages.items():
        assert stage["cmd"] == f"python -m experiments.{name}"
        followed = [
            dep for dep in stage["deps"] if "$" not in dep and not dep.startswith(("results", "reports"))
        ]
        assert all((ROOT / dep).exists() for dep in followed)
        # DVC removes an output before a stage starts unless it persists; a stage never does.
        outputs = [*stage.get("outs", []), *stage.get("metrics", [])]
        assert all(isinstance(out, dict) and next(iter(out.values()))["persist"] for out in outputs)


def test_dvc_prepares_again_when_code_changed_that_prepared_data_depend_on() -> None:
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["prepare"]["deps"]
    followed = [ROOT / dep for dep in deps if dep.startswith("experiments")]
    for name in datasets.names():
        for path in digests._imported(preparation.modules(name)):
            if path != ROOT / "experiments/__init__.py":
                assert any(path == each or each in path.parents for each in followed), path


@pytest.mark.parametrize("stage", sorted(COMMANDS))
def test_a_stage_starts_without_torch(stage: str) -> None:
    """Whether there is something to do is found out without importing what takes seconds."""
    found = "sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
    code = f"import sys, experiments.{stage}; print({found})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    allowed = {"tables": "['pandas']"}
    assert done.stdout.strip() == allowed.get(stage, "[]")


def test_the_code_of_a_model_is_what_it_imports() -> None:
    def names(*found: str) -> set[str]:
        return {path.relative_to(ROOT).as_posix() for path in digests._imported(found)}

    gun = names("models.gun")
    assert {"models/gun.py", "models/backbones/drn.py", "models/segmenter.py", "models/__init__.py"} <= gun
    assert not gun & {"models/spgnet.py", "models/semask.py", "models/alignseg.py"}
    # Any model may stand on any backbone, so an edit to one of ours concerns them all.
    assert "models/backbones/drn.py" in names("models.spgnet")


def test_a_digest_of_code_changes_with_a_file_of_its_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/gun.py").write_text("from models import parts\n")
    (tmp_path / "models/parts.py").write_text("a = 1\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/b.py").write_text("b = 1\n")
    monkeypatch.setattr(digests, "ROOT", tmp_path)
    found = []
    for name, text in (("models/gun.py", None), ("models/parts.py", "a = 2\n"), ("folder/b.py", "b = 2\n")):
        if text:
            (tmp_path / name).write_text(text)
        for function in (digests.of_code, digests._imports, digests._path):
            function.cache_clear()
        found.append(digests.of_code(("models.gun",), ("folder",)))
    for function in (digests.of_code, digests._imports, digests._path):
        function.cache_clear()
    assert len(set(found)) == 3
