from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Workspace
from PIL import Image
from safetensors.torch import save_file

import models
from experiments.scoring.counts import Evaluation

KEY = "spgnet-small"
WEIGHTS = Path("results/tiny/train") / KEY / "seed-0/weights.safetensors"
SCORES = Path(f"results/tiny/evaluate/{KEY}.json")


@pytest.fixture
def trained(prepared: Workspace) -> Workspace:
    assert not prepared.call("train", KEY)
    return prepared


def test_scores_and_keeps_a_few_predictions(trained: Workspace) -> None:
    assert not trained.call("evaluate", KEY)
    scores = json.loads(SCORES.read_text())
    only = scores["seeds"][0]
    known = [iou for iou in only["class_iou"].values() if iou is not None]
    assert scores["miou"] == only["miou"] == pytest.approx(sum(known) / len(known), abs=1e-6)
    assert len(only["image_iou"]) == 3
    assert set(only["boundary_iou"]) == {"1", "3"}
    assert (scores["split"], scores["same_training_as"], scores["same_scores_as"]) == ("val", None, None)
    kept = list(Path(f"results/tiny/predictions/{KEY}").glob("*.png"))
    assert len(kept) == 2
    with Image.open(kept[0]) as picture:  # looks like what it says, instead of black
        assert picture.mode == "P"
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 1
        assert np.asarray(picture).max() < 19


def test_scores_can_be_summed_again_from_the_counts_by_image(trained: Workspace) -> None:
    assert not trained.call("evaluate", KEY)
    only = json.loads(SCORES.read_text())["seeds"][0]
    found = Evaluation.load(Path(f"results/tiny/evaluate/{KEY}/seed-0.npz"))
    union = found.counts.unions[:, 0].sum(0)
    iou = found.counts.intersections[:, 0].sum(0)[union > 0] / union[union > 0]
    assert only["miou"] == pytest.approx(iou.mean(), abs=1e-6)
    confusion = np.array(only["confusion"])
    np.testing.assert_array_equal(confusion.sum(1), found.counts.labelled[:, 0].sum(0))
    np.testing.assert_array_equal(np.diag(confusion), found.counts.intersections[:, 0].sum(0))


def test_a_band_has_the_score_of_its_own_width(trained: Workspace) -> None:
    trained.profile["evaluation"]["trimap_widths"] = [500, 1, 3]
    trained.write()
    assert not trained.call("evaluate", KEY)
    only = json.loads(SCORES.read_text())["seeds"][0]
    assert only["boundary_iou"]["500"] == only["miou"]  # wider than the image: the band is the whole of it
    assert only["boundary_iou"]["1"] != only["miou"]


def test_guided_upsampling_is_also_scored_without_guidance(prepared: Workspace) -> None:
    experiments = prepared.params["experiments"]
    experiments["gun-small"]["options"] = {"backbone": "drn_d_14_narrow", "guidance": "fusion"}
    experiments["swin-gum"] = experiments["gun-small"] | {
        "model": "semask",
        "options": {"backbone": "swin_nano", "guided_upsampling": True, "semantic_stages": []},
    }
    # Offsets start at zero, where guided upsampling is bilinear, and so small a rate keeps them there.
    prepared.profile["recipe"]["learning_rate"] = {"sgd": 1e-12}
    prepared.write()
    for key in ("gun-small", "swin-gum"):
        assert not prepared.call("train", key)
        assert not prepared.call("evaluate", key)
        scores = json.loads(Path(f"results/tiny/evaluate/{key}.json").read_text())
        assert scores["boundary_iou_bilinear"] == pytest.approx(scores["boundary_iou"], abs=1e-4)
        assert scores["miou_bilinear"] == pytest.approx(scores["miou"], abs=1e-4)


