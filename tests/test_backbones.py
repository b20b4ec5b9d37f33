"""Backbones behind one door: timm's, the deep-stem ResNets and dilated residual networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from models import backbones


@pytest.mark.parametrize(
    ("name", "levels", "strides"),
    [
        ("resnet18", (1, 2, 3, 4), [4, 8, 16, 32]),
        ("resnet18s", (2, 4), [8, 32]),
        ("drn_d_22", (1, 2, 3, 4), [4, 8, 8, 8]),
        ("drn_d_14_narrow", (0, 4), [2, 8]),
        ("mobilenetv3_small_100", (0, 1), [2, 4]),
    ],
)
def test_every_family_announces_its_features(name: str, levels: tuple[int, ...], strides: list[int]) -> None:
    with torch.device("meta"):
        backbone = backbones.create(name, levels=levels)
        features = backbone(torch.empty(1, 3, 64, 96))
    assert backbone.strides == strides
    assert [feature.shape for feature in features] == [
        (1, channels, 64 // stride, 96 // stride)
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]


def test_deep_stem_resnets_start_with_three_convolutions() -> None:
    with torch.device("meta"):
        stem = dict(backbones.create("resnet34s").named_modules())["trunk.conv1"]
    convolutions = [module for module in stem.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [convolution.out_channels for convolution in convolutions] == [64, 64, 128]


@pytest.mark.parametrize("name", ["resnet18", "resnet18s"])
def test_the_narrow_resnets_are_half_as_wide(name: str) -> None:
    with torch.device("meta"):
        whole, half = backbones.create(name), backbones.create(f"{name}_narrow")
    assert [2 * channels for channels in half.channels] == whole.channels
    assert half.strides == whole.strides


@pytest.mark.parametrize(
    ("typed", "meant"), [("drn_d22", "drn_d_22"), ("resnet50_", "resnet50"), ("resnet34ss", "resnet34s")]
)
def test_an_unknown_name_is_refused_with_the_nearest_one(typed: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown backbone '{typed}'; did you mean '{meant}'"):
        backbones.check_name(typed)
    with pytest.raises(ValueError, match=f"unknown backbone '{typed}'"):
        backbones.create(typed)


@pytest.mark.parametrize("name", ["resnet18", "drn_d_14_narrow"])
def test_levels_that_a_backbone_does_not_have_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"backbone '{name}' has no feature levels \[1, 9\]"):
        backbones.create(name, levels=(1, 9))


def test_a_dilated_residual_network_has_no_options() -> None:
    with pytest.raises(ValueError, match="backbone 'drn_d_22' has no option 'stem_width'"):
        backbones.create("drn_d_22", stem_width=32)


@pytest.mark.parametrize("name", ["resnet18", "drn_d_22"])
def test_a_missing_weight_file_is_named(name: str, tmp_path: Path) -> None:
    path = str(tmp_path / "missing.pth")
    with pytest.raises(FileNotFoundError, match=r"no file .*missing\.pth"):
        backbones.create(name, pretrained=path)


def test_a_timm_backbone_takes_weights_from_a_local_file(tmp_path: Path) -> None:
    classifier = timm.create_model("resnet10t")
    path = str(tmp_path / "weights.pth")
    torch.save(classifier.state_dict(), path)
    backbone = backbones.create("resnet10t", pretrained=path)
    own = backbone.state_dict()
    expected = {key: value for key, value in classifier.state_dict().items() if not key.startswith("fc.")}
    assert own.keys() == {f"trunk.{key}" for key in expected}
    assert all(torch.equal(own[f"trunk.{key}"], value) for key, value in expected.items())


def test_a_weight_file_without_a_classifier_will_do(tmp_path: Path) -> None:
    path = str(tmp_path / "weights.pth")
    trained = timm.create_model("resnet10t").state_dict()
    torch.save({key: value for key, value in trained.items() if not key.startswith("fc.")}, path)
    backbones.create("resnet10t", pretrained=path)


@pytest.mark.parametrize(
    ("name", "of", "named"),
    [
        ("resnet18", "resnet34", "layer1.2"),
        ("resnet18", "resnet26", "layer1.0"),
        ("resnet18s", "resnet18", "the stem differs"),
        ("resnet34", "resnet18", "layer1.2"),
    ],
)
def test_a_weight_file_of_another_model_is_refused_in_a_line(
    tmp_path: Path, name: str, of: str, named: str
) -> None:
    path = str(tmp_path / "weights.pth")
    torch.save(timm.create_model(of).state_dict(), path)
    with pytest.raises(
        ValueError, match=rf"weights\.pth' does not hold the weights of '{name[:8]}'"
    ) as refused:
        backbones.create(name, pretrained=path)
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["resnet18", "resnet18s", "drn_d_22"])
def test_a_file_that_is_no_weight_file_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_text("not weights")
    with pytest.raises(ValueError, match=r"weights\.pth' cannot be read as weights"):
        backbones.create(name, pretrained=str(path))


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(ValueError, match="there are no ImageNet weights of 'resnet18s'"):
        backbones.create("resnet18s", pretrained=True)


def test_an_unreachable_hub_gives_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise OSError(f"no route to the hub\nfor {arguments} {options}")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConnectionError, match="'resnet18' could not be fetched") as refused:
        backbones.create("resnet18", pretrained=True)
    assert "\n" not in str(refused.value)
