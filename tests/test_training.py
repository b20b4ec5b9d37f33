from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Workspace, stage_environment, wait_until_gone, workers_in
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision import tv_tensors

from experiments.config.params import load_params
from experiments.config.recipes import (
    ClassBalancedSettings,
    CrossEntropySettings,
    PolySchedule,
    Recipe,
    StepSchedule,
    Warmup,
)
from experiments.datasets.base import DataError
from experiments.running import stopping
from experiments.samples import decoded
from experiments.samples.network_input import NetworkInput
from experiments.samples.prepared import PreparedDataset
from experiments.samples.stream import TrainingSamples
from experiments.training import schedules
from experiments.training.averaging import WeightAverage
from experiments.training.checkpoints import read_checkpoint
from experiments.training.losses import create_criterion
from models.spgnet import SPGNet

KEY = "spgnet-small"
SEED_0 = Path("results/tiny/train") / KEY / "seed-0"
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def recipe(**changes: Any) -> Recipe:
    values = {"optimizer": "sgd", "learning_rate": 0.1, "steps": 100, "batch_size": 2, "crop": [8, 8]}
    return Recipe.model_validate({**values, "input_size": [8, 8], **changes})


def scenes() -> PreparedDataset:
    return PreparedDataset.load(load_params().run(KEY))


class TestSchedule:
    @given(st.integers(1, 200), st.floats(0.1, 3))
    def test_poly_falls_from_1_towards_0(self, steps: int, power: float) -> None:
        factors = [schedules.poly_factor(step, steps, power) for step in range(steps + 1)]
        assert factors[0] == 1
        assert factors[-1] == 0
        assert all(a >= b for a, b in pairwise(factors))

    @given(st.integers(0, 50), st.floats(1e-6, 1))
    def test_warm_up_grows_linearly_to_1(self, steps: int, ratio: float) -> None:
        warmup = Warmup(steps=steps, ratio=ratio)
        factors = [schedules.warmup_factor(step, warmup) for step in range(steps + 3)]
        assert factors[steps:] == [1, 1, 1]
        if steps:
            assert factors[0] == pytest.approx(ratio)
            assert factors[steps // 2] == pytest.approx(ratio + (1 - ratio) * (steps // 2) / steps)

    def test_milestones_divide_the_rate(self) -> None:
        schedule = StepSchedule(kind="step", milestones=[0.5, 0.8], factor=0.1)
        rates = [schedules.learning_rate(step, recipe(schedule=schedule)) for step in (0, 49, 50, 79, 80, 99)]
        assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])

    def test_poly_and_warm_up_multiply(self) -> None:
        plan = recipe(schedule=PolySchedule(power=1.0), warmup=Warmup(steps=10, ratio=0.5))
        assert schedules.learning_rate(5, plan) == pytest.approx(0.1 * 0.95 * 0.75)


class TestWeightAverage:
    @staticmethod
    def network() -> torch.nn.Sequential:
        return torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2))

    @staticmethod
    def take_step(model: torch.nn.Module) -> None:
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)

    def test_it_is_the_mean_of_the_weights_after_the_last_steps(self) -> None:
        model = self.network()
        average = WeightAverage(model, recipe(steps=8, average_last=0.5))
        seen = []
        for step in range(8):
            model(torch.randn(4, 3, 2, 2))  # moves the statistics of batch norm
            self.take_step(model)
            average.add(step)
            seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        average.give_to_model()
        for name, tensor in model.state_dict().items():
            expected = seen[-1][name]
            if tensor.is_floating_point():
                expected = torch.stack([weights[name] for weights in seen[4:]]).mean(0)
            torch.testing.assert_close(tensor, expected)

    def test_without_it_the_last_weights_stay(self) -> None:
        model = self.network()
        average = WeightAverage(model, recipe(steps=2))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for step in range(2):
            average.add(step)
        average.give_to_model()
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)

    def test_it_goes_on_where_a_checkpoint_was_written(self) -> None:
        plan = recipe(steps=6, average_last=1.0)
        model, interrupted = self.network(), self.network()
        whole, first, second = (WeightAverage(m, plan) for m in (model, model, interrupted))
        for step in range(6):
            self.take_step(model)
            whole.add(step)
            if step < 3:
                first.add(step)
            if step == 3:
                second.load_state_dict(first.state_dict())
            if step >= 3:
                interrupted.load_state_dict(model.state_dict())
                second.add(step)
        whole.give_to_model()
        second.give_to_model()
        torch.testing.assert_close(interrupted.state_dict(), model.state_dict(), rtol=0, atol=0)


