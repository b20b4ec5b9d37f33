"""`evaluate --checkpoint` and `predict --checkpoint`: authors' weights, scored without training."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workspace
from PIL import Image
from released_checkpoints import semask_checkpoint
from torch import Tensor

import models
from experiments.config.params import load_params
from experiments.samples.network_input import NetworkInput
from experiments.samples.prepared import PreparedDataset
from experiments.samples.stream import EvaluationSamples
from experiments.scoring import metrics
from experiments.scoring.counts import Evaluation
from experiments.scoring.protocols import predict

KEY = "semask-small"
FILE = "semask.pth"
SCORES = Path(f"results/released/{KEY}.json")
COUNTS = SCORES.with_suffix(".npz")


@pytest.fixture
def workspace_with_released(workspace: Workspace) -> Workspace:
    """An experiment on a data set of its own, as the authors trained it, and their checkpoint."""
    workspace.profile["stand_in"] = None
    workspace.profile["evaluation"]["images_per_job"] = 2
    workspace.params["recipes"]["plain"] |= {
        "single_scale": {"short_sides": [[24, 96]]},
        "multi_scale": {"scales": [0.5, 1.0], "flip": True, "average": "softmax"},
    }
    workspace.params["experiments"] = {
        KEY: {
            "paper": "semask", "table": "ade20k-val", "row": "SeMask-T FPN", "model": "semask",
            "options": {"backbone": "swin_nano"}, "dataset": "scenes", "recipe": "plain",
        }
    }  # fmt: skip
    workspace.write()
    assert not workspace.call("prepare")
    save(semask_checkpoint(num_classes=19))
    return workspace


def save(state: dict[str, Tensor]) -> None:
    torch.save({"meta": {"epoch": 1}, "state_dict": state, "optimizer": {"lr": 0.1}}, FILE)


def expected_miou(kind: str) -> float:
    """Scored by hand: the model, the recipe's protocol, and one confusion matrix."""
    run = load_params().run(KEY)
    data = PreparedDataset.load(run)
    model = models.create("semask", 19, backbone="swin_nano")
    models.load_released(model, semask_checkpoint(num_classes=19))
    model.eval()
    samples = EvaluationSamples(data, NetworkInput.of_pretrained(run.paper_recipe))
    matrix = np.zeros((19, 19), np.int64)
    for image, labels, _ in (samples[i] for i in range(len(samples))):
        protocol: Any = getattr(run.paper_recipe, kind)
        scores = predict(lambda x: model(x).logits, image[None], protocol, (labels.shape[0], labels.shape[1]))
        predicted = scores.argmax(1)[0].to(torch.uint8).numpy()
        matrix += metrics.confusion_matrix(labels.numpy(), predicted, 19)
    hits = matrix.diagonal()
    return metrics.mean_of_present(metrics.iou(hits, matrix.sum(0) + matrix.sum(1) - hits))


def test_a_checkpoint_is_scored_by_the_papers_protocols(workspace_with_released: Workspace) -> None:
    assert not workspace_with_released.call("evaluate", KEY, "--checkpoint", FILE)
    scores = json.loads(SCORES.read_text())
    assert scores["miou"] == pytest.approx(expected_miou("single_scale"), abs=1e-3)
    assert scores["miou_ms"] == pytest.approx(expected_miou("multi_scale"), abs=1e-3)
    assert scores["checkpoint_sha256"] == hashlib.sha256(Path(FILE).read_bytes()).hexdigest()
    assert scores["protocol"]["single_scale"]["short_sides"] == [[24, 96]]
    assert (scores["dataset"], scores["split"]) == ("scenes", "val")


