from __future__ import annotations

import gc
import json
import math
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import ROOT, World, stage_environment
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torchvision import tv_tensors

import models
from experiments import train
from experiments.config.recipes import (
    Augmentation,
    ColourJitter,
    Loss,
    PolySchedule,
    Recipe,
    StepSchedule,
    Warmup,
)
from experiments.running import command, sources
from experiments.samples.augment import Augment, NetworkInput
from experiments.samples.prepared import PreparedDataset, TrainingSamples
from experiments.training import schedules
from experiments.training.optimizers import create_optimizer

KEY = "spgnet-small"
SEED_0 = Path("results/train") / KEY / "seed-0"


def recipe(**changes: Any) -> Recipe:
    values = {"optimizer": "sgd", "learning_rate": 0.1, "steps": 100, "batch_size": 2, "crop": [8, 8]}
    return Recipe.model_validate({**values, "input_size": [8, 8], **changes})


@pytest.fixture
def prepared(world: World) -> World:
    assert not world.call("prepare")
    return world


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


class TestOptimizer:
    def test_norms_and_position_biases_are_free_of_decay_where_the_recipe_says_so(self) -> None:
        model = models.create("semask", 3, backbone="swin_nano")
        optimizer = create_optimizer(model, recipe(optimizer="adamw", weight_decay=0.05, decay_norms=False))
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        free = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] == 0 for p in g["params"]}
        decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] > 0 for p in g["params"]}
        assert free | decayed == set(names.values())
        assert any("relative_position_bias" in name for name in free)
        assert not any("relative_position_bias" in name or "norm" in name for name in decayed)
        # Nothing else but the batch norms: the biases of linear layers and lambda decay.
        others = {n for n in free if "relative_position_bias" not in n and "norm" not in n}
        assert others
        assert all(name.startswith("decoder.scale_heads") for name in others)
        assert any(name.endswith("attention.lambda_") for name in decayed)

    def test_by_default_everything_decays(self) -> None:
        optimizer = create_optimizer(torch.nn.BatchNorm2d(3), recipe(weight_decay=0.1))
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1]


def test_each_colour_changes_with_its_own_probability() -> None:
    settings = Augmentation(mirror=False, scale=None, colour=ColourJitter(probability=0.5, brightness=0.4))
    augment = Augment(settings, (8, 8), NetworkInput([0.0] * 3, [1.0] * 3))
    image = tv_tensors.Image(torch.full((3, 8, 8), 100, dtype=torch.uint8))
    labels = tv_tensors.Mask(torch.zeros(8, 8, dtype=torch.uint8))
    torch.manual_seed(0)
    changed = [bool((augment(image, labels)[0] - 100 / 255).abs().max() > 1e-3) for _ in range(200)]
    assert 70 < sum(changed) < 130


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

    def test_imagenet_weights_get_images_as_they_were_trained_on(self, prepared: World) -> None:
        data = PreparedDataset.load("scenes")
        black = tv_tensors.Image(torch.zeros(3, 4, 4, dtype=torch.uint8))
        trained_before = data.network_input(recipe(pretrained=True)).whole(black)
        assert trained_before[:, 0, 0].tolist() == pytest.approx([-2.1179, -2.0357, -1.8044], abs=1e-3)
        from_scratch = data.network_input(recipe(pretrained=False))
        assert (from_scratch.mean, from_scratch.std) == (data.mean, data.std)