class TestNetworkInput:
    @pytest.mark.parametrize(
        ("height", "width", "expected"),
        [(512, 683, [512, 683]), (256, 256, [512, 512]), (1500, 1000, [768, 512]), (100, 800, [256, 2048])],
    )
    def test_a_short_side_is_mmsegmentations_rescaling(
        self, height: int, width: int, expected: list[int]
    ) -> None:
        assert NetworkInput([0.5] * 3, [0.2] * 3, short_side=512).size(height, width) == expected

    def test_subsampling_and_the_random_scale_multiply(self) -> None:
        assert NetworkInput([0.5] * 3, [0.2] * 3, subsampling=2).size(100, 200, 0.5) == [25, 50]

    def test_imagenet_weights_get_images_as_they_were_trained_on(self, prepared: Workspace) -> None:
        data = scenes()
        black = tv_tensors.Image(torch.zeros(3, 4, 4, dtype=torch.uint8))
        trained_before = NetworkInput.of(data, recipe(pretrained=True)).normalise(black)
        assert trained_before[:, 0, 0].tolist() == pytest.approx([-2.1179, -2.0357, -1.8044], abs=1e-3)
        from_scratch = NetworkInput.of(data, recipe(pretrained=False))
        assert (from_scratch.mean, from_scratch.std) == (data.mean, data.std)


