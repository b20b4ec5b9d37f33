"""Dilated residual networks: structure, published size, and the authors' weight files."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn

from models import backbones
from models.backbones import drn

CLASSIFIER = 512 * 1000 + 1000
"""Parameters of the 1000-class classifier, which a backbone leaves out."""


def drn_d_22_file() -> dict[str, Tensor]:
    """Tensors under the names and in the shapes of the authors' DRN-D-22 file."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv_and_norm(conv: str, norm: str, out_channels: int, in_channels: int, kernel_size: int) -> None:
        shapes[f"{conv}.weight"] = (out_channels, in_channels, kernel_size, kernel_size)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{name}"] = (out_channels,)

    conv_and_norm("layer0.0", "layer0.1", 16, 3, 7)
    conv_and_norm("layer1.0", "layer1.1", 16, 16, 3)
    conv_and_norm("layer2.0", "layer2.1", 32, 16, 3)
    width = 32
    for stage, channels in ((3, 64), (4, 128), (5, 256), (6, 512)):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            conv_and_norm(f"{name}.conv1", f"{name}.bn1", channels, width, 3)
            conv_and_norm(f"{name}.conv2", f"{name}.bn2", channels, channels, 3)
            if block == 0:
                conv_and_norm(f"{name}.downsample.0", f"{name}.downsample.1", channels, width, 1)
            width = channels
    conv_and_norm("layer7.0", "layer7.1", 512, 512, 3)
    conv_and_norm("layer8.0", "layer8.1", 512, 512, 3)
    shapes |= {"fc.weight": (1000, 512, 1, 1), "fc.bias": (1000,)}
    return {name: torch.full(shape, float(index)) for index, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize(("name", "millions"), [("drn_d_22", 16.4), ("drn_d_38", 26.5), ("drn_d_54", 35.8)])
def test_size_as_classifier_is_the_published_one(name: str, millions: float) -> None:
    with torch.device("meta"):
        network = drn.DRN(name)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert round((parameters + CLASSIFIER) / 1e6, 1) == millions


@pytest.mark.parametrize("name", drn.NAMES)
@pytest.mark.parametrize("size", [(64, 96), (37, 51), (1, 9)])
def test_features_have_the_announced_channels_and_strides(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        network = drn.DRN(name, levels=range(5))
        features = network(torch.empty(1, 3, *size))
    assert network.strides == [2, 4, 8, 8, 8]
    for feature, channels, stride in zip(features, network.channels, network.strides, strict=True):
        assert feature.shape == (1, channels, *(-(-side // stride) for side in size))


def test_late_stages_dilate_instead_of_shrinking() -> None:
    with torch.device("meta"):
        network = drn.DRN("drn_d_38")
    dilations = {
        stage: {conv.dilation for conv in module.modules() if isinstance(conv, nn.Conv2d)} - {(1, 1)}
        for stage, module in network.named_children()
    }
    expected: dict[str, set[tuple[int, int]]] = {f"layer{index}": set() for index in range(9)}
    assert dilations == expected | {"layer5": {(2, 2)}, "layer6": {(4, 4)}, "layer7": {(2, 2)}}


def test_stages_beyond_the_last_level_are_neither_built_nor_run() -> None:
    early = drn.DRN("drn_d_14_narrow", levels=(0, 2))
    assert set(dict(early.named_children())) == {"layer0", "layer1", "layer2", "layer3", "layer4"}
    whole = drn.DRN("drn_d_14_narrow", levels=(0, 2, 4)).eval()
    early.eval().load_state_dict({key: whole.state_dict()[key] for key in early.state_dict()})
    whole.layer5 = nn.Identity()  # would give a wrong feature, were it run
    images = torch.randn(1, 3, 32, 32)
    for from_early, from_whole in zip(early(images), whole(images, (0, 2)), strict=True):
        assert torch.equal(from_early, from_whole)


@pytest.mark.parametrize("levels", [(), (1, 5), (-1,), (2, 1), (1, 1)])
def test_feature_levels_that_do_not_exist_are_refused(levels: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"feature levels"):
        drn.DRN("drn_d_14_narrow", levels)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_authors_file_loads_from_a_local_path(tmp_path: Path, suffix: str) -> None:
    tensors = drn_d_22_file()
    path = tmp_path / f"drn_d_22{suffix}"
    if suffix == ".pth":
        torch.save(tensors, path)
    else:
        from safetensors.torch import save_file

        save_file(tensors, path)
    network = backbones.create("drn_d_22", pretrained=str(path))
    loaded = {key: value for key, value in network.state_dict().items() if "num_batches" not in key}
    assert loaded.keys() == {key for key in tensors if not key.startswith("fc.")}
    assert all(torch.equal(value, tensors[key]) for key, value in loaded.items())
    early = backbones.create("drn_d_22", levels=(2,), pretrained=str(path))
    assert torch.equal(early.state_dict()["layer4.1.bn2.bias"], tensors["layer4.1.bn2.bias"])


def test_a_file_of_another_network_is_refused_by_the_tensor_that_differs(tmp_path: Path) -> None:
    tensors, path = drn_d_22_file(), str(tmp_path / "weights.pth")
    for wrong in (
        {key: value for key, value in tensors.items() if key != "layer6.1.bn2.weight"},
        tensors | {"layer6.1.bn2.weight": torch.zeros(2048)},
        tensors | {"layer6.2.bn2.weight": torch.zeros(512)},
    ):
        torch.save(wrong, path)
        with pytest.raises(ValueError, match=r"layer6\.[12]\.bn2\.weight") as refused:
            drn.DRN("drn_d_22", pretrained=path)
        assert "\n" not in str(refused.value)


def test_a_file_that_is_no_weight_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_text("not weights")
    with pytest.raises(ValueError, match=r"weights\.pth.* cannot be read"):
        drn.DRN("drn_d_22", pretrained=str(path))


def test_the_stand_in_says_that_it_has_no_published_weights() -> None:
    with pytest.raises(ValueError, match="no ImageNet weights of 'drn_d_14_narrow'"):
        drn.DRN("drn_d_14_narrow", pretrained=True)


def test_without_a_network_published_weights_give_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(url: str, **options: object) -> None:
        raise URLError(f"cannot resolve {url} with {options}")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(ConnectionError, match="'drn_d_22' could not be fetched") as refused:
        drn.DRN("drn_d_22", pretrained=True)
    assert "\n" not in str(refused.value)