def test_experiments_that_share_a_training_share_its_scores_and_say_so(prepared: Workspace) -> None:
    experiments = prepared.params["experiments"]
    experiments["gun-small"]["options"] = {"backbone": "drn_d_14_narrow", "guidance": "fusion"}
    experiments["gun-same"] = experiments["gun-small"] | {"row": "the same under another name"}
    experiments["gun-nearest"] = experiments["gun-small"] | {
        "options": {"backbone": "drn_d_14_narrow", "guidance": "fusion", "sampling": "nearest"}
    }
    prepared.write()
    keys = ("gun-small", "gun-same", "gun-nearest")
    assert not prepared.call("train", *keys)
    assert not prepared.call("evaluate", *keys)
    first, same, nearest = (json.loads(Path(f"results/tiny/evaluate/{key}.json").read_text()) for key in keys)
    assert first["same_training_as"] is None
    assert same["same_training_as"] == same["same_scores_as"] == "gun-small"
    assert same["seeds"] == first["seeds"]
    # Another form of sampling at inference is another score of the same weights.
    assert (nearest["same_training_as"], nearest["same_scores_as"]) == ("gun-small", None)
    assert not Path("results/tiny/evaluate/gun-same/seed-0.npz").exists()


def test_other_images_are_scored_without_training_again(trained: Workspace) -> None:
    assert not trained.call("evaluate", KEY)
    before, written = json.loads(SCORES.read_text()), WEIGHTS.stat().st_mtime_ns
    trained.profile["datasets"]["scenes"]["val"] = 5
    trained.write()
    assert not trained.call("prepare")
    assert not trained.call("evaluate", KEY)
    after = json.loads(SCORES.read_text())
    assert len(after["seeds"][0]["image_iou"]) == 5
    assert after["miou"] != before["miou"]
    assert WEIGHTS.stat().st_mtime_ns == written


def test_what_is_scored_is_not_scored_again(trained: Workspace) -> None:
    assert not trained.call("evaluate", KEY)
    before = {path: path.stat().st_mtime_ns for path in Path("results/tiny/evaluate").rglob("*")}
    assert not trained.call("evaluate", KEY)
    assert {path: path.stat().st_mtime_ns for path in Path("results/tiny/evaluate").rglob("*")} == before


