from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import World
from PIL import Image

from experiments import datasets, prepare
from experiments.datasets.base import DataError, Dataset, Pixels, Split
from experiments.running import storage
from experiments.samples.prepared import PreparedDataset, read_pair


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def use(world: World, name: str, options: dict[str, Any], **profile: Any) -> None:
    """Makes a data set the tiny profile's only one."""
    world.params["profiles"]["tiny"] |= {"datasets": {name: options}, "stand_in": name, **profile}
    world.write()


def refusal(world: World) -> str:
    """What prepare says when it refuses: one line, exit code 1, nothing left behind."""
    message = world.call("prepare")
    assert message.startswith("prepare: ")
    assert "\n" not in message
    assert not (world.folder / "data/prepared").exists()
    assert not list(world.folder.glob("data/.*"))
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


@pytest.mark.parametrize("name", datasets.names())
def test_every_data_set_has_distinct_classes_and_colours(name: str) -> None:
    classes = datasets.dataset_class(name).classes
    assert len({c.name for c in classes}) == len({c.colour for c in classes}) == len(classes)


class TestPrepare:
    def test_the_manifest_describes_the_data(self, world: World, camvid: Path) -> None:
        use(world, "camvid", {"root": str(camvid)})
        assert not world.call("prepare")
        data = PreparedDataset.load("camvid")
        labels = np.stack([np.asarray(Image.open(camvid / f"trainannot/train_{i}.png")) for i in range(3)])
        images = np.stack([np.asarray(Image.open(camvid / f"train/train_{i}.png")) for i in range(3)]) / 255
        assert data.class_pixels["train"] == [(labels == c).sum() for c in range(11)]
        np.testing.assert_allclose(data.mean, images.mean((0, 1, 2)), atol=1e-6)
        np.testing.assert_allclose(data.std, images.std((0, 1, 2)), atol=1e-6)
        sample = data.samples["train"][0]
        assert sample.image == camvid / "train/train_0.png"  # unchanged images are not copied
        assert read_pair(sample)[1].max() == 255

    def test_resizing_leaves_validation_labels_at_their_size(self, world: World, camvid: Path) -> None:
        use(world, "camvid", {"root": str(camvid)}, image_size=[12, 16])
        assert not world.call("prepare")
        data = PreparedDataset.load("camvid")
        shapes = {
            split: [tuple(tensor.shape[-2:]) for tensor in read_pair(data.samples[split][0])]
            for split in ("train", "val")
        }
        assert shapes == {"train": [(12, 16), (12, 16)], "val": [(12, 16), (24, 32)]}

    def test_the_digest_changes_with_a_single_pixel(self, world: World, camvid: Path) -> None:
        use(world, "camvid", {"root": str(camvid)})
        digests = []
        for value in (0, 0, 1):
            path = camvid / "valannot/val_1.png"
            labels = np.asarray(Image.open(path)).copy()
            labels[0, 0] = value
            write(path, labels)
            assert not world.call("prepare")
            digests.append(PreparedDataset.load("camvid").digest)
        assert digests[0] == digests[1] != digests[2]

    def test_a_missing_root(self, world: World) -> None:
        use(world, "camvid", {"root": "nowhere"})
        assert "nowhere: no such folder; set the data set's 'root' in params.yaml" in refusal(world)

    def test_as_a_command_it_ends_with_one_line_and_exit_code_1(self, world: World) -> None:
        use(world, "camvid", {"root": "nowhere"})
        done = world.stage("prepare")
        assert done.returncode == 1
        assert done.stderr.startswith("prepare: nowhere: no such folder")
        assert len(done.stderr.strip().splitlines()) == 1

    def test_a_truncated_image(self, world: World, camvid: Path) -> None:
        path = camvid / "train/train_2.png"
        path.write_bytes(path.read_bytes()[:200])
        use(world, "camvid", {"root": str(camvid)})
        assert "train_2.png: does not decode as an image" in refusal(world)

    def test_labels_of_another_size(self, world: World, camvid: Path) -> None:
        write(camvid / "valannot/val_0.png", np.zeros((24, 30), np.uint8))
        use(world, "camvid", {"root": str(camvid)})
        assert "valannot/val_0.png: labels are 24 x 30 (height x width); expected 24 x 32" in refusal(world)

    def test_an_illegal_label_value(self, world: World, camvid: Path) -> None:
        write(camvid / "trainannot/train_1.png", np.full((24, 32), 12, np.uint8))
        use(world, "camvid", {"root": str(camvid)})
        assert "train_1.png: holds the label value 12; expected 0 to 11" in refusal(world)

    def test_colour_labels(self, world: World, camvid: Path) -> None:
        write(camvid / "trainannot/train_1.png", np.zeros((24, 32, 3), np.uint8))
        use(world, "camvid", {"root": str(camvid)})
        assert "labels are a RGB image; expected one 8-bit channel" in refusal(world)

    def test_an_empty_split(self, world: World, camvid: Path) -> None:
        shutil.rmtree(camvid / "val")
        (camvid / "val").mkdir()
        use(world, "camvid", {"root": str(camvid)})
        assert "split 'val' is empty; expected at least one image" in refusal(world)

    def test_a_refused_data_set_leaves_what_was_prepared_before(self, world: World, camvid: Path) -> None:
        use(world, "camvid", {"root": str(camvid)})
        assert not world.call("prepare")
        before = (world.folder / "data/prepared/manifest.json").read_bytes()
        (camvid / "train/train_0.png").write_bytes(b"")
        assert world.call("prepare")
        assert (world.folder / "data/prepared/manifest.json").read_bytes() == before

    def test_an_output_folder_that_cannot_be_written(self, world: World) -> None:
        (world.folder / "data").write_text("a file where the folder should be")
        assert world.call("prepare").startswith("prepare: data/prepared: cannot be written")

    def test_constant_images_have_a_positive_deviation(self, tmp_path: Path) -> None:
        class Grey(Dataset):
            classes = datasets.dataset_class("camvid").classes

            def __init__(self, options: Any = None):
                pass

            def names(self, split: Split) -> list[str]:
                return ["a"]

            def read(self, split: Split, name: str) -> tuple[Pixels, Pixels]:
                return np.full((4, 4, 3), 128, np.uint8), np.zeros((4, 4), np.uint8)

        manifest = prepare.prepare("grey", Grey(), tmp_path / "out", None)
        assert min(manifest["std"]) > 0
        json.dumps(manifest)


