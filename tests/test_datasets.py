from __future__ import annotations

import json
import os
import platform
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Workspace
from PIL import ExifTags, Image
from pydantic import ValidationError
from scipy.io import savemat

from experiments import datasets
from experiments.config.params import load_params
from experiments.datasets import preparation
from experiments.datasets.base import DataError, Dataset, LabelClass, Pixels, Split, read_image
from experiments.running.locks import Locks
from experiments.samples.decoded import read_pair
from experiments.samples.prepared import PreparedDataset


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def use(workspace: Workspace, name: str, options: dict[str, Any], **profile: Any) -> None:
    """Makes a data set the tiny profile's only one."""
    workspace.profile.update({"datasets": {name: options}, "stand_in": name, **profile})
    workspace.write()


def load() -> PreparedDataset:
    """The tiny profile's data set, as the stages read it."""
    return PreparedDataset.load(load_params().run("gun-small"))


def refusal(workspace: Workspace) -> str:
    """What prepare says when it refuses: one line, exit code 1, nothing left behind."""
    message = workspace.call("prepare")
    assert message.startswith("prepare: ")
    assert "\n" not in message
    assert not (workspace.folder / "data/prepared/tiny/camvid").exists()
    assert not list(workspace.folder.glob("data/.*"))
    return message


class TestCamVid:
    def test_reads_the_classes_and_ignores_unlabelled_pixels(self, camvid: Path) -> None:
        dataset = datasets.create("camvid", {"root": str(camvid)})
        image, labels = dataset.read("train", "train_0")
        stored = np.asarray(Image.open(camvid / "trainannot/train_0.png"))
        assert image.shape == (24, 32, 3)
        np.testing.assert_array_equal(labels, np.where(stored == 11, 255, stored))

    @pytest.mark.parametrize("prefix", ["", "/SegNet/CamVid/"])
    def test_takes_the_list_files_of_both_kinds(self, camvid: Path, prefix: str) -> None:
        lines = [f"{prefix}train/train_{i}.png {prefix}trainannot/train_{i}.png\n" for i in (2, 0)]
        (camvid / "train.txt").write_text("".join(lines))
        assert datasets.create("camvid", {"root": str(camvid)}).names("train") == ["train_2", "train_0"]

    def test_upstreams_test_split_can_be_scored_instead(self, camvid: Path) -> None:
        for folder in ("val", "valannot"):
            (camvid / folder).rename(camvid / folder.replace("val", "test"))
        dataset = datasets.create("camvid", {"root": str(camvid), "evaluate_on": "test"})
        assert dataset.names("val") == ["val_0", "val_1"]
        assert dataset.released_split("val") == "test"

    def test_training_on_both_splits_leaves_none_to_evaluate_on_but_test(self, camvid: Path) -> None:
        for folder in ("val", "valannot"):
            shutil.copytree(camvid / folder, camvid / folder.replace("val", "test"))
        options = {"root": str(camvid), "train_on": "train+val", "evaluate_on": "test"}
        assert len(datasets.create("camvid", options).names("train")) == 5
        with pytest.raises(ValidationError, match="expected evaluate_on: test"):
            datasets.create("camvid", options | {"evaluate_on": "val"})

    def test_ten_seconds_of_a_drive_are_one_sequence(self) -> None:
        """Of 30 frames a second. What is held out of ``train`` is in blocks of as long."""

        def sequences(names: list[str]) -> list[int]:
            found = datasets.sequences("camvid", names)
            return [list(dict.fromkeys(found)).index(sequence) for sequence in found]

        block = [f"0001TP_{frame:06}" for frame in range(7290, 7590, 30)]
        assert sequences([*block, "0001TP_008190", "0006R0_f07590"]) == [0] * 10 + [1, 2]
        upstreams_val = [f"0016E5_{frame:05}" for frame in range(7959, 8161, 2)]
        assert set(sequences(upstreams_val)) == {0}
        assert sequences([f"Seq05VD_f{frame:05}" for frame in range(0, 5100, 30)]) == [
            number // 10 for number in range(170)
        ]
        assert sequences(["a", "b", "a-photograph"]) == [0, 1, 2]

    def test_blocks_hold_out_parts_of_every_drive_and_train_on_the_rest(self, camvid: Path) -> None:
        for drive, images in (("0001TP", 25), ("0006R0", 41)):
            for number in range(images):
                for folder in ("train", "trainannot"):
                    source = camvid / folder / "train_0.png"
                    shutil.copy(source, camvid / folder / f"{drive}_{30 * number:05d}.png")
        dataset = datasets.create("camvid", {"root": str(camvid), "evaluate_on": "blocks"})
        held_out = set(dataset.names("val"))
        assert held_out == {
            *(f"0001TP_{30 * number:05d}" for number in range(20, 25)),
            *(f"0006R0_{30 * number:05d}" for number in range(20, 30)),
        }
        assert held_out.isdisjoint(dataset.names("train"))
        assert len(held_out) + len(dataset.names("train")) == 25 + 41 + 3
        assert dataset.released_split("val") == "held-out blocks of train"
        assert dataset.released_split("train") == "train but held-out blocks"
        with pytest.raises(ValidationError, match="expected evaluate_on: test"):
            datasets.create("camvid", {"root": str(camvid), "train_on": "train+val", "evaluate_on": "blocks"})

    def test_a_missing_image_is_laid_to_the_list_only_where_there_is_one(self, camvid: Path) -> None:
        (camvid / "train.txt").write_text("train/none.png trainannot/none.png\n")
        with pytest.raises(DataError, match=r"none.png: no such image, but train.txt lists it"):
            datasets.create("camvid", {"root": str(camvid)}).names("train")
        (camvid / "train.txt").unlink()
        (camvid / "train/broken.png").symlink_to(camvid / "nowhere.png")
        with pytest.raises(DataError, match=r"broken.png: no such image$"):
            datasets.create("camvid", {"root": str(camvid)}).names("train")

    def test_an_image_without_labels_is_refused(self, camvid: Path) -> None:
        (camvid / "trainannot/train_1.png").unlink()
        with pytest.raises(
            DataError, match=r"train_1.png: has no labels; expected them at .*trainannot/train_1"
        ):
            datasets.create("camvid", {"root": str(camvid)}).names("train")