class TestStream:
    @pytest.fixture
    def samples(self, prepared: World) -> TrainingSamples:
        data = PreparedDataset.load("scenes")
        augment = Augment(Augmentation(scale=(0.5, 2.0)), (16, 24), NetworkInput(data.mean, data.std))
        return TrainingSamples(data, augment, seed=3)

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

    def test_crops_have_the_crops_size_and_pad_with_ignored_labels(self, samples: TrainingSamples) -> None:
        samples.augment = Augment(
            Augmentation(scale=(0.5, 0.5)), (32, 64), NetworkInput([0.5] * 3, [0.2] * 3)
        )
        image, labels, _ = samples[0]
        assert image.shape == (3, 32, 64)
        assert labels.shape == (32, 64)
        assert (labels[16:] == 255).all()
        assert image[:, 16:].abs().max() < 0.02  # the mean colour, to the nearest of 256 levels

    def test_image_and_labels_are_mirrored_together(self, prepared: World) -> None:
        data = PreparedDataset.load("scenes")
        plain, mirrored = (
            Augment(Augmentation(mirror=mirror, scale=None), (32, 64), NetworkInput(data.mean, data.std))
            for mirror in (False, True)
        )
        samples = TrainingSamples(data, plain, seed=0)
        image, labels, _ = samples[0]
        samples.augment = mirrored
        for seed in range(20):
            samples.seed = seed
            if samples.sample_at(0) == TrainingSamples(data, plain, 0).sample_at(0):
                flipped, flipped_labels, _ = samples[0]
                if not torch.equal(flipped, image):
                    assert torch.equal(flipped, image.flip(-1))
                    assert torch.equal(flipped_labels, labels.flip(-1))
                    return
        pytest.fail("20 seeds, and none mirrored the image")


