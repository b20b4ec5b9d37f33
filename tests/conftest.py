"""A small world for the stages: a folder with a params file of two experiments and tiny pictures."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from experiments.running import command

ROOT = Path(__file__).resolve().parent.parent


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
        "backbones": {"resnet50": "resnet18"},
        "recipe": {
            "steps": 4,
            "batch_size": 2,
            "crop": [32, 64],
            "learning_rate": {"sgd": 0.02},
            "pretrained": False,
        },
        "training": {"workers": 0, "checkpoint_every": 2, "log_every": 2},
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
                "options": {"guidance": "none"},
                "dataset": "cityscapes",
                "recipe": "plain",
            },
        },
    }


class World:
    """A working folder with a params file."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.params = tiny_params()

    def write(self) -> World:
        """Writes params.yaml."""
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params, sort_keys=False))
        return self

    def call(self, name: str, *arguments: str) -> str:
        """Runs a stage in this process, without waiting for another interpreter to start.

        Returns:
            The line that it ends with on standard error, empty if it succeeds.
        """
        module = importlib.import_module(f"experiments.{name}")
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


def stage_environment() -> dict[str, str]:
    """The environment of a stage that is run as a command."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An empty working folder with tiny params; the test runs inside it."""
    monkeypatch.chdir(tmp_path)
    return World(tmp_path).write()


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