class TestCityscapes:
    def test_label_ids_become_train_ids(self, tmp_path: Path) -> None:
        from cityscapesscripts.helpers.labels import id2label

        ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
        write(
            tmp_path / "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png", np.zeros((2, 17, 3), np.uint8)
        )
        write(tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png", ids)
        dataset = datasets.create("cityscapes", {"root": str(tmp_path)})
        assert dataset.names("val") == ["ulm_000000_000019"]
        _, labels = dataset.read("val", "ulm_000000_000019")
        expected = [id2label[int(i)].trainId for i in ids.ravel()]
        np.testing.assert_array_equal(labels.ravel(), expected)

    def test_trains_on_both_splits_if_asked(self, tmp_path: Path) -> None:
        for split, frame in (("train", "ulm_000000_000019"), ("val", "lindau_000001_000019")):
            city = frame.split("_")[0]
            image = np.full((2, 3, 3), len(city), np.uint8)
            write(tmp_path / f"leftImg8bit/{split}/{city}/{frame}_leftImg8bit.png", image)
            write(tmp_path / f"gtFine/{split}/{city}/{frame}_gtFine_labelIds.png", np.zeros((2, 3), np.uint8))
        root = {"root": str(tmp_path)}
        assert datasets.create("cityscapes", root).names("train") == ["ulm_000000_000019"]
        dataset = datasets.create("cityscapes", root | {"train_on": "train+val"})
        assert dataset.names("train") == ["ulm_000000_000019", "lindau_000001_000019"]
        assert [dataset.read("train", name)[0].max() for name in dataset.names("train")] == [3, 6]
        assert dataset.names("val") == ["lindau_000001_000019"]
        assert dataset.released_split("train") == "train+val"

    def test_a_missing_root_says_where_the_data_comes_from(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"leftImg8bit/train: no such folder; .*cityscapes-dataset.com"):
            datasets.create("cityscapes", {"root": str(tmp_path / "none")}).names("train")


class TestADE20K:
    def test_classes_start_at_1_and_0_is_ignored(self, tmp_path: Path) -> None:
        values = np.array([[0, 1, 150]], np.uint8)
        Image.fromarray(np.zeros((1, 3, 3), np.uint8)).save(self.folder(tmp_path, "images") / "ADE_val_1.jpg")
        write(self.folder(tmp_path, "annotations") / "ADE_val_1.png", values)
        dataset = datasets.create("ade20k", {"root": str(tmp_path)})
        assert dataset.names("val") == ["ADE_val_1"]
        np.testing.assert_array_equal(dataset.read("val", "ADE_val_1")[1], [[255, 0, 149]])

    def test_a_value_above_150_is_refused(self, tmp_path: Path) -> None:
        Image.fromarray(np.zeros((1, 3, 3), np.uint8)).save(self.folder(tmp_path, "images") / "a.jpg")
        write(self.folder(tmp_path, "annotations") / "a.png", np.array([[0, 1, 151]], np.uint8))
        with pytest.raises(DataError, match=r"a.png: holds the label value 151; expected 0 to 150"):
            datasets.create("ade20k", {"root": str(tmp_path)}).read("val", "a")

    @staticmethod
    def folder(root: Path, kind: str) -> Path:
        path = root / kind / "validation"
        path.mkdir(parents=True, exist_ok=True)
        return path


class TestCOCOStuff10k:
    """Both layouts that people have: as released, and as mmsegmentation converts it."""

    @pytest.fixture
    def released(self, tmp_path: Path) -> Path:
        ids = np.array([[0, 1, 13], [92, 182, 11]], np.uint8)
        for split in ("train", "test"):
            (tmp_path / "imageLists").mkdir(exist_ok=True)
            (tmp_path / f"imageLists/{split}.txt").write_text(f"COCO_{split}_1\n")
            write(tmp_path / f"images/COCO_{split}_1.jpg", np.zeros((2, 3, 3), np.uint8))
            (tmp_path / "annotations").mkdir(exist_ok=True)
            savemat(tmp_path / f"annotations/COCO_{split}_1.mat", {"S": ids})
        return tmp_path

    @pytest.fixture
    def converted(self, tmp_path: Path) -> Path:
        for folder in ("train2014", "test2014"):
            write(tmp_path / f"images/{folder}/a.jpg", np.zeros((2, 3, 3), np.uint8))
            values = np.array([[0, 1, 12], [81, 171, 11]], np.uint8)
            write(tmp_path / f"annotations/{folder}/a_labelTrainIds.png", values)
        return tmp_path

    @pytest.mark.parametrize("layout", ["released", "converted"])
    def test_both_layouts_give_the_same_classes(self, layout: str, request: pytest.FixtureRequest) -> None:
        root = request.getfixturevalue(layout)
        dataset = datasets.create("cocostuff10k", {"root": str(root)})
        for split, name in (("train", "train"), ("val", "test")):
            (only,) = dataset.names(split)  # type: ignore[arg-type]
            labels = dataset.read(split, only)[1]  # type: ignore[arg-type]
            np.testing.assert_array_equal(labels, [[255, 0, 11], [80, 170, 10]])
            assert dataset.released_split(split) == name  # type: ignore[arg-type]
        names = [c.name for c in dataset.classes]
        assert (len(names), names[0], names[11], names[80], names[170]) == (
            171, "person", "stop sign", "banner", "wood",
        )  # fmt: skip

    def test_an_id_that_coco_stuff_never_uses_is_refused(self, released: Path) -> None:
        savemat(released / "annotations/COCO_test_1.mat", {"S": np.full((2, 3), 26, np.uint8)})
        dataset = datasets.create("cocostuff10k", {"root": str(released)})
        with pytest.raises(
            DataError, match=r"COCO_test_1.mat: holds the label value 26; expected 0 to 11, 13"
        ):
            dataset.read("val", "COCO_test_1")

    def test_broken_files_are_told(self, released: Path) -> None:
        labels = released / "annotations/COCO_test_1.mat"
        dataset = datasets.create("cocostuff10k", {"root": str(released)})
        savemat(labels, {"T": np.zeros((2, 3), np.uint8)})
        with pytest.raises(DataError, match="has no variable 'S'"):
            dataset.read("val", "COCO_test_1")
        labels.write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
        with pytest.raises(DataError, match="does not decode as a MATLAB file"):
            dataset.read("val", "COCO_test_1")
        labels.unlink()
        with pytest.raises(DataError, match=r"COCO_test_1.jpg: has no labels"):
            dataset.names("val")
        (released / "imageLists/test.txt").unlink()
        with pytest.raises(DataError, match=r"cocostuff-10k-v1\.1"):
            dataset.names("val")


@pytest.mark.parametrize("name", [name for name in datasets.names() if name != "folders"])
def test_every_data_set_has_distinct_classes_and_colours(name: str) -> None:
    classes = datasets.dataset_class(name).classes
    assert len({c.name for c in classes}) == len({c.colour for c in classes}) == len(classes)


class TestPrepare:
    def test_the_manifest_describes_the_data(self, workspace: Workspace, camvid: Path) -> None:
        use(workspace, "camvid", {"root": str(camvid)})
        assert not workspace.call("prepare")
        data = load()
        labels = np.stack([np.asarray(Image.open(camvid / f"trainannot/train_{i}.png")) for i in range(3)])
        images = np.stack([np.asarray(Image.open(camvid / f"train/train_{i}.png")) for i in range(3)]) / 255
        assert data.train.class_pixels == [(labels == c).sum() for c in range(11)]
        np.testing.assert_allclose(data.mean, images.mean((0, 1, 2)), atol=1e-6)
        np.testing.assert_allclose(data.std, images.std((0, 1, 2)), atol=1e-6)
        sample = data.train.samples[0]
        assert sample.image == camvid / "train/train_0.png"  # unchanged images are not copied
        assert read_pair(sample)[1].max() == 255

    def test_resizing_leaves_validation_labels_at_their_size(
        self, workspace: Workspace, camvid: Path
    ) -> None:
        use(workspace, "camvid", {"root": str(camvid)}, image_size=[12, 16])
        assert not workspace.call("prepare")
        data = load()
        shapes = {
            name: [tuple(tensor.shape[-2:]) for tensor in read_pair(split.samples[0])]
            for name, split in (("train", data.train), ("val", data.val))
        }
        assert shapes == {"train": [(12, 16), (12, 16)], "val": [(12, 16), (24, 32)]}

    def test_the_digest_changes_with_a_single_pixel(self, workspace: Workspace, camvid: Path) -> None:
        use(workspace, "camvid", {"root": str(camvid)})
        digests = []
        for value in (0, 0, 1):
            path = camvid / "valannot/val_1.png"
            labels = np.asarray(Image.open(path)).copy()
            labels[0, 0] = value
            write(path, labels)
            assert not workspace.call("prepare")
            digests.append(load().val.digest)
        assert digests[0] == digests[1] != digests[2]

    def test_a_missing_root(self, workspace: Workspace) -> None:
        use(workspace, "camvid", {"root": "nowhere"})
        assert "nowhere: no such folder; set the data set's 'root' in params.yaml" in refusal(workspace)

    def test_as_a_command_it_ends_with_one_line_and_exit_code_1(self, workspace: Workspace) -> None:
        use(workspace, "camvid", {"root": "nowhere"})
        done = workspace.stage("prepare")
        assert done.returncode == 1
        assert done.stderr.startswith("prepare: nowhere: no such folder")
        assert len(done.stderr.strip().splitlines()) == 1

    def test_a_truncated_image(self, workspace: Workspace, camvid: Path) -> None:
        path = camvid / "train/train_2.png"
        path.write_bytes(path.read_bytes()[:200])
        use(workspace, "camvid", {"root": str(camvid)})
        assert "train_2.png: does not decode as an image" in refusal(workspace)

    def test_labels_of_another_size(self, workspace: Workspace, camvid: Path) -> None:
        write(camvid / "valannot/val_0.png", np.zeros((24, 30), np.uint8))
        use(workspace, "camvid", {"root": str(camvid)})
        assert "valannot/val_0.png: labels are 24 x 30 (height x width); expected 24 x 32" in refusal(
            workspace
        )

    def test_an_illegal_label_value(self, workspace: Workspace, camvid: Path) -> None:
        write(camvid / "trainannot/train_1.png", np.full((24, 32), 12, np.uint8))
        use(workspace, "camvid", {"root": str(camvid)})
        assert "train_1.png: holds the label value 12; expected 0 to 11" in refusal(workspace)

    def test_colour_labels(self, workspace: Workspace, camvid: Path) -> None:
        write(camvid / "trainannot/train_1.png", np.zeros((24, 32, 3), np.uint8))
        use(workspace, "camvid", {"root": str(camvid)})
        assert "labels are a RGB image; expected one 8-bit channel" in refusal(workspace)

    def test_an_empty_split(self, workspace: Workspace, camvid: Path) -> None:
        shutil.rmtree(camvid / "val")
        (camvid / "val").mkdir()
        use(workspace, "camvid", {"root": str(camvid)})
        assert "split 'val' is empty; expected at least one image" in refusal(workspace)

    def test_a_refused_data_set_leaves_what_was_prepared_before(
        self, workspace: Workspace, camvid: Path
    ) -> None:
        use(workspace, "camvid", {"root": str(camvid)})
        assert not workspace.call("prepare")
        before = self.manifest.read_bytes()
        (camvid / "train/train_0.png").write_bytes(b"")
        assert workspace.call("prepare")
        assert self.manifest.read_bytes() == before

    manifest = Path("data/prepared/tiny/camvid/manifest.json")

    def test_what_has_not_changed_is_not_read_again(
        self, workspace: Workspace, camvid: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use(workspace, "camvid", {"root": str(camvid)})
        assert not workspace.call("prepare")
        written = self.manifest.stat().st_mtime_ns
        assert not workspace.call("prepare")
        assert self.manifest.stat().st_mtime_ns == written
        assert not workspace.call("prepare", "--again")
        assert self.manifest.stat().st_mtime_ns != written

    def test_what_a_killed_process_left_goes_though_nothing_has_changed(self, workspace: Workspace) -> None:
        assert not workspace.call("prepare")
        start = f".scenes.{platform.node()}.{2**22 + 1}"
        left = [Path(f"data/prepared/tiny/{start}.{ending}") for ending in ("old", "partial")]
        for folder in left:
            (folder / "val").mkdir(parents=True)
        assert not workspace.call("prepare")
        assert [folder for folder in left if folder.exists()] == []

    def test_each_profile_has_its_own(self, workspace: Workspace) -> None:
        assert not workspace.call("prepare")
        workspace.params["profiles"]["other"] = workspace.profile
        workspace.params["profile"] = "other"
        workspace.write()
        assert not workspace.call("prepare")
        assert sorted(path.name for path in Path("data/prepared").iterdir()) == ["other", "tiny"]

    def test_an_output_folder_that_cannot_be_written(self, workspace: Workspace) -> None:
        (workspace.folder / "data").write_text("a file where the folder should be")
        assert workspace.call("prepare").startswith("prepare: data/prepared/tiny/scenes: cannot be written")

    def test_while_a_training_reads_them_data_that_changed_are_left_alone(
        self, workspace: Workspace, camvid: Path
    ) -> None:
        use(workspace, "camvid", {"root": str(camvid)})
        assert not workspace.call("prepare")
        write(camvid / "train/train_0.png", np.zeros((24, 32, 3), np.uint8))
        with Locks(Path("results/tiny/locks")) as held:
            assert held.acquire("training") is None
            message = workspace.call("prepare")
            assert "'camvid' has changed, but process" in message
            assert len(message) < 200
        assert not workspace.call("prepare")


class TestAnyDataSet:
    """What prepare checks of a data set whatever it checks itself."""

    @pytest.fixture
    def pairs(self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """A data set that only reads; the test sets what."""
        pixels: dict[str, Any] = {
            "image": np.full((4, 6, 3), 128, np.uint8), "labels": np.zeros((4, 6), np.uint8), "names": ["a"],
        }  # fmt: skip

        class Own(Dataset):
            options_type = datasets.dataset_class("scenes").options_type
            classes = datasets.dataset_class("camvid").classes

            def __init__(self, options: Any):
                pass

            def names(self, split: Split) -> list[str]:
                return list(pixels["names"])

            def read(self, split: Split, name: str) -> tuple[Pixels, Pixels]:
                return pixels["image"], pixels["labels"]

        monkeypatch.setattr(datasets, "dataset_class", lambda _: Own)
        return pixels

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"labels": np.full((4, 6), 11, np.uint8)},
                "train sample 'a': holds the label value 11; expected 0 to 10, 255",
            ),
            (
                {"labels": np.zeros((4, 5), np.uint8)},
                "labels are 4 x 5 (height x width); expected 4 x 6, as the image",
            ),
            ({"labels": np.zeros((4, 6), np.int64)}, "labels of 'a' are int64 (4, 6); expected uint8 (H, W)"),
            (
                {"image": np.zeros((4, 6), np.uint8)},
                "image of 'a' are uint8 (4, 6); expected uint8 (H, W, 3)",
            ),
            ({"names": ["a", "a"]}, "split 'train' names 'a' twice"),
            ({"names": ["../a"]}, "has a sample named '../a'; expected a name that can be a file's"),
            ({"labels": None}, "reading 'a' failed (AttributeError"),
        ],
        ids=lambda value: "" if isinstance(value, dict) else value[:30],
    )
    def test_is_refused(
        self, workspace: Workspace, pairs: dict[str, Any], changes: dict[str, Any], message: str
    ) -> None:
        pairs |= changes
        if pairs["labels"] is None:
            del pairs["labels"]
            message = "reading 'a' failed (KeyError"
        assert message in workspace.call("prepare")
        assert not Path("data/prepared/tiny/scenes").exists()

    def test_constant_images_have_a_positive_deviation(
        self, workspace: Workspace, pairs: dict[str, Any]
    ) -> None:
        assert not workspace.call("prepare")
        assert min(load().std) > 0


