"""What trainings will take of the disk is said before they start."""

from __future__ import annotations

import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from conftest import Workspace

from experiments.config.params import load_params
from experiments.training.space import sizes

Usage = namedtuple("Usage", "total used free")


def test_more_than_is_free_is_said_and_less_is_not(
    prepared: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free = [10_000]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free[0]))
    assert not prepared.call("train", "gun-small")
    said = capsys.readouterr().err
    assert re.search(r"train: 1 training will take \S+ MB of weights and up to \S+ MB of checkpoints", said)
    free[0] = 10**9
    assert not prepared.call("train", "gun-small", "--seeds", "1")
    assert "will take" not in capsys.readouterr().err


def test_sizes_are_those_of_the_files(prepared: Workspace) -> None:
    assert not prepared.call("train", "gun-small")
    [(weights, checkpoint)] = sizes([(load_params().run("gun-small"), 19)])
    written = Path("results/tiny/train/gun-small/seed-0/weights.safetensors").stat().st_size
    assert weights == pytest.approx(written, rel=0.01)
    assert checkpoint == pytest.approx(2 * weights, rel=0.01)