class TestRun:
    def test_writes_weights_history_and_provenance(self, prepared: World) -> None:
        assert not prepared.call("train", KEY)
        history = pd.read_csv(SEED_0 / "history.csv")
        assert list(history["step"]) == [2, 4]
        assert {"loss", "main", "learning_rate"} <= set(history)
        about = json.loads((SEED_0 / "run.json").read_text())
        assert about["options"]["backbone"] == "resnet18"
        assert about["packages"]["torch"]
        assert sorted(p.name for p in SEED_0.iterdir()) == ["history.csv", "run.json", "weights.safetensors"]

    def test_a_run_is_a_function_of_its_seed(self, prepared: World) -> None:
        weights = {}
        for name, seeds in (("a", [0]), ("b", [0]), ("c", [1])):
            prepared.params["seeds"] = seeds
            prepared.write()
            assert not prepared.call("train", KEY)
            folder = SEED_0.with_name(f"seed-{seeds[0]}")
            weights[name] = (folder / "weights.safetensors").read_bytes()
            (folder / "run.json").unlink()  # or it would not be trained again
        assert weights["a"] == weights["b"] != weights["c"]

    def test_the_number_of_loader_processes_does_not_matter(self, prepared: World) -> None:
        weights = []
        for workers in (0, 2):
            prepared.params["profiles"]["tiny"]["training"]["workers"] = workers
            prepared.write()
            assert not prepared.call("train", KEY)
            weights.append((SEED_0 / "weights.safetensors").read_bytes())
            (SEED_0 / "run.json").unlink()
        assert weights[0] == weights[1]

    def test_a_complete_training_is_not_done_again(self, prepared: World) -> None:
        assert not prepared.call("train", KEY)
        written = (SEED_0 / "weights.safetensors").stat().st_mtime_ns
        assert not prepared.call("train", KEY)
        assert (SEED_0 / "weights.safetensors").stat().st_mtime_ns == written

    def test_another_option_trains_again_and_forgets_other_seeds(self, prepared: World) -> None:
        prepared.params["seeds"] = [0, 1]
        prepared.write()
        assert not prepared.call("train", KEY)
        before = (SEED_0 / "weights.safetensors").read_bytes()
        prepared.params["seeds"] = [0]
        prepared.params["experiments"][KEY]["options"]["excitation"] = "tanh"
        prepared.write()
        assert not prepared.call("train", KEY)
        assert (SEED_0 / "weights.safetensors").read_bytes() != before
        assert [p.name for p in SEED_0.parent.iterdir()] == ["seed-0"]

    @pytest.mark.pipeline
    def test_killed_and_started_again_it_ends_in_the_same_weights(self, prepared: World) -> None:
        prepared.params["profiles"]["tiny"]["recipe"]["steps"] = 12
        prepared.params["profiles"]["tiny"]["training"] |= {"checkpoint_every": 1, "log_every": 5}
        prepared.params["experiments"][KEY]["options"]["stages"] = 1
        prepared.write()
        assert prepared.stage("train", KEY).returncode == 0
        expected = (SEED_0 / "weights.safetensors").read_bytes()
        history = (SEED_0 / "history.csv").read_bytes()
        (SEED_0 / "run.json").unlink()
        running = subprocess.Popen(
            [sys.executable, "-m", "experiments.train", KEY], cwd=prepared.folder, env=stage_environment()
        )
        deadline = time.monotonic() + 120
        while not (SEED_0 / "checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        assert (SEED_0 / "checkpoint.pt").exists()
        step = torch.load(SEED_0 / "checkpoint.pt", weights_only=True)["step"]
        assert 0 < step < 12, "killed too late to show anything"
        (SEED_0 / "weights.safetensors").unlink()
        assert prepared.stage("train", KEY).returncode == 0
        assert (SEED_0 / "weights.safetensors").read_bytes() == expected
        assert (SEED_0 / "history.csv").read_bytes() == history
        assert not (SEED_0 / "checkpoint.pt").exists()

    def test_a_checkpoint_of_another_configuration_is_not_resumed(self, prepared: World) -> None:
        assert not prepared.call("train", KEY)
        expected = load_file(SEED_0 / "weights.safetensors")
        (SEED_0 / "run.json").unlink()
        state = {"identity": {"configuration": "other", "code": "other"}, "step": 3}
        torch.save(state, SEED_0 / "checkpoint.pt")
        assert not prepared.call("train", KEY)
        assert all(torch.equal(v, expected[k]) for k, v in load_file(SEED_0 / "weights.safetensors").items())

    def test_a_loss_that_is_not_finite_stops_with_step_and_files(self, prepared: World) -> None:
        prepared.params["profiles"]["tiny"]["recipe"] |= {"learning_rate": {"sgd": 1e30}, "steps": 20}
        prepared.write()
        message = prepared.call("train", KEY)
        assert "experiment 'spgnet-small': the loss is not finite at step" in message
        assert "data/prepared/scenes/images/train/" in message
        assert not (SEED_0 / "run.json").exists()
        assert not (SEED_0 / "weights.safetensors").exists()

    @pytest.mark.parametrize(
        ("model", "options"),
        [
            ("gun", {"backbone": "drn_d_14_narrow", "guidance": "fusion"}),
            ("semask", {"backbone": "swin_nano", "guided_upsampling": True}),
            ("semask", {"backbone": "swin_nano", "decoder": "msfapn"}),
            ("alignseg", {"backbone": "resnet18s"}),
        ],
        ids=["gun", "swin-gum", "msfapn", "alignseg"],
    )
    def test_offsets_that_are_not_finite_do_too(
        self, prepared: World, model: str, options: dict[str, Any]
    ) -> None:
        prepared.params["profiles"]["tiny"]["recipe"] |= {"learning_rate": {"sgd": 1e30}, "steps": 6}
        prepared.params["experiments"][KEY] |= {"model": model, "options": options}
        prepared.write()
        # In a process of its own: kernels of offsets once ended it without a word.
        done = prepared.stage("train", KEY)
        assert done.returncode == 1
        assert f"experiment '{KEY}': the loss is not finite at step" in done.stderr

    def test_data_that_is_not_prepared(self, world: World) -> None:
        message = world.call("train", KEY)
        assert "data set 'scenes' is not prepared; run 'python -m experiments.prepare' first" in message

    def test_an_unknown_experiment(self, prepared: World) -> None:
        message = prepared.call("train", "spgnet-smal")
        assert "unknown experiment 'spgnet-smal'; did you mean 'spgnet-small'?" in message

    def test_pretrained_weights_that_are_not_there(self, prepared: World) -> None:
        prepared.params["profiles"]["tiny"]["recipe"]["pretrained"] = "resnet18.safetensors"
        prepared.write()
        assert "backbone weights: no file 'resnet18.safetensors'" in prepared.call("train", KEY)

    def test_with_two_processes_each_takes_its_share_of_the_batch(self, prepared: World) -> None:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        done = subprocess.run(
            [*launcher, "-m", "experiments.train", KEY],
            env=stage_environment() | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        weights = load_file(SEED_0 / "weights.safetensors")
        assert all(value.isfinite().all() for value in weights.values())
        assert json.loads((SEED_0 / "run.json").read_text())["device"].startswith("2 x ")


class TestEvaluate:
    @pytest.fixture
    def trained(self, prepared: World) -> World:
        assert not prepared.call("train", KEY)
        return prepared

    def test_scores_and_keeps_a_few_predictions(self, trained: World) -> None:
        assert not trained.call("evaluate", KEY)
        scores = json.loads(Path(f"results/evaluate/{KEY}.json").read_text())
        only = scores["seeds"][0]
        known = [iou for iou in only["class_iou"].values() if iou is not None]
        assert scores["miou"] == only["miou"] == pytest.approx(sum(known) / len(known), abs=1e-6)
        assert len(only["image_iou"]) == 3
        assert set(only["boundary_iou"]) == {"1", "3"}
        assert len(list(Path(f"results/predictions/{KEY}").glob("*.png"))) == 2

    def test_guided_upsampling_is_also_scored_without_guidance(self, prepared: World) -> None:
        prepared.params["experiments"]["gun-small"]["options"] = {
            "backbone": "drn_d_14_narrow",
            "guidance": "fusion",
        }
        # Offsets start at zero, where guided upsampling is bilinear, and so small a rate keeps them there.
        prepared.params["profiles"]["tiny"]["recipe"]["learning_rate"] = {"sgd": 1e-12}
        prepared.write()
        assert not prepared.call("train", "gun-small")
        assert not prepared.call("evaluate", "gun-small")
        scores = json.loads(Path("results/evaluate/gun-small.json").read_text())
        assert scores["boundary_iou_bilinear"] == pytest.approx(scores["boundary_iou"], abs=1e-4)

    def test_weights_of_another_model(self, trained: World) -> None:
        weights = models.create("spgnet", 19, backbone="resnet18", stages=1).state_dict()
        save_file(weights, SEED_0 / "weights.safetensors")
        assert "weights.safetensors: weights of another model" in trained.call("evaluate", KEY)

    def test_weights_of_other_settings(self, trained: World) -> None:
        trained.params["profiles"]["tiny"]["recipe"]["steps"] = 5
        trained.write()
        assert "trained with other data or settings" in trained.call("evaluate", KEY)

    def test_weights_that_are_cut_off(self, trained: World) -> None:
        path = SEED_0 / "weights.safetensors"
        path.write_bytes(path.read_bytes()[:1000])
        assert "do not decode" in trained.call("evaluate", KEY)

    def test_no_weights(self, prepared: World) -> None:
        assert "run 'python -m experiments.train spgnet-small' first" in prepared.call("evaluate", KEY)


def test_the_sources_of_a_training_are_the_models_and_those_that_decide_its_weights() -> None:
    names = {path.relative_to(ROOT).as_posix() for path in sources.files(["models.gun"])}
    assert {"models/gun.py", "models/backbones/drn.py", "models/segmenter.py", "models/__init__.py"} <= names
    assert not names & {"models/spgnet.py", "models/semask.py", "models/alignseg.py"}
    # Any model may stand on any backbone, so an edit to one of ours concerns them all.
    assert ROOT / "models/backbones/drn.py" in sources.files(["models.spgnet"])


def test_a_stage_collects_garbage_though_its_imports_did_not() -> None:
    enabled = []
    gc.disable()
    try:
        command.run("stage", lambda: enabled.append(gc.isenabled()))
    finally:
        gc.enable()
    assert enabled == [True]


def test_every_module_that_training_imports_is_a_source_or_cannot_change_weights() -> None:
    imported = {
        path.relative_to(ROOT / "experiments").with_suffix("").as_posix()
        for path in sources.files(["experiments.train"])
        if path.is_relative_to(ROOT / "experiments") and path.stem != "__init__"
    }
    # Settings reach a training by their values, which its configuration lists; the others write
    # files, talk to the user, read data that has a digest, or are checked by the test of a killed training.
    harmless = {"config/", "datasets/", "running/command", "running/provenance", "running/sources"}
    harmless |= {"running/storage", "training/training_state"}
    assert {name for name in imported if not name.startswith(tuple(harmless))} == set(train.SOURCES)


def test_class_counts_reach_a_loss_that_balances_classes() -> None:
    balanced = train.create_criterion(Loss(name="class-balanced"), [99, 1])
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 0, 0, 1] = 3.0  # wrong about the rare class
    labels = torch.tensor([[[0, 1]]])
    plain = train.create_criterion(Loss(), [99, 1])
    assert balanced(logits, labels) > plain(logits, labels)
    assert math.isfinite(balanced(logits, labels).item())