class TestChangedSincePrepared:
    @pytest.fixture
    def ready(self, workspace: Workspace, camvid: Path) -> Workspace:
        use(workspace, "camvid", {"root": str(camvid)})
        assert not workspace.call("prepare")
        return workspace

    def test_an_edited_label_is_noticed(self, ready: Workspace, camvid: Path) -> None:
        path = camvid / "trainannot/train_1.png"
        labels = np.array(Image.open(path))
        labels[0, 0] = (labels[0, 0] + 1) % 11
        write(path, labels)
        for stage in ("train", "evaluate"):
            if stage == "evaluate":
                continue  # nothing is trained
            message = ready.call(stage, "gun-small")
            assert (
                "train_1.png: has changed since it was prepared; run 'python -m experiments.prepare'"
                in message
            )

    def test_replaced_photographs_are_noticed(self, ready: Workspace, camvid: Path) -> None:
        assert not ready.call("train", "gun-small")
        write(camvid / "val/val_0.png", np.zeros((24, 32, 3), np.uint8))
        assert "val_0.png: has changed since it was prepared" in ready.call("evaluate", "gun-small")

    def test_a_file_that_has_gone(self, ready: Workspace, camvid: Path) -> None:
        (camvid / "val/val_1.png").unlink()
        assert "val_1.png: has gone since it was prepared" in ready.call("train", "gun-small")

    def test_the_same_content_at_another_time_is_the_same(self, ready: Workspace, camvid: Path) -> None:
        path = camvid / "train/train_0.png"
        path.write_bytes(path.read_bytes())
        os.utime(path, (1, 1))
        assert not ready.call("train", "gun-small")

    def test_the_same_pixels_in_another_file_are_the_same_data(self, ready: Workspace, camvid: Path) -> None:
        assert not ready.call("train", "gun-small")
        path = camvid / "train/train_0.png"
        with Image.open(path) as picture:
            picture.load()
            picture.save(path, compress_level=0)
        assert not ready.call("prepare")
        weights = Path("results/tiny/train/gun-small/seed-0/weights.safetensors")
        written = weights.stat().st_mtime_ns
        assert not ready.call("train", "gun-small")
        assert weights.stat().st_mtime_ns == written