def test_its_scores_stand_in_a_column_of_their_own(workspace_with_released: Workspace) -> None:
    workspace_with_released.call("evaluate", KEY, "--checkpoint", FILE)
    miou = 100 * json.loads(SCORES.read_text())["miou"]
    assert not workspace_with_released.call("tables")
    table = Path("reports/tables/semask-ade20k-val.md").read_text()
    assert "mIoU %, released weights measured (val)" in table
    assert f"{miou:.2f}" in table
    # Of a recipe that has changed since, it is named and not shown.
    workspace_with_released.params["recipes"]["plain"]["single_scale"] = {}
    workspace_with_released.write()
    assert not workspace_with_released.call("tables")
    table = Path("reports/tables/semask-ade20k-val.md").read_text()
    assert "released weights measured (val)" not in table
    assert "scored with another recipe or code" in table


@pytest.mark.pipeline
def test_any_number_of_workers_counts_the_same(workspace_with_released: Workspace) -> None:
    counted = []
    for workers in ("1", "2", "3"):
        COUNTS.unlink(missing_ok=True)
        done = workspace_with_released.stage("evaluate", KEY, "--checkpoint", FILE, "--workers", workers)
        assert done.returncode == 0, done.stderr
        counted.append(COUNTS.read_bytes())
    assert counted[0] == counted[1] == counted[2]
    assert len(Evaluation.load(COUNTS).counts.images) == 3


def test_another_file_is_scored_again(workspace_with_released: Workspace) -> None:
    workspace_with_released.call("evaluate", KEY, "--checkpoint", FILE)
    before = json.loads(SCORES.read_text())
    save({name: tensor * 0.5 for name, tensor in semask_checkpoint(num_classes=19).items()})
    workspace_with_released.call("evaluate", KEY, "--checkpoint", FILE)
    after = json.loads(SCORES.read_text())
    assert after["checkpoint_sha256"] != before["checkpoint_sha256"]
    assert after["miou"] != before["miou"]


def test_predictions_of_released_weights(workspace_with_released: Workspace, tmp_path: Path) -> None:
    Image.new("RGB", (48, 32), (90, 120, 60)).save(tmp_path / "a.png")
    given = (KEY, str(tmp_path / "a.png"), "--out", "out", "--checkpoint", FILE, "--protocol", "multi")
    assert not workspace_with_released.call("predict", *given)
    with Image.open("out/labels/a.png") as picture:
        assert picture.size == (48, 32)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harmed"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "cannot be read as a checkpoint"),
        (pickle.dumps({"model": Harmful()}), "was not run"),
        (semask_checkpoint(num_classes=5), "num_classes=5 instead of 19"),
        ({**semask_checkpoint(num_classes=19), "extra.weight": torch.zeros(1)}, "'extra.weight' has no"),
        (dict(list(semask_checkpoint(num_classes=19).items())[1:]), "nothing in it for"),
        ({f"ema.{k}": v for k, v in semask_checkpoint(num_classes=19).items()}, "moving average"),
    ],
    ids=["text", "code", "classes", "extra", "missing", "average"],
)
def test_a_file_that_does_not_fit_gets_one_line(
    workspace_with_released: Workspace,
    content: bytes | dict[str, Tensor],
    message: str,
) -> None:
    if isinstance(content, bytes):
        Path(FILE).write_bytes(content)
    else:
        torch.save(content, FILE)
    said = workspace_with_released.call("evaluate", KEY, "--checkpoint", FILE)
    assert message in said
    assert "\n" not in said
    assert not SCORES.exists()
    assert not Path("harmed").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((KEY, "--checkpoint", "gone.pth"), "no file 'gone.pth'"),
        (("--checkpoint", FILE), "takes one experiment"),
        ((KEY, "--checkpoint", FILE, "--seeds", "1"), "takes one experiment"),
    ],
)
def test_what_cannot_be_asked_for(
    workspace_with_released: Workspace, arguments: tuple[str, ...], message: str
) -> None:
    assert message in workspace_with_released.call("evaluate", *arguments)


def test_a_profile_without_the_data_set_is_told(workspace_with_released: Workspace) -> None:
    workspace_with_released.params["experiments"][KEY]["dataset"] = "cityscapes"
    workspace_with_released.profile["stand_in"] = "scenes"
    workspace_with_released.write()
    said = workspace_with_released.call("evaluate", KEY, "--checkpoint", FILE)
    assert "is scored on cityscapes at its own size" in said