class TestStream:
    @pytest.fixture
    def samples(self, prepared: Workspace) -> TrainingSamples:
        return TrainingSamples(scenes(), recipe(augmentation={"scale": [0.5, 2.0]}, crop=[16, 24]), seed=3)

    def test_an_epoch_holds_every_image_once_and_the_next_one_another_order(
        self, samples: TrainingSamples
    ) -> None:
        count = len(samples.samples)
        epochs = [[samples.sample_at(e * count + i).name for i in range(count)] for e in range(3)]
        assert all(sorted(epoch) == sorted(s.name for s in samples.samples) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1

    def test_a_position_is_the_same_whatever_was_read_before(self, samples: TrainingSamples) -> None:
        image, labels, _ = samples[7]
        torch.manual_seed(99)
        samples[0], samples[12]
        again, labels_again, _ = samples[7]
        assert torch.equal(image, again)
        assert torch.equal(labels, labels_again)

    def test_reading_leaves_the_global_generator_alone(self, samples: TrainingSamples) -> None:
        before = torch.get_rng_state()
        samples[5]
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("broken", [b"", b"x" * 400], ids=["truncated", "other bytes"])
    def test_pairs_that_were_decoded_and_kept_are_the_same(self, prepared: Workspace, broken: bytes) -> None:
        """From their first reading on, and where a kept one is broken."""
        plan = recipe(augmentation={"mirror": True, "scale": [0.5, 2.0]}, crop=[16, 24])
        plain, kept = (TrainingSamples(scenes(), plan, 3, keep) for keep in (False, True))
        count = len(kept.samples)
        for position in range(3 * count):
            for expected, found in zip(plain[position], kept[position], strict=True):
                torch.testing.assert_close(found, expected, rtol=0, atol=0)
            if position == count:
                files = sorted(Path(".cache/decoded").rglob("*.safetensors"))
                assert len(files) == count
                files[0].write_bytes(broken)

    def test_decoded_pairs_that_find_no_room_are_told_once(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path(".cache").mkdir(exist_ok=True)
        Path(".cache/decoded").write_text("in the way")
        samples = TrainingSamples(scenes(), recipe(), 3, keep_decoded=True)
        assert len([samples[position] for position in range(4)]) == 4
        (said,) = capsys.readouterr().out.splitlines()
        assert "cannot be written" in said
        assert "until then pairs are decoded each time" in said

    def test_what_changed_since_it_was_prepared_is_not_kept(self, prepared: Workspace) -> None:
        """It would be read for ever after, though the file be put back."""
        samples = TrainingSamples(scenes(), recipe(), 3, keep_decoded=True)
        path = samples.sample_at(0).image
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0, 0] ^= 1
        Image.fromarray(pixels).save(path)
        with pytest.raises(DataError, match=r"has changed since it was prepared; run"):
            samples[0]
        assert not list(Path(".cache/decoded").rglob("*.safetensors"))

    def test_the_last_of_the_disk_is_left_to_checkpoints(
        self, prepared: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        samples = TrainingSamples(scenes(), recipe(), 3, keep_decoded=True)
        samples[0]
        monkeypatch.setattr(decoded, "_LEFT_FREE", 1 << 60)
        assert len([samples[position] for position in range(4)]) == 4
        (said,) = capsys.readouterr().out.splitlines()
        assert "of the disk are free; remove what is not needed; until then pairs are decoded" in said
        assert len(list(Path(".cache/decoded").rglob("*.safetensors"))) == 1

    def test_crops_have_the_crops_size_and_pad_with_ignored_labels(self, prepared: Workspace) -> None:
        plan = recipe(augmentation={"scale": [0.5, 0.5]}, crop=[32, 64], pretrained=False)
        image, labels, _ = TrainingSamples(scenes(), plan, seed=3)[0]
        assert image.shape == (3, 32, 64)
        assert labels.shape == (32, 64)
        assert (labels[16:] == 255).all()
        assert not image[:, 16:].any()  # the mean colour

    def test_image_and_labels_are_mirrored_together(self, prepared: Workspace) -> None:
        data = scenes()
        plain, mirrored = (
            recipe(augmentation={"mirror": mirror, "scale": None}, crop=[32, 64]) for mirror in (False, True)
        )
        image, labels, _ = TrainingSamples(data, plain, seed=0)[0]
        first = TrainingSamples(data, plain, seed=0).sample_at(0)
        for seed in range(40):
            samples = TrainingSamples(data, mirrored, seed)
            if samples.sample_at(0) == first:
                flipped, flipped_labels, _ = samples[0]
                if not torch.equal(flipped, image):
                    assert torch.equal(flipped, image.flip(-1))
                    assert torch.equal(flipped_labels, labels.flip(-1))
                    return
        pytest.fail("40 seeds, and none mirrored the image")


class TestRun:
    def test_writes_weights_history_and_provenance(self, prepared: Workspace) -> None:
        assert not prepared.call("train", KEY)
        history = pd.read_csv(SEED_0 / "history.csv")
        assert list(history["step"]) == [2, 4]
        assert {"loss", "main", "learning_rate"} <= set(history)
        about = json.loads((SEED_0 / "run.json").read_text())
        assert about["options"]["backbone"] == "resnet18_narrow"
        assert about["packages"]["torch"]
        assert sorted(p.name for p in SEED_0.iterdir()) == ["history.csv", "run.json", "weights.safetensors"]

    def test_says_what_is_in_force_when_it_starts(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert not prepared.call("train", KEY)
        said = capsys.readouterr().out
        assert "profile 'tiny' replaces in every recipe: batch_size, crop, learning_rate" in said
        assert f"{KEY} seed 0: resnet18_narrow, from scratch, 4 steps of 2 x 32 x 64, " in said
        assert "rate 0.02 (profile tiny; recipe plain: 0.01)\n" in said

    def test_an_option_that_has_no_effect_is_told(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepared.params["experiments"][KEY]["options"] |= {"stages": 1, "excitation": "tanh"}
        prepared.write()
        assert not prepared.call("train", KEY)
        assert f"experiments.{KEY}.options.excitation has no effect" in capsys.readouterr().out

    def test_a_run_is_a_function_of_its_seed(self, prepared: Workspace) -> None:
        weights = {}
        for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
            assert not prepared.call("train", KEY, "--seeds", seed)
            folder = SEED_0.with_name(f"seed-{seed}")
            weights[name] = (folder / "weights.safetensors").read_bytes()
            (folder / "run.json").unlink()  # or it would not be trained again
        assert weights["a"] == weights["b"] != weights["c"]

    def test_the_number_of_loader_processes_does_not_matter(self, prepared: Workspace) -> None:
        weights = []
        for workers in (0, 2):
            prepared.profile["training"]["loader_workers"] = workers
            prepared.write()
            assert not prepared.call("train", KEY)
            weights.append((SEED_0 / "weights.safetensors").read_bytes())
            (SEED_0 / "run.json").unlink()
        assert weights[0] == weights[1]

    def test_a_complete_training_is_not_done_again(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert not prepared.call("train", KEY)
        written = (SEED_0 / "weights.safetensors").stat().st_mtime_ns
        assert not prepared.call("train", KEY)
        assert (SEED_0 / "weights.safetensors").stat().st_mtime_ns == written
        assert "nothing to do" in capsys.readouterr().out

    def test_a_checkpoint_of_a_training_that_is_done_goes(self, prepared: Workspace) -> None:
        """A process that is killed just after the last file of a training has left it."""
        assert not prepared.call("train", KEY)
        left = [SEED_0 / "checkpoint.pt", SEED_0 / "checkpoint-previous.pt"]
        for path in left:
            path.write_bytes(b"as large as the network")
        assert not prepared.call("train", KEY)
        assert [path for path in left if path.exists()] == []

    def test_a_seed_that_is_taken_out_keeps_its_training(self, prepared: Workspace) -> None:
        assert not prepared.call("train", KEY, "--seeds", "0", "1")
        assert not prepared.call("train", KEY)
        assert SEED_0.with_name("seed-1").joinpath("weights.safetensors").is_file()

    def test_another_option_trains_again_and_the_old_training_comes_back_with_it(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert not prepared.call("train", KEY)
        before = (SEED_0 / "weights.safetensors").read_bytes()
        options = prepared.params["experiments"][KEY]["options"]
        options["excitation"] = "tanh"
        prepared.write()
        assert not prepared.call("train", KEY)
        assert (SEED_0 / "weights.safetensors").read_bytes() != before
        assert "1 training of earlier settings kept; 'make prune' removes them" in capsys.readouterr().out
        options["excitation"] = "sigmoid"
        prepared.write()
        assert not prepared.call("train", KEY)
        assert (SEED_0 / "weights.safetensors").read_bytes() == before
        assert "nothing to do" in capsys.readouterr().out

    def test_experiments_that_are_the_same_function_share_a_training(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        experiments = prepared.params["experiments"]
        # The same network under another name, with defaults written out and on the backbone that stands in.
        experiments["spgnet-same"] = experiments[KEY] | {
            "options": {"backbone": "resnet18_narrow", "excitation": "sigmoid", "identity": True}
        }
        prepared.write()
        assert not prepared.call("train", KEY, "spgnet-same")
        assert "2 trainings, 1 of them different" in capsys.readouterr().out
        assert [path.parent.parent.name for path in Path("results/tiny/train").rglob("run.json")] == [KEY]

    def test_the_training_depends_on_the_training_split_alone(self, prepared: Workspace) -> None:
        assert not prepared.call("train", KEY)
        written = (SEED_0 / "weights.safetensors").stat().st_mtime_ns
        prepared.profile["datasets"]["scenes"]["val"] = 5
        prepared.write()
        assert not prepared.call("prepare")
        assert not prepared.call("train", KEY)
        assert (SEED_0 / "weights.safetensors").stat().st_mtime_ns == written

    @pytest.mark.pipeline
    @pytest.mark.parametrize(
        ("number", "code"),
        [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 75)],
    )
    def test_stopped_and_started_again_it_ends_in_the_same_weights(
        self, prepared: Workspace, number: signal.Signals, code: int
    ) -> None:
        # A queue sends SIGUSR1 to every process of a job, those that load samples among them.
        everywhere = number == signal.SIGUSR1
        prepared.profile["recipe"] |= {"steps": 12, "average_last": 0.9}
        prepared.profile["training"] |= {
            "checkpoint_every": 1,
            "log_every": 5,
            "loader_workers": 2 if everywhere else 0,
        }
        prepared.params["experiments"][KEY]["options"]["stages"] = 1
        prepared.write()
        assert not prepared.call("train", KEY)
        expected = (SEED_0 / "weights.safetensors").read_bytes()
        history = (SEED_0 / "history.csv").read_bytes()
        (SEED_0 / "run.json").unlink()
        running = subprocess.Popen(
            [sys.executable, "-m", "experiments.train", KEY, "--workers", "1"],
            cwd=prepared.folder,
            env=stage_environment(),
        )
        deadline = time.monotonic() + 120
        while not (SEED_0 / "checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for process in workers_in(prepared.folder) if everywhere else [running.pid]:
            os.kill(process, number)
        assert running.wait() == code
        wait_until_gone(prepared.folder)
        assert 0 < read_checkpoint(SEED_0 / "checkpoint.pt")["step"] < 12, "too late to show anything"
        (SEED_0 / "weights.safetensors").unlink()
        assert not prepared.call("train", KEY)
        assert (SEED_0 / "weights.safetensors").read_bytes() == expected
        assert (SEED_0 / "history.csv").read_bytes() == history
        assert sorted(p.name for p in SEED_0.iterdir()) == ["history.csv", "run.json", "weights.safetensors"]

    @pytest.mark.parametrize("damage", ["truncated", "flipped"])
    def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(
        self,
        prepared: Workspace,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        damage: str,
    ) -> None:
        prepared.profile["recipe"] |= {"steps": 6, "average_last": 1.0}
        prepared.profile["training"]["checkpoint_every"] = 1
        prepared.write()
        assert not prepared.call("train", KEY)
        expected = (SEED_0 / "weights.safetensors").read_bytes()
        (SEED_0 / "run.json").unlink()
        self.stop_after(3, monkeypatch)
        assert prepared.call("train", KEY) == "143"
        path = SEED_0 / "checkpoint.pt"
        content = bytearray(path.read_bytes())
        if damage == "truncated":
            content = content[: len(content) // 2]
        else:
            content[len(content) // 2] ^= 1
        path.write_bytes(content)
        capsys.readouterr()
        assert not prepared.call("train", KEY)
        said = capsys.readouterr().out
        assert "checkpoint.pt: is damaged; going on from the one before it" in said
        assert "6 steps, going on at 2" in said
        assert (SEED_0 / "weights.safetensors").read_bytes() == expected

    @staticmethod
    def in_step(number: int, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
        """Has something happen in the given step of the next training, counted from 1."""
        from experiments.training import loop

        calls = []

        def rate(step: int, plan: Recipe) -> float:
            calls.append(step)
            if len(calls) == number:
                act()
            return schedules.learning_rate(step, plan)

        monkeypatch.setattr(loop, "learning_rate", rate)

    def stop_after(self, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sends this process SIGTERM in the given step of the next training."""
        self.in_step(steps, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)

    def test_a_deadline_leaves_a_checkpoint_and_says_what_is_left(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The clock jumps in a step, so that the deadline falls there however long imports take.
        passed = [0.0]
        clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(passed))
        monkeypatch.setattr(stopping, "time", clock)
        self.in_step(3, lambda: passed.append(3600), monkeypatch)
        assert prepared.call("train", "--minutes", "50") == "75"
        assert "stopped with 2 jobs left (spgnet-small seed 0, gun-small seed 0)" in capsys.readouterr().err
        assert (SEED_0 / "checkpoint.pt").is_file()
        assert not (SEED_0 / "run.json").exists()

    def test_a_checkpoint_of_another_configuration_is_not_resumed(
        self, prepared: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert not prepared.call("train", KEY)
        expected = load_file(SEED_0 / "weights.safetensors")
        (SEED_0 / "run.json").unlink()
        prepared.params["recipes"]["plain"]["momentum"] = 0.5
        prepared.write()
        with monkeypatch.context() as patch:
            self.stop_after(2, patch)
            assert prepared.call("train", KEY) == "143"
        prepared.params["recipes"]["plain"].pop("momentum")
        prepared.write()
        assert not prepared.call("train", KEY)
        assert all(torch.equal(v, expected[k]) for k, v in load_file(SEED_0 / "weights.safetensors").items())

    def test_a_loss_that_is_not_finite_stops_with_step_and_files(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepared.profile["recipe"] |= {"learning_rate": {"sgd": 1e30}, "steps": 20}
        prepared.write()
        assert prepared.call("train", KEY) == "1"
        message = capsys.readouterr().err
        assert f"train: {KEY} seed 0: the loss is not finite at step" in message
        assert "data/prepared/tiny/scenes/images/train/" in message
        assert not (SEED_0 / "run.json").exists()
        assert not (SEED_0 / "weights.safetensors").exists()

    def test_a_network_with_a_class_too_many_does_not_train(
        self, prepared: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As no loss minds, it would be found when it is scored, hours later."""
        forward = SPGNet.forward
        too_many = torch.zeros(2, 20, 32, 64)
        monkeypatch.setattr(SPGNet, "forward", lambda *given: replace(forward(*given), logits=too_many))
        assert prepared.call("train", KEY, "--workers", "0") == "1"
        said = capsys.readouterr().err
        assert f"train: {KEY} seed 0: SPGNet: class scores have shape (2, 20, 32, 64)" in said
        assert "expected (2, 19, 32, 64): images, classes, and the images' height and width\n" in said
        assert not SEED_0.exists()

    @pytest.mark.parametrize(
        ("model", "options"),
        [
            ("gun", {"backbone": "drn_d_14_narrow", "guidance": "fusion"}),
            ("semask", {"backbone": "swin_nano", "guided_upsampling": True}),
            ("semask", {"backbone": "swin_nano", "decoder": "msfapn"}),
            ("alignseg", {"backbone": "resnet18s_narrow"}),
        ],
        ids=["gun", "swin-gum", "msfapn", "alignseg"],
    )
    def test_offsets_that_are_not_finite_do_too(
        self, prepared: Workspace, model: str, options: dict[str, Any]
    ) -> None:
        prepared.profile["recipe"] |= {"learning_rate": {"sgd": 1e30}, "steps": 6}
        prepared.params["experiments"][KEY] |= {"model": model, "options": options}
        if "decoder" in options:
            prepared.params["recipes"]["plain"]["loss"] = {"name": "masks"}
        prepared.write()
        # In a process of its own: kernels of offsets once ended it without a word.
        done = prepared.stage("train", KEY, "--workers", "1")
        assert done.returncode == 1
        assert f"{KEY} seed 0: the loss is not finite at step" in done.stderr

    def test_data_that_is_not_prepared(self, workspace: Workspace) -> None:
        message = workspace.call("train", KEY)
        assert "data set 'scenes' is not prepared; run 'python -m experiments.prepare' first" in message

    def test_data_that_was_prepared_from_other_settings(self, prepared: Workspace) -> None:
        prepared.profile["datasets"]["scenes"]["train"] = 5
        prepared.write()
        assert "prepared from other settings than params.yaml has now" in prepared.call("train", KEY)

    def test_pretrained_weights_that_are_not_there(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        prepared.profile["recipe"]["pretrained"] = "resnet18.safetensors"
        prepared.write()
        assert prepared.call("train", KEY) == "1"
        assert "backbone weights: no file 'resnet18.safetensors'" in capsys.readouterr().err

    def test_weights_are_known_by_their_content(
        self, prepared: Workspace, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """One folder serves all experiments: a file for each backbone."""
        folder = prepared.folder / "weights"
        folder.mkdir()
        prepared.profile["recipe"]["pretrained"] = "weights"
        prepared.profile["backbones"] = {"resnet50": "resnet18"}
        prepared.write()
        assert prepared.call("train", KEY) == "1"
        assert "folder 'weights' has no resnet18.safetensors or resnet18.pth" in capsys.readouterr().err

        import timm

        for seed in (0, 1):
            torch.manual_seed(seed)
            save_file(timm.create_model("resnet18").state_dict(), folder / "resnet18.safetensors")
            assert not prepared.call("train", KEY)
            said = capsys.readouterr().out
            assert "weights of weights/resnet18.safetensors (sha256 " in said
            assert "nothing to do" not in said

    def test_with_two_processes_each_takes_its_share_of_the_batch(self, prepared: Workspace) -> None:
        done = subprocess.run(
            [*LAUNCHER, "-m", "experiments.train", KEY],
            env=stage_environment() | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        weights = load_file(SEED_0 / "weights.safetensors")
        assert all(value.isfinite().all() for value in weights.values())
        assert json.loads((SEED_0 / "run.json").read_text())["device"].startswith("2 x ")
        # One process finds the training done: it is the same one.
        assert "nothing to do" in prepared.stage("train", KEY).stdout


@pytest.mark.pipeline
def test_two_processes_that_are_killed_go_on_as_one_and_then_as_two_again(prepared: Workspace) -> None:
    """Same samples whoever reads them; weights as near to one process's as sums in another order are."""
    # A low rate: what sums in another order leave in the last digits grows with every step.
    prepared.profile["recipe"] |= {"steps": 24, "learning_rate": {"sgd": 1e-3}}
    prepared.profile["training"] |= {"checkpoint_every": 1, "log_every": 1}
    prepared.params["experiments"][KEY]["options"]["stages"] = 1
    prepared.write()
    assert not prepared.call("train", KEY)
    alone = pd.read_csv(SEED_0 / "history.csv")
    expected = load_file(SEED_0 / "weights.safetensors")
    (SEED_0 / "run.json").unlink()
    environment = stage_environment() | {"CUDA_VISIBLE_DEVICES": ""}
    one = [sys.executable, "-m", "experiments.train", KEY, "--workers", "0"]
    two = [*LAUNCHER, "-m", "experiments.train", KEY]
    chance = random.Random(3)
    steps = [0]
    for command in (two, one):
        running = subprocess.Popen(command, env=environment, start_new_session=True)
        last = steps[-1] + chance.randrange(3, 8)
        deadline = time.monotonic() + 120
        while steps[-1] < last and time.monotonic() < deadline:
            time.sleep(0.01)
            with suppress(OSError, ValueError):
                steps.append(read_checkpoint(SEED_0 / "checkpoint.pt")["step"])
        for process in workers_in(prepared.folder):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        running.wait()
        wait_until_gone(prepared.folder)
    assert steps[-1] < 24, "too late to show anything"
    done = subprocess.run(two, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    stretches = json.loads((SEED_0 / "run.json").read_text())["processes"]
    assert [stretch["count"] for stretch in stretches] == [2, 1, 2]
    assert (
        f", 2 processes from step 0, then 1 processes from step {stretches[1]['from_step']}, " in done.stdout
    )
    together = pd.read_csv(SEED_0 / "history.csv")
    assert list(together["step"]) == list(alone["step"])
    # The first loss is of the same weights and the same samples.
    assert together["loss"][0] == pytest.approx(alone["loss"][0], rel=1e-5)
    # Batch norm over the four values that two tiny images leave at the deepest level multiplies differences.
    assert together["loss"].to_numpy() == pytest.approx(alone["loss"].to_numpy(), rel=5e-2)
    found = load_file(SEED_0 / "weights.safetensors")
    learned = {name: value for name, value in expected.items() if "running_" not in name}
    apart = {name: float((found[name] - value).abs().max()) for name, value in learned.items()}
    assert max(apart.values()) < 1e-1, max(apart, key=apart.__getitem__)


def test_batch_norm_over_two_processes_is_the_batch_norm_of_the_whole_batch(tmp_path: Path) -> None:
    script = tmp_path / "norm.py"
    script.write_text(
        "from copy import deepcopy\n"
        "import torch\n"
        "from torch import nn\n"
        "from experiments.running.devices import open_devices\n"
        "from experiments.training.parallel import wrap\n"
        "with open_devices() as devices:\n"
        "    torch.manual_seed(0)\n"
        "    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))\n"
        "    net, twin = net.double(), deepcopy(net.double())\n"
        "    images = torch.randn(4, 3, 9, 8).double()\n"
        "    shared = wrap(net, devices)\n"
        "    shared(images[devices.rank :: 2]).square().mean().backward()\n"
        "    twin(images).square().mean().backward()\n"
        "    for (name, a), b in zip(net.named_parameters(), twin.parameters()):\n"
        "        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-12)\n"
        "    for a, b in zip(net.buffers(), twin.buffers()):\n"
        "        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)\n"
        "    print('equal')\n"
    )
    done = subprocess.run(
        [*LAUNCHER, str(script)],
        env=stage_environment() | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal") == 2


def test_class_counts_reach_a_loss_that_balances_classes() -> None:
    balanced = create_criterion(ClassBalancedSettings(name="class-balanced"), [99, 1])
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0, 0, 1] = 3.0  # wrong about the rare class
    labels = torch.tensor([[[0, 1]]])
    plain = create_criterion(CrossEntropySettings(), [99, 1])
    assert balanced(logits, labels) > plain(logits, labels)
    assert math.isfinite(balanced(logits, labels).item())