class TestImages:
    def test_16_bits_of_grey_are_scaled(self, tmp_path: Path) -> None:
        path = tmp_path / "a.png"
        Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(path)
        np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 128, 255])

    def test_32_bits_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "a.tif"
        Image.fromarray(np.zeros((2, 2), np.int32)).save(path)
        with pytest.raises(DataError, match=r"a.tif: is an image of 32-bit values"):
            read_image(path)

    @pytest.mark.parametrize("side", [9500, 20000], ids=["large", "beyond Pillow's limit"])
    def test_a_huge_image_is_refused_before_it_is_decoded(self, tmp_path: Path, side: int) -> None:
        path = tmp_path / "a.png"
        Image.new("1", (side, side)).save(path)
        with pytest.raises(DataError, match=r"a.png: has .* pixels.*; make it smaller"):
            read_image(path)


class TestFolders:
    """A data set of one's own without a line of code."""

    @pytest.fixture
    def options(self, camvid: Path) -> dict[str, Any]:
        return {
            "root": str(camvid),
            "train": {"images": "train", "labels": "trainannot"},
            "val": {"images": "val", "labels": "valannot"},
            "classes": {f"class {i}": [i, 2 * i, 3 * i] for i in range(11)},
            "ignored": [11],
        }

    def test_trains_and_scores(self, workspace: Workspace, options: dict[str, Any]) -> None:
        use(workspace, "folders", options)
        for stage, *keys in (["prepare"], ["train", "gun-small"], ["evaluate", "gun-small"]):
            assert not workspace.call(stage, *keys)
        scores = json.loads(Path("results/tiny/evaluate/gun-small.json").read_text())
        assert set(scores["seeds"][0]["class_iou"]) == set(options["classes"])

    def test_may_be_an_experiments_own(self, workspace: Workspace, options: dict[str, Any]) -> None:
        use(workspace, "folders", options, stand_in=None)
        for experiment in workspace.params["experiments"].values():
            experiment["dataset"] = "folders"
        workspace.write()
        assert not workspace.call("prepare")
        assert not workspace.call("complexity", "gun-small")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"ignored": [3]}, "datasets.folders: ignored holds 3, which is the class 'class 3'"),
            ({"classes": {}}, "datasets.folders.classes: "),
            (
                {"classes": {"a": [0, 0]}},
                "datasets.folders.classes.a: should have at least 3 items, found 2",
            ),
            (
                {"classes": ["a", "b"]},
                "datasets.folders.classes: should be a mapping ('key: value' for each), found a list",
            ),
            ({"val": {"images": "val"}}, "datasets.folders.val.labels: missing"),
            (
                {"val": {"images": "train/", "labels": "trainannot"}},
                "datasets.folders: val.images is train/, as train.images is; expected other images",
            ),
        ],
        ids=[
            "ignored class",
            "no classes",
            "a colour of two",
            "a list of classes",
            "no labels",
            "one folder",
        ],
    )
    def test_refuses(
        self, workspace: Workspace, options: dict[str, Any], changes: dict[str, Any], message: str
    ) -> None:
        use(workspace, "folders", options | changes)
        assert message in workspace.call("prepare")

    def test_an_image_without_labels_is_named(
        self, workspace: Workspace, options: dict[str, Any], camvid: Path
    ) -> None:
        (camvid / "trainannot/train_1.png").unlink()
        use(workspace, "folders", options)
        assert "train_1.png: has no labels" in workspace.call("prepare")

    def test_labels_without_an_image_are_named(
        self, workspace: Workspace, options: dict[str, Any], camvid: Path
    ) -> None:
        (camvid / "train/train_1.png").unlink()
        use(workspace, "folders", options)
        assert "trainannot/train_1.png: has no image; expected 'train_1'" in workspace.call("prepare")

    def test_one_folder_may_have_the_labels_of_both_splits(
        self, workspace: Workspace, options: dict[str, Any], camvid: Path
    ) -> None:
        for path in (camvid / "valannot").iterdir():
            path.rename(camvid / "trainannot" / path.name)
        use(workspace, "folders", options | {"val": options["val"] | {"labels": options["train"]["labels"]}})
        assert not workspace.call("prepare")

    def test_images_of_several_sizes_are_not_scored_in_batches(
        self, workspace: Workspace, options: dict[str, Any], camvid: Path
    ) -> None:
        for folder in ("val", "valannot"):
            path = camvid / folder / "val_1.png"
            with Image.open(path) as picture:
                smaller = picture.crop((0, 0, picture.width - 8, picture.height))
            smaller.save(path)
        use(workspace, "folders", options)
        said = workspace.call("prepare")
        assert "profiles.tiny.evaluation.batch_size is 2, and images of one batch have one size" in said
        assert "'val_0' has " in said
        assert "'val_1' has " in said
        assert not Path("data/prepared/tiny/folders").exists()
        workspace.profile["evaluation"]["batch_size"] = 1
        workspace.write()
        assert not workspace.call("prepare")

    def test_a_photograph_that_is_shown_turned_is_refused(
        self, workspace: Workspace, options: dict[str, Any], camvid: Path
    ) -> None:
        path = camvid / "val/val_0.png"
        with Image.open(path) as picture:
            tags = picture.getexif()
            tags[ExifTags.Base.Orientation] = 3
            picture.save(path, exif=tags)
        use(workspace, "folders", options)
        assert "val_0.png: its orientation tag is 3, so that it is shown turned" in workspace.call("prepare")


