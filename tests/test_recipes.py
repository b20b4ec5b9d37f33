"""What the keys of a recipe do: parameter groups, augmentation, input, and how its batch is cut."""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision import tv_tensors

import models
from experiments.config.recipes import Augmentation, PhotometricDistortion, Recipe, RecipeOverrides
from experiments.running.errors import StageError
from experiments.samples.augment import Augment
from experiments.samples.distortion import Distort, saturate
from experiments.samples.network_input import NetworkInput
from experiments.training.batches import cut
from experiments.training.optimizers import create_optimizer, parameter_groups
from models import Segmenter


def recipe(**changes: Any) -> Recipe:
    values = {"optimizer": "adamw", "learning_rate": 0.1, "steps": 100, "batch_size": 16, "crop": [8, 8]}
    return Recipe.model_validate({**values, "input_size": [8, 8], **changes})


def decays(model: Segmenter, **changes: Any) -> dict[str, float]:
    """The decay of every parameter, by name."""
    groups = parameter_groups(model, recipe(weight_decay=0.05, **changes))
    return {name: group.weight_decay for group in groups for name in group.parameters}


class TestParameterGroups:
    def test_mmsegmentations_rule_spares_layer_norms_and_position_biases_but_decays_batch_norms(self) -> None:
        model = models.create("semask", 3, backbone="swin_nano")
        decay = decays(model, no_decay=["layer-norms", "position-biases"])
        assert set(decay) == {name for name, _ in model.named_parameters()}
        free = {name for name, value in decay.items() if value == 0}
        # Whatever its names hold "norm" for, in the authors' names as in these ...
        assert all("norm" in name or "relative_position_bias" in name for name in free)
        # ... and the batch norms of the decoder, which they call bn, are not among it.
        batch_norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
        assert batch_norms
        assert all(decay[f"{name}.weight"] == 0.05 for name in batch_norms)
        assert decay["encoder.semantic_layers.1.attention.lambda_"] == 0.05

    def test_detectron2s_rule_spares_all_norms_and_embeddings_too(self) -> None:
        pytest.importorskip("transformers")
        model = models.create("semask", 3, backbone="swin_nano", decoder="mask2former")
        kinds = ["layer-norms", "batch-norms", "group-norms", "position-biases", "embeddings"]
        decay = decays(model, no_decay=kinds)
        spared = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.Embedding)
        for place, module in model.named_modules():
            for name, _ in module.named_parameters(recurse=False):
                exempt = isinstance(module, spared) or "relative_position_bias" in name
                assert decay[f"{place}.{name}"] == (0 if exempt else 0.05), name
        # A plain parameter in the authors' pixel decoder, an embedding in their transformer.
        assert decay["decoder.pixel_decoder.level_embed"] == 0.05
        assert decay["decoder.transformer.level_embed.weight"] == 0

    def test_the_backbone_learns_at_its_own_rate_and_semantic_layers_belong_to_it(self) -> None:
        model = models.create("semask", 3, backbone="swin_nano")
        groups = parameter_groups(model, recipe(backbone_factor=0.1))
        factors = {name: group.factor for group in groups for name in group.parameters}
        assert {name for name, factor in factors.items() if factor == 0.1} == {
            name for name, _ in model.named_parameters() if name.startswith("encoder.")
        }
        optimizer = create_optimizer(groups, recipe(backbone_factor=0.1))
        assert {round(group["lr"], 9) for group in optimizer.param_groups} == {0.1, 0.01}

    @pytest.mark.parametrize("name", ["sgd", "adamw"])
    def test_a_first_step_that_overflows_in_half_precision_leaves_nothing(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Memory that nobody has written yet.
        monkeypatch.setattr(torch, "empty_like", lambda tensor, **_: torch.full_like(tensor, 100.0))
        model = models.create("gun", 3, backbone="drn_d_14_narrow")
        plan = recipe(optimizer=name, momentum=0.9, weight_decay=0.0)
        optimizer = create_optimizer(parameter_groups(model, plan), plan)
        scaler = torch.amp.GradScaler("cpu")
        before = [parameter.detach().clone() for parameter in model.parameters()]
        for loss in (math.inf, 1.0):
            optimizer.zero_grad()
            total = torch.stack([parameter.sum() for parameter in model.parameters()]).sum()
            scaler.scale(total * loss).backward()
            scaler.step(optimizer)
            scaler.update()
        for parameter, start in zip(model.parameters(), before, strict=True):
            torch.testing.assert_close(parameter.detach(), start - plan.learning_rate)

    def test_a_factor_for_a_backbone_that_there_is_not_is_refused(self) -> None:
        model = models.create("gun", 3, backbone="drn_d_14_narrow")
        with pytest.raises(ValueError, match=r"backbone_factor is 0.1, and GUN.* names no backbone"):
            parameter_groups(model, recipe(backbone_factor=0.1))

    def test_the_table_of_groups_counts_every_parameter_once(self) -> None:
        model = models.create("alignseg", 3, backbone="resnet18s")
        rows = [group.described() for group in parameter_groups(model, recipe())]
        assert sum(row["parameters"] for row in rows) == sum(p.numel() for p in model.parameters())
        assert {(row["part"], row["kind"]) for row in rows} == {
            (part, kind) for part in ("backbone", "rest") for kind in ("batch-norms", "other weights")
        }


def sizes(
    augmentation: dict[str, Any], height: int, width: int, draws: int = 300, short_side: int = 0
) -> Counter:
    """How often an image of a size is resized to which."""
    network_input = NetworkInput([0.0] * 3, [1.0] * 3, short_side=short_side)
    augment = Augment(Augmentation.model_validate(augmentation), (8, 8), network_input)
    torch.manual_seed(0)
    return Counter(tuple(augment._size(height, width)) for _ in range(300))


class TestResizing:
    def test_a_factor_is_one_of_the_list_and_multiplies_the_size_at_test(self) -> None:
        found = sizes({"factors": [0.5, 1.0, 1.5]}, 300, 400, short_side=100)
        assert set(found) == {(50, 67), (100, 133), (150, 200)}
        assert min(found.values()) > 70

    def test_short_sides_are_absolute_and_the_longest_side_limits_them(self) -> None:
        found = sizes({"short_sides": [64, 96], "longest_side": 128}, 100, 200, short_side=1000)
        assert set(found) == {(64, 128)}
        assert set(sizes({"short_sides": [64, 96]}, 100, 200)) == {(64, 128), (96, 192)}

    def test_without_any_of_them_the_size_stays(self) -> None:
        assert set(sizes({}, 30, 40)) == {(30, 40)}

    @pytest.mark.parametrize(
        "augmentation",
        [{"scale": [0.5, 2.0]}, {"factors": [0.5]}, {"short_sides": [640], "longest_side": 2560}],
    )
    def test_a_profile_puts_a_range_in_place_of_whatever_resizes(self, augmentation: dict[str, Any]) -> None:
        changed = RecipeOverrides(scale=(0.75, 1.5)).apply(recipe(augmentation=augmentation))
        assert changed.augmentation == Augmentation(scale=(0.75, 1.5))
        unscaled = recipe(augmentation={})
        assert RecipeOverrides(scale=(0.75, 1.5)).apply(unscaled) == unscaled


class TestDistortion:
    @settings(deadline=None)
    @given(st.tuples(*[st.integers(0, 255)] * 3), st.floats(0.5, 1.5))
    def test_saturation_is_that_of_hsv(self, colour: tuple[int, int, int], factor: float) -> None:
        hue, saturation, value = colorsys.rgb_to_hsv(*(c / 255 for c in colour))
        expected = colorsys.hsv_to_rgb(hue, min(1.0, saturation * factor), value)
        found = saturate(torch.tensor(colour, dtype=torch.float32).view(3, 1, 1), factor)
        assert found.flatten().tolist() == pytest.approx([255 * c for c in expected], abs=1e-3)

    def test_brightness_is_added_to_all_channels_half_of_the_time(self) -> None:
        distort = Distort(PhotometricDistortion(brightness=32, contrast=0, saturation=0, hue=0))
        image = tv_tensors.Image(torch.tensor([100, 120, 140], dtype=torch.uint8).view(3, 1, 1))
        torch.manual_seed(0)
        shifts = []
        for _ in range(300):
            change = distort(image).int().flatten() - image.int().flatten()
            assert change.max() - change.min() <= 1  # but for the rounding
            shifts.append(int(change[0]))
        assert -32 <= min(shifts) < -25
        assert 25 < max(shifts) <= 32
        assert 110 < shifts.count(0) < 190

    def test_contrast_multiplies(self) -> None:
        distort = Distort(PhotometricDistortion(brightness=0, contrast=0.5, saturation=0, hue=0))
        image = tv_tensors.Image(torch.tensor([40, 80, 120], dtype=torch.uint8).view(3, 1, 1))
        torch.manual_seed(0)
        for _ in range(50):
            low, middle, high = distort(image).float().flatten().tolist()
            assert 19 <= low <= 61
            assert middle == pytest.approx(2 * low, abs=1.5)
            assert high == pytest.approx(3 * low, abs=2)


def test_padding_is_the_mean_colour_whatever_the_colours_became() -> None:
    settings = Augmentation(mirror=False, distortion=PhotometricDistortion())
    augment = Augment(settings, (6, 6), NetworkInput([0.5] * 3, [0.25] * 3))
    image = tv_tensors.Image(torch.full((3, 4, 4), 255, dtype=torch.uint8))
    seen, labels = augment(image, tv_tensors.Mask(torch.zeros(4, 4, dtype=torch.uint8)))
    assert seen.shape == (3, 6, 6)
    assert not seen[:, 4:].any()
    assert not seen[:, :, 4:].any()
    assert (labels[4:] == 255).all()


def test_bgr_mean_is_what_caffes_descendants_take() -> None:
    data: Any = None  # the data set's own colours do not matter
    seen = NetworkInput.of(data, recipe(normalisation="bgr-mean"))
    image = torch.tensor([10, 20, 30], dtype=torch.uint8).view(3, 1, 1)
    expected = [30 - 104.00698793, 20 - 116.66876762, 10 - 122.67891434]
    assert seen.normalise(image).flatten().tolist() == pytest.approx(expected, abs=1e-4)


class TestCut:
    def test_devices_and_micro_batches_divide_the_batch(self) -> None:
        made = cut(recipe(), devices=2, micro_batch=4)
        assert (made.part, made.parts, made.together) == (4, 2, 8)
        assert made.described() == "16 images: 2 x 2 x 4 (devices, parts, images)"

    def test_a_micro_batch_larger_than_the_share_is_the_share(self) -> None:
        assert cut(recipe(), devices=8, micro_batch=4).parts == 1

    @pytest.mark.parametrize(
        ("devices", "micro_batch", "changes", "complaint"),
        [
            (3, None, {}, "batch_size 16 does not divide over 3 devices"),
            (2, 3, {}, "a device's 8 of the 16 images .* micro_batch 3; take a divisor of 8"),
            (1, 4, {"loss": {"name": "ohem"}}, "'ohem' compares the pixels of the whole batch, .* 4 images"),
            (1, 2, {"loss": {"name": "lovasz", "group": 4}}, "of 4 images, which parts of 2 images cut"),
        ],
    )
    def test_what_cannot_be_made_is_said(
        self, devices: int, micro_batch: int | None, changes: dict[str, Any], complaint: str
    ) -> None:
        with pytest.raises(StageError, match=complaint):
            cut(recipe(**changes), devices, micro_batch)

    def test_a_group_as_large_as_the_batch_needs_no_whole_parts(self) -> None:
        assert cut(recipe(batch_size=2, loss={"name": "lovasz", "group": 4}), 1, None).parts == 1
