"""What `train --dry-run` and `train --tensorboard` say and write."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import Workspace
from PIL import Image

from experiments.config.params import load_params
from experiments.reporting.generated import generated_data

KEY = "spgnet-small"


class TestDryRun:
    def test_it_says_what_would_happen_and_shows_samples_without_a_data_set(
        self, workspace: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        workspace.params["recipes"]["plain"]["warmup"] = {"steps": 50}
        workspace.write()
        assert not workspace.stage("train", KEY, "--dry-run", "--timed-steps", "1").returncode
        folder = Path("results/tiny/dry-run") / KEY
        plan = json.loads((folder / "plan.json").read_text())
        assert plan["data"] == "generated pictures"
        assert plan["schedule"][0] == {"step": 0, "learning_rate": pytest.approx(0.02e-5)}
        assert plan["batch"] == {"images": 2, "devices": 1, "part": 2, "parts": 1.0}
        assert plan["hours"] == pytest.approx(4 * plan["timed"]["seconds_a_part"] / 3600)
        assert {row["part"] for row in plan["parameter_groups"]} == {"rest"}
        assert plan["memory_mib"]["activations"] > 1
        with Image.open(folder / "samples.png") as sheet:
            assert sheet.size == (6 * 64, 2 * 2 * 32)
        assert not Path("results/tiny/train").exists()

    def test_on_a_cpu_two_images_are_timed_of_a_batch_that_is_not_cut(self, workspace: Workspace) -> None:
        workspace.profile["recipe"]["batch_size"] = 6
        workspace.write()
        assert not workspace.call("train", KEY, "--dry-run", "--timed-steps", "1")
        plan = json.loads(Path(f"results/tiny/dry-run/{KEY}/plan.json").read_text())
        assert plan["batch"] == {"images": 6, "devices": 1, "part": 6, "parts": 1.0}
        assert plan["timed"]["images"] == 2
        assert plan["hours"] == pytest.approx(4 * 3 * plan["timed"]["seconds_a_part"] / 3600)

    def test_it_needs_keys_and_a_profile_needs_it(self, workspace: Workspace) -> None:
        assert "--dry-run needs the keys" in workspace.call("train", "--dry-run")
        assert "--profile is for --dry-run" in workspace.call("train", KEY, "--profile", "tiny")
        assert "--timed-steps is for --dry-run" in workspace.call("train", KEY, "--timed-steps", "4")
        message = workspace.call("train", KEY, "--dry-run", "--profile", "tyni")
        assert "unknown profile 'tyni'; did you mean 'tiny'?" in message

    def test_generated_pictures_have_the_size_and_classes_of_the_data_set(
        self, workspace: Workspace, tmp_path: Path
    ) -> None:
        workspace.profile["datasets"]["camvid"] = {"root": "nowhere"}
        workspace.profile["stand_in"] = "camvid"
        workspace.write()
        data = generated_data(load_params().run(KEY), tmp_path, 2)
        assert len(data.classes) == len(data.train.class_pixels) == 11
        assert sum(data.train.class_pixels) > 0
        with Image.open(data.train.samples[1].image) as picture:
            assert picture.size == (480, 360)


class Written:
    """In the place of TensorBoard's writer: what it is given, by tag."""

    folders: dict[str, dict[str, list[Any]]] = {}

    def __init__(self, folder: str):
        self.tags: dict[str, list[Any]] = {}
        self.folders[folder] = self.tags

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.tags.setdefault(tag, []).append((step, value))

    def add_image(self, tag: str, picture: Any, step: int, dataformats: str) -> None:
        self.tags.setdefault(tag, []).append((step, picture.shape, dataformats))

    def close(self) -> None:
        self.tags["closed"] = []


class TestTensorboard:
    def test_curves_are_written_and_change_nothing(
        self, prepared: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        weights = Path("results/tiny/train") / KEY / "seed-0/weights.safetensors"
        assert not prepared.call("train", KEY)
        expected = weights.read_bytes()
        (weights.parent / "run.json").unlink()
        stand_in = ModuleType("torch.utils.tensorboard")
        monkeypatch.setattr(stand_in, "SummaryWriter", Written, raising=False)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", stand_in)
        assert not prepared.call("train", KEY, "--tensorboard", "curves")
        tags = Written.folders[f"curves/{KEY}-seed-0"]
        assert {"training/loss", "training/main", "training/learning_rate", "closed"} <= set(tags)
        assert [step for step, _ in tags["training/loss"]] == [2, 4]
        assert [step for step, _ in tags["validation/mIoU"]] == [2, 4]
        assert all(0 <= value <= 100 for _, value in tags["validation/mIoU"])
        assert tags["validation/image, labels, prediction"][0] == (2, (3 * 32, 64, 3), "HWC")
        assert weights.read_bytes() == expected

    def test_without_tensorboard_one_line_says_how_to_get_it(
        self, prepared: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        assert prepared.call("train", KEY, "--tensorboard", "curves") == "1"
        assert "pip install tensorboard" in capsys.readouterr().err