def test_the_template_of_a_data_set_runs_as_it_is(tmp_path: Path) -> None:
    from experiments.datasets import _template

    for split in ("train", "val"):
        write(tmp_path / split / "a.png", np.zeros((4, 6, 3), np.uint8))
        write(tmp_path / split / "a_labels.png", np.ones((4, 6), np.uint8))
    dataset = _template.DATASET(_template.Options(root=str(tmp_path)))
    assert dataset.names("train") == ["a"]
    (tmp_path / "train/b.png").touch()  # it has no labels, and is not left out without a word
    assert dataset.names("train") == ["a", "b"]
    image, labels = dataset.read("val", "a")
    assert (image.shape, labels.max()) == ((4, 6, 3), 1)
    assert all(path.is_file() for path in dataset.files("val", "a"))
    assert "_template" not in datasets.names()


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((LabelClass("a", (0, 0)),), r"class 'a' has the colour \(0, 0\); expected"),  # type: ignore[arg-type]
        ((LabelClass("a", (0, 0, 256)),), "class 'a' has the colour"),
        ((LabelClass("a", (0, 0, 0)), LabelClass("a", (1, 1, 1))), "names the class 'a' twice"),
    ],
)
def test_classes_of_a_data_set_of_ones_own_are_checked(
    classes: tuple[LabelClass, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from experiments.datasets import _template

    monkeypatch.setattr(_template.Template, "classes", classes)
    monkeypatch.setattr(
        "experiments.datasets.preparation.create", lambda _, options: _template.DATASET(options)
    )
    options: Any = _template.Options(root=str(tmp_path))
    with pytest.raises(DataError, match=message):
        preparation.prepare("mine", options, tmp_path / "new", None)


def test_reading_a_pair_gives_torch_what_the_files_hold(workspace: Workspace) -> None:
    assert not workspace.call("prepare")
    data = load()
    image, labels = read_pair(data.val.samples[0])
    scenes = datasets.create("scenes", workspace.params["profiles"]["tiny"]["datasets"]["scenes"])
    drawn, drawn_labels = scenes.read("val", data.val.samples[0].name)
    assert torch.equal(torch.as_tensor(image), torch.from_numpy(drawn).permute(2, 0, 1))
    assert torch.equal(torch.as_tensor(labels), torch.from_numpy(drawn_labels))


def test_prepare_ends_soon_when_it_is_asked_to_and_leaves_nothing_half_done(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = preparation._check

    def ask(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return check(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "_check", ask)
        assert workspace.call("prepare") == "143"
    assert (
        "prepare: stopped after 1 of 6 images of train; the same command does it" in capsys.readouterr().err
    )
    assert list(Path("data/prepared/tiny").iterdir()) == []
    assert not workspace.call("prepare")


def test_a_wrong_option_is_found_before_data_are_read(workspace: Workspace) -> None:
    assert not workspace.call("prepare")
    before = sorted(Path("data").rglob("*"))
    workspace.params["experiments"]["spgnet-small"]["options"]["stages"] = "two"
    workspace.write()
    # Nothing is to be read, so the stage need not know; it takes seconds to find out.
    assert not workspace.call("prepare")
    assert "options.stages" in workspace.call("train")
    workspace.profile["datasets"]["scenes"]["height"] = 48
    workspace.write()
    assert "options.stages" in workspace.call("prepare")
    assert sorted(Path("data").rglob("*")) == before
