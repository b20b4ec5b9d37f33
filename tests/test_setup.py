"""What is refused before a training starts, and settings that change how it runs and not what it learns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Workspace

from experiments.running.devices import Devices

KEY = "spgnet-small"
SEED_0 = Path("results/tiny/train") / KEY / "seed-0"


def refused(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> str:
    """What a training says that does not start."""
    assert workspace.call("train", KEY) == "1"
    return capsys.readouterr().err


class TestRefused:
    def test_a_loss_on_masks_for_a_model_of_class_scores(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepared.params["recipes"]["plain"]["loss"] = {"name": "masks"}
        prepared.write()
        message = refused(prepared, capsys)
        assert "the loss 'masks' of recipe 'plain' does not fit the model" in message
        assert "predicts class scores" in message

    def test_a_loss_on_pixels_for_a_decoder_of_masks(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("transformers")
        options = {"backbone": "swin_nano", "decoder": "maskformer"}
        prepared.params["experiments"][KEY] |= {"model": "semask", "options": options}
        prepared.params["recipes"]["plain"]["loss"] = {"name": "ohem"}
        prepared.write()
        message = refused(prepared, capsys)
        assert "the loss 'ohem' of recipe 'plain' does not fit the model" in message
        assert "expected the loss 'masks'" in message

    def test_a_precision_that_the_device_does_not_have(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Devices, "supports", lambda _, precision: precision != "bfloat16")
        prepared.profile["training"]["precision"] = "bfloat16"
        prepared.write()
        message = refused(prepared, capsys)
        assert "precision is bfloat16, which" in message
        assert "profiles.tiny.training.precision" in message

    def test_a_batch_that_cannot_be_cut(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepared.profile["recipe"]["batch_size"] = 3
        prepared.profile["training"]["micro_batch"] = 2
        prepared.write()
        assert "micro_batch 2; take a divisor of 3" in refused(prepared, capsys)


def curve(workspace: Workspace, **settings: Any) -> list[float]:
    """The losses of a training with some settings of the profile."""
    workspace.profile["training"] |= {"log_every": 1} | settings
    workspace.write()
    assert not workspace.call("train", KEY)
    about = json.loads((SEED_0 / "run.json").read_text())
    assert {name: about[name] for name in settings} == settings
    return list(pd.read_csv(SEED_0 / "history.csv")["loss"])


@pytest.mark.parametrize(
    "setting",
    ["recompute", "channels_last", pytest.param("compile", marks=pytest.mark.recipes)],
)
def test_a_setting_of_the_machine_keeps_the_loss_curve(prepared: Workspace, setting: str) -> None:
    expected = curve(prepared)
    found = curve(prepared, **{setting: True})
    assert found[0] == pytest.approx(expected[0], rel=2e-3)
    # Sums in another order differ in the last digit, which batch norm over two images soon makes larger.
    assert found == pytest.approx(expected, rel=5e-2)


def test_run_json_has_the_groups_and_the_cut(prepared: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    prepared.profile["training"]["micro_batch"] = 1
    prepared.profile["recipe"]["crop"] = [64, 64]
    prepared.write()
    assert not prepared.call("train", KEY)
    assert "batch norm takes its statistics of 1 images at a time, not of the batch's 2" in (
        capsys.readouterr().out
    )
    about = json.loads((SEED_0 / "run.json").read_text())
    assert about["batch"] == {"batch": 2, "devices": 1, "part": 1, "parts": 2}
    assert {(row["part"], row["kind"]) for row in about["parameter_groups"]} == {
        ("rest", "batch-norms"),
        ("rest", "other weights"),
    }
