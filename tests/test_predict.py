from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from conftest import Workspace
from PIL import Image

from experiments import datasets
from experiments.datasets.cityscapes_classes import CLASSES

KEY = "spgnet-small"
FOLDER = f"results/tiny/train/{KEY}/seed-0"


@pytest.fixture
def trained(prepared: Workspace) -> Workspace:
    assert not prepared.call("train", KEY)
    return prepared


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Pictures of different sizes and formats, one in a folder below, and a file that is none."""
    folder = tmp_path / "photographs"
    (folder / "below").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, shape in (("a.png", (40, 60, 3)), ("b.jpg", (33, 47, 3)), ("below/c.png", (20, 20))):
        Image.fromarray(generator.integers(0, 256, shape, np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def read(path: str) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_writes_labels_colours_and_overlays_of_a_folder(trained: Workspace, photographs: Path) -> None:
    assert not trained.call("predict", KEY, str(photographs), "--out", "out")
    names = sorted(str(path.relative_to("out/labels")) for path in Path("out/labels").rglob("*.png"))
    assert names == ["a.png", "b.png", "below/c.png"]
    labels, colours, overlay = (read(f"out/{kind}/a.png") for kind in ("labels", "colours", "overlays"))
    assert labels.shape == (40, 60)
    assert labels.max() < len(CLASSES)
    expected = np.array([CLASSES[k].colour for k in labels.ravel()], np.uint8).reshape(40, 60, 3)
    np.testing.assert_array_equal(colours, expected)
    mixed = (read(f"{photographs}/a.png").astype(int) + expected) / 2
    assert np.abs(overlay - mixed).max() <= 1


def test_needs_nothing_but_the_folder_of_a_training(
    trained: Workspace, photographs: Path, tmp_path: Path
) -> None:
    assert not trained.call("predict", KEY, str(photographs / "a.png"), "--out", "by-key")
    kept = tmp_path / "kept"
    shutil.move(FOLDER, kept)
    for gone in ("params.yaml", "data", "results"):
        place = Path(gone)
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert not trained.call("predict", str(kept), str(photographs / "a.png"), "--out", "by-folder")
    np.testing.assert_array_equal(read("by-key/labels/a.png"), read("by-folder/labels/a.png"))


def test_predictions_are_those_that_evaluate_scores(trained: Workspace) -> None:
    assert not trained.call("evaluate", KEY)
    kept = sorted(Path(f"results/tiny/predictions/{KEY}").glob("*.png"))
    images = [str(next(Path("data/prepared/tiny").rglob(f"images/val/{path.name}"))) for path in kept]
    assert not trained.call("predict", KEY, *images, "--out", "out")
    for path in kept:
        np.testing.assert_array_equal(read(str(path)), read(f"out/labels/{path.name}"))


def test_a_full_size_picture_is_shrunk_as_the_training_images_were(workspace: Workspace) -> None:
    workspace.profile["image_size"] = [16, 32]
    workspace.write()
    for stage in ("prepare", "train", "evaluate"):
        assert not workspace.call(stage)
    scenes = datasets.create("scenes", workspace.profile["datasets"]["scenes"])
    kept = sorted(Path(f"results/tiny/predictions/{KEY}").glob("*.png"))
    for path in kept:
        image, labels = scenes.read("val", path.stem)
        assert labels.shape == (32, 64)
        Image.fromarray(image).save(path.name)
        assert not workspace.call("predict", KEY, path.name, "--out", "out", "--overwrite")
        np.testing.assert_array_equal(read(str(path)), read(f"out/labels/{path.name}"))
    assert kept


def test_a_shared_training_is_found(trained: Workspace, photographs: Path) -> None:
    trained.params["experiments"]["again"] = trained.params["experiments"][KEY] | {"row": "again"}
    trained.write()
    assert not trained.call("predict", "again", str(photographs / "a.png"), "--out", "out")


def test_the_multi_scale_protocol_is_the_recipes(trained: Workspace, photographs: Path) -> None:
    picture = str(photographs / "a.png")
    refused = trained.call("predict", KEY, picture, "--out", "out", "--protocol", "multi")
    assert "states no multi_scale protocol" in refused
    trained.params["recipes"]["plain"]["multi_scale"] = {"scales": [0.5, 1.5], "flip": True}
    trained.params["seeds"] = [1]
    # The narrow one has learned a single class by then, which every protocol agrees on.
    trained.profile["backbones"] = {"resnet50": "resnet18"}
    trained.write()
    assert not trained.call("train", KEY)
    for kind in ("single", "multi"):
        assert not trained.call("predict", KEY, picture, "--out", kind, "--protocol", kind)
    assert (read("single/labels/a.png") != read("multi/labels/a.png")).any()


def test_a_picture_that_does_not_decode_is_named_and_the_others_go_on(
    trained: Workspace, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photographs / "b.jpg").write_bytes(b"no picture")
    assert trained.call("predict", KEY, str(photographs), "--out", "out") == "1"
    said = capsys.readouterr()
    assert f"{photographs / 'b.jpg'}: does not decode" in said.err
    assert "2 of 3 pictures" in said.out
    assert len(list(Path("out/labels").rglob("*.png"))) == 2


def test_a_folder_with_other_files_is_only_written_to_if_asked(trained: Workspace, photographs: Path) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("keep")
    arguments = ("predict", KEY, str(photographs), "--out", "out")
    assert "--overwrite" in trained.call(*arguments)
    assert sorted(Path("out").rglob("*")) == [Path("out/mine.txt")]
    assert not trained.call(*arguments, "--overwrite")
    assert Path("out/mine.txt").read_text() == "keep"


def test_a_photograph_is_turned_as_its_camera_says(trained: Workspace, tmp_path: Path) -> None:
    picture = Image.fromarray(np.zeros((20, 40, 3), np.uint8))
    tags = Image.Exif()
    tags[0x0112] = 6  # shown turned by a quarter
    picture.save(tmp_path / "turned.jpg", exif=tags)
    assert not trained.call("predict", KEY, str(tmp_path / "turned.jpg"), "--out", "out")
    assert read("out/labels/turned.png").shape == (40, 20)


class TestCityscapesServer:
    @pytest.fixture
    def frames(self, tmp_path: Path) -> Path:
        folder = tmp_path / "leftImg8bit" / "test" / "berlin"
        folder.mkdir(parents=True)
        for frame in (19, 20):
            picture = Image.fromarray(np.random.default_rng(frame).integers(0, 256, (32, 64, 3), np.uint8))
            picture.save(folder / f"berlin_000000_{frame:06}_leftImg8bit.png")
        return folder.parent

    def test_writes_label_ids_that_the_official_evaluation_finds(
        self, trained: Workspace, frames: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CITYSCAPES_RESULTS", str(Path("out").absolute()))
        official = import_module("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
        from cityscapesscripts.helpers.labels import trainId2label

        assert not trained.call("predict", KEY, str(frames), "--out", "out", "--for", "cityscapes-server")
        assert not trained.call("predict", KEY, str(frames), "--out", "labels")
        official.args.predictionPath, official.args.predictionWalk = str(Path("out").absolute()), None
        found = official.getPrediction(official.args, "berlin_000000_000019_gtFine_labelIds.png")
        train_ids = read("labels/labels/berlin/berlin_000000_000019_leftImg8bit.png")
        expected = np.vectorize(lambda k: trainId2label[k].id)(train_ids)
        np.testing.assert_array_equal(read(found), expected)

    def test_other_names_and_other_classes_are_refused(
        self, trained: Workspace, frames: Path, photographs: Path, camvid: Path
    ) -> None:
        purpose = ("--for", "cityscapes-server")
        refused = trained.call("predict", KEY, str(photographs), "--out", "out", *purpose)
        assert "expected a name like berlin_000000_000019" in refused
        trained.profile["datasets"] = {"camvid": {"root": str(camvid)}}
        trained.profile["stand_in"] = "camvid"
        trained.write()
        assert not trained.call("prepare")
        assert not trained.call("train", KEY)
        refused = trained.call("predict", KEY, str(frames), "--out", "out", *purpose)
        assert "has 11 classes that are not the 19 of Cityscapes" in refused
        assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "PHOTOS"], "unknown experiment 'nothing'"),
        (["gun-small", "PHOTOS"], "run 'python -m experiments.train gun-small' first"),
        ([KEY, "gone.png"], "gone.png: no such file or folder"),
        ([KEY, "empty"], "holds no pictures"),
        ([KEY, "PHOTOS/a.png", "PHOTOS/other/a.png"], "same files"),
        ([KEY, "PHOTOS", "--checkpoint", "gone.pth"], "--checkpoint: no file 'gone.pth'"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(
    prepared: Workspace, photographs: Path, arguments: list[str], message: str
) -> None:
    Path("empty").mkdir()
    (photographs / "other").mkdir()
    Image.new("RGB", (8, 8)).save(photographs / "other/a.png")
    given = [argument.replace("PHOTOS", str(photographs)) for argument in arguments]
    said = prepared.call("predict", *given, "--out", "out")
    assert message in said
    assert "\n" not in said
    assert not Path("out").exists()


def test_the_folder_of_a_training_has_one_seed(trained: Workspace, photographs: Path) -> None:
    said = trained.call("predict", FOLDER, str(photographs), "--out", "out", "--seed", "2")
    assert said == f"predict: --seed 2: {FOLDER} is the training of one seed; leave --seed out"


def test_a_folder_without_a_training_is_named(trained: Workspace, photographs: Path) -> None:
    said = trained.call("predict", str(photographs), str(photographs), "--out", "out")
    assert said.startswith(f"predict: {photographs}: holds no training; expected a folder with a run.json")


def test_a_seed_that_is_not_among_those_of_params_is_part_of_the_remedy(
    trained: Workspace, photographs: Path
) -> None:
    said = trained.call("predict", KEY, str(photographs), "--out", "out", "--seed", "55")
    assert said.endswith(f"run 'python -m experiments.train {KEY} --seeds 55' first")