class TestStorage:
    def test_a_full_disk_is_one_clear_line_and_keeps_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "table.csv"
        path.write_text("old")

        def fill(partial: Path) -> None:
            partial.write_text("half")
            raise OSError(28, "No space left on device")

        with pytest.raises(storage.StorageError, match=r"table.csv: cannot be written \(No space left"):
            storage.write(path, fill)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_a_folder_is_replaced_whole_or_not_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "out"
        with storage.folder(path) as partial:
            (partial / "a").write_text("1")
        with pytest.raises(ZeroDivisionError), storage.folder(path) as partial:  # noqa: PT012
            (partial / "b").write_text("2")
            raise ZeroDivisionError
        assert [p.name for p in path.iterdir()] == ["a"]
        assert list(tmp_path.iterdir()) == [path]


def test_reading_a_pair_gives_torch_what_the_files_hold(world: World) -> None:
    assert not world.call("prepare")
    data = PreparedDataset.load("scenes")
    image, labels = read_pair(data.samples["val"][0])
    scenes = datasets.create("scenes", world.params["profiles"]["tiny"]["datasets"]["scenes"])
    drawn, drawn_labels = scenes.read("val", data.samples["val"][0].name)
    assert torch.equal(torch.as_tensor(image), torch.from_numpy(drawn).permute(2, 0, 1))
    assert torch.equal(torch.as_tensor(labels), torch.from_numpy(drawn_labels))