@pytest.mark.parametrize("name", [f"{KEY}.json", f"{KEY}/seed-0.npz"])
def test_damaged_results_are_measured_again(trained: Workspace, name: str) -> None:
    assert not trained.call("evaluate", KEY)
    path = Path("results/tiny/evaluate") / name
    expected = path.read_bytes()
    path.write_bytes(expected[: len(expected) // 2])
    assert not trained.call("evaluate", KEY)
    assert path.read_bytes() == expected


class TestRefusals:
    def refusal(self, workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> str:
        capsys.readouterr()
        assert workspace.call("evaluate", KEY) == "1"
        (line, *_) = capsys.readouterr().err.splitlines()
        return line

    def test_weights_of_another_model(self, trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
        save_file(models.create("spgnet", 19, backbone="resnet18", stages=1).state_dict(), WEIGHTS)
        assert "weights.safetensors: weights of another model" in self.refusal(trained, capsys)

    def test_weights_that_are_cut_off(self, trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
        whole = WEIGHTS.read_bytes()
        WEIGHTS.write_bytes(whole[:-1000])
        said = self.refusal(trained, capsys)
        assert "weights.safetensors: does not decode" in said
        assert f"run 'python -m experiments.train {KEY}' again" in said
        assert not trained.call("train", KEY)
        assert "weights.safetensors: " in capsys.readouterr().err
        assert WEIGHTS.read_bytes() == whole
        assert not trained.call("evaluate", KEY)

    def test_weights_of_other_settings(self, trained: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
        trained.profile["recipe"]["steps"] = 5
        trained.write()
        expected = f"{KEY} seed 0: is not trained; run 'python -m experiments.train {KEY}' first"
        assert expected in self.refusal(trained, capsys)

    def test_of_several_the_trained_ones_are_scored(
        self, trained: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert trained.call("evaluate") == "1"
        assert "gun-small seed 0: is not trained" in capsys.readouterr().err
        assert SCORES.is_file()

    def test_images_of_different_sizes_in_one_batch(
        self, workspace: Workspace, camvid: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for folder, pixels in (("val", (20, 40, 3)), ("valannot", (20, 40))):
            Image.fromarray(np.zeros(pixels, np.uint8)).save(camvid / folder / "val_0.png")
        workspace.profile.update(datasets={"camvid": {"root": str(camvid)}}, stand_in="camvid")
        workspace.profile["evaluation"]["batch_size"] = 1
        workspace.write()
        for stage in ("prepare", "train"):
            assert not workspace.call(stage, *([KEY] if stage == "train" else []))
        workspace.profile["evaluation"]["batch_size"] = 2
        workspace.write()
        assert "set evaluation.batch_size to 1 in the profile" in self.refusal(workspace, capsys)
        assert "profiles.tiny.evaluation.batch_size is 2" in workspace.call("prepare")


def test_slices_of_an_evaluation_add_up_to_the_same_bytes(trained: Workspace) -> None:
    written = {}
    for images_per_job in (100, 2):
        shutil.rmtree("results/tiny/evaluate", ignore_errors=True)
        trained.profile["evaluation"]["images_per_job"] = images_per_job
        trained.write()
        assert not trained.call("evaluate", KEY)
        counts = Path(f"results/tiny/evaluate/{KEY}/seed-0.npz")
        written[images_per_job] = counts.read_bytes(), SCORES.read_bytes()
        assert not counts.with_suffix(".parts").exists()
    assert written[100] == written[2]


def test_slices_that_a_killed_process_had_added_up_are_removed(trained: Workspace) -> None:
    assert not trained.call("evaluate", KEY)
    left = Path(f"results/tiny/evaluate/{KEY}/seed-0.parts")
    (left / "0").mkdir(parents=True)
    assert not trained.call("evaluate", KEY)
    assert not left.exists()


def test_shards_score_a_network_together(trained: Workspace) -> None:
    trained.profile["evaluation"]["images_per_job"] = 2
    trained.write()
    assert not trained.call("evaluate", KEY, "--shard", "1/2")
    assert not SCORES.exists()  # the other shard's images are missing
    assert not trained.call("evaluate", KEY, "--shard", "2/2")
    assert len(json.loads(SCORES.read_text())["seeds"][0]["image_iou"]) == 3


def test_the_multi_scale_protocol_is_scored_beside_the_single_scale_one(trained: Workspace) -> None:
    recipe = trained.params["recipes"]["plain"]
    recipe["multi_scale"] = {"scales": [0.5, 1.0], "flip": True, "average": "softmax"}
    trained.write()
    assert not trained.call("evaluate", KEY)
    scores = json.loads(SCORES.read_text())
    found = Evaluation.load(Path(f"results/tiny/evaluate/{KEY}/seed-0.npz"))
    assert found.multi_scale is not None
    assert scores["miou_ms"] == pytest.approx(found.multi_scale.mean_iou(), abs=1e-6)
    assert scores["miou_ms"] != scores["miou"]
    assert scores["protocol"]["multi_scale"]["scales"] == [0.5, 1.0]
    trained.profile["evaluation"]["multi_scale"] = False
    trained.write()
    assert not trained.call("evaluate", KEY)
    assert "miou_ms" not in json.loads(SCORES.read_text())


def test_another_protocol_scores_again_and_trains_nothing(trained: Workspace) -> None:
    assert not trained.call("evaluate", KEY)
    before, trained_at = json.loads(SCORES.read_text())["miou"], WEIGHTS.stat().st_mtime_ns
    trained.params["recipes"]["plain"]["single_scale"] = {"window": [16, 16], "overlap": 0.5}
    trained.write()
    assert not trained.call("train")
    assert not trained.call("evaluate", KEY)
    assert WEIGHTS.stat().st_mtime_ns == trained_at
    assert json.loads(SCORES.read_text())["miou"] != before


def test_a_window_larger_than_every_image_is_refused(
    trained: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    trained.params["recipes"]["plain"]["single_scale"] = {"window": [872, 872]}
    trained.write()
    assert trained.call("evaluate", KEY) == "1"
    assert "872 x 872 is larger than image '000001', 32 x 64" in capsys.readouterr().err
    assert not SCORES.exists()
