"""A small workspace for the stages: a folder with a params file of two experiments and tiny pictures."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from experiments.running import command

ROOT = Path(__file__).resolve().parent.parent
_WITH_WORKERS = ("train", "evaluate", "complexity", "speed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow tests come first: at the end one worker would wait for the other's."""
    items.sort(key=lambda item: item.get_closest_marker("pipeline") is None)


def tiny_params() -> dict[str, Any]:
    """Params that train two experiments on a few generated pictures in seconds."""
    recipe = {
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "steps": 100,
        "batch_size": 8,
        "crop": [512, 512],
        "input_size": [64, 96],
        "augmentation": {"mirror": True, "scale": [0.5, 2.0], "colour": {"brightness": 0.2, "hue": 0.1}},
    }
    profile = {
        "description": "tests",
        "datasets": {"scenes": {"train": 6, "val": 3, "height": 32, "width": 64}},
        "image_size": None,
        "stand_in": "scenes",
        "backbones": {"resnet50": "resnet18_narrow"},
        "options": {},
        "recipe": {
            "steps": 4,
            "batch_size": 2,
            "crop": [32, 64],
            "learning_rate": {"sgd": 0.02},
            "pretrained": False,
        },
        "recipes": {},
        "experiments": {},
        "training": {"threads": 1, "checkpoint_every": 2, "log_every": 2},
        "evaluation": {"batch_size": 2, "trimap_widths": [1, 3], "gallery": 2},
        "speed": {"size": [32, 64], "warmup": 0, "repetitions": 2},
    }
    return {
        "profile": "tiny",
        "seeds": [0],
        "profiles": {"tiny": profile},
        "recipes": {"plain": recipe},
        "experiments": {
            "spgnet-small": {
                "paper": "spgnet",
                "table": "cityscapes-test",
                "row": "SPGNet, 2 x ResNet-50",
                "model": "spgnet",
                "options": {"backbone": "resnet50", "stages": 2},
                "dataset": "cityscapes",
                "recipe": "plain",
            },
            "gun-small": {
                "paper": "gun",
                "table": "ablation",
                "row": "multi, shared",
                "model": "gun",
                "options": {"backbone": "drn_d_14_narrow", "guidance": "none"},
                "dataset": "cityscapes",
                "recipe": "plain",
            },
        },
        "claims": {},
    }


class Workspace:
    """A working folder with a params file."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.params = tiny_params()

    @property
    def profile(self) -> dict[str, Any]:
        """The profile in force."""
        profile: dict[str, Any] = self.params["profiles"][self.params["profile"]]
        return profile

    def write(self) -> Workspace:
        """Writes params.yaml."""
        # Through JSON, which knows no aliases: params.yaml refuses them.
        plain = json.loads(json.dumps(self.params))
        (self.folder / "params.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
        return self

    def call(self, name: str, *arguments: str) -> str:
        """Runs a stage in this process, without waiting for another interpreter to start.

        Returns:
            The line that it ends with, empty if it succeeds.
        """
        module = importlib.import_module(f"experiments.{name}")
        if name in _WITH_WORKERS and "--workers" not in arguments:
            arguments = (*arguments, "--workers", "0")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *arguments])
            try:
                command.run(name, module.main)
            except SystemExit as stopped:
                return str(stopped.code)
        return ""

    def stage(self, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs a stage as a command."""
        return subprocess.run(
            [sys.executable, "-m", f"experiments.{name}", *arguments],
            cwd=self.folder,
            env=stage_environment() | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )


def workers_in(folder: Path) -> list[int]:
    """Other processes than this one that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if Path(os.readlink(process / "cwd")) == folder and int(process.name) != os.getpid():
                found.append(int(process.name))
    return found


def wait_until_gone(folder: Path, seconds: float = 120) -> None:
    """Waits for the processes that work in a folder to end."""
    deadline = time.monotonic() + seconds
    while found := workers_in(folder):
        assert time.monotonic() < deadline, f"still running: {found}"
        time.sleep(0.02)


def stage_environment() -> dict[str, str]:
    """The environment of a stage that is run as a command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """An empty working folder with tiny params; the test runs inside it."""
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path).write()


@pytest.fixture
def prepared(workspace: Workspace) -> Workspace:
    """A workspace whose data are prepared."""
    assert not workspace.call("prepare")
    return workspace


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    """A folder in CamVid's layout: three training and two validation pairs of 24 x 32."""
    return make_camvid(tmp_path / "camvid")


def make_camvid(root: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for folder in (split, f"{split}annot"):
            (root / folder).mkdir(parents=True)
        for i in range(count):
            image = generator.integers(0, 256, (24, 32, 3), np.uint8)
            labels = generator.integers(0, 12, (24, 32), np.uint8)
            Image.fromarray(image).save(root / split / f"{split}_{i}.png")
            Image.fromarray(labels).save(root / f"{split}annot" / f"{split}_{i}.png")
    return root
