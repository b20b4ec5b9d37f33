"""The purely convolutional systems, and DANet, that the papers' tables compare with."""

from __future__ import annotations

import csv
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import models
from experiments.measuring.counters import count_calls, count_operators
from experiments.measuring.counting import count_parameters
from models import backbones
from models.backbones.squeezenet import SqueezeNet
from models.parts.layers import pad_to_multiple, unpool
from models.peers import danet, denseaspp, enet, erfnet, segnet
from models.peers.danet import PositionAttention

SMALL: dict[str, dict[str, Any]] = {
    "segnet": {"backbone": "vgg8_bn_narrow"},
    "enet": {},
    "sq": {"backbone": "squeezenet1_1_narrow"},
    "icnet": {"backbone": "resnet18"},
    "erfnet": {},
    "deeplabv3plus": {"backbone": "drn_d_14_narrow", "channels": 32},
    "denseaspp": {"backbone": "drn_d_14_narrow", "width": 32, "growth": 16},
    "danet": {"backbone": "drn_d_14_narrow"},
}


def on_meta(name: str, **options: Any) -> models.Segmenter:
    """A network without values, which costs nothing to build and to run."""
    with torch.device("meta"):
        return models.create(name, 19, **options).eval().requires_grad_(False)


def published(row: str, metric: str) -> float:
    """What SPGNet's table says of a system."""
    with (ROOT / "results/published/spgnet.csv").open() as file:
        (value,) = [r["value"] for r in csv.DictReader(file) if r["row"] == row and r["metric"] == metric]
    return float(value)


@pytest.mark.parametrize(
    ("name", "row"), [("denseaspp", "DenseASPP, DenseNet-161"), ("danet", "DANet, ResNet-101")]
)
def test_our_counting_is_the_papers(name: str, row: str) -> None:
    """Nobody chose the widths of these two to fit."""
    network = on_meta(name)
    macs = count_operators(network, (1024, 2048)).macs
    assert count_parameters(network) / 1e6 == pytest.approx(published(row, "parameters"), rel=0.02)
    assert macs / 1e9 == pytest.approx(published(row, "macs"), rel=0.02)


@pytest.mark.parametrize(
    ("name", "millions"), [("segnet", 29.4), ("enet", 0.36), ("erfnet", 2.06), ("deeplabv3plus", 41.05)]
)
def test_parameters_are_those_of_the_reference(name: str, millions: float) -> None:
    assert count_parameters(on_meta(name)) / 1e6 == pytest.approx(millions, rel=0.02)


def test_icnet_has_the_weights_of_the_authors_description() -> None:
    """6,671,424 is the sum over the convolutions of icnet_cityscapes_bnnomerge.prototxt (hszhao/ICNet)."""
    convolutions = {
        name: module.weight.numel()
        for name, module in on_meta("icnet").named_modules()
        if isinstance(module, nn.Conv2d) and "guidance" not in name
    }
    assert sum(convolutions.values()) == 6_671_424


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("size", [(1, 1), (33, 50), (64, 96)])
def test_logits_have_the_size_of_any_image(name: str, size: tuple[int, int]) -> None:
    model = models.create(name, 5, **SMALL[name]).eval()
    with torch.no_grad():
        prediction = model(torch.randn(1, 3, *size))
    assert prediction.logits.shape == (1, 5, *size)
    assert prediction.logits.isfinite().all()
    assert prediction.auxiliary == {}


@pytest.mark.parametrize("name", SMALL)
def test_both_counters_count_the_same(name: str) -> None:
    network = on_meta(name, **SMALL[name])
    size = (128, 256)
    assert count_calls(network, size) == count_operators(network, size).macs


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_takes_part_in_the_training(name: str) -> None:
    torch.manual_seed(0)
    model = models.create(name, 5, **SMALL[name]).train()
    for attention in ("position.1.gamma", "channel.1.gamma"):
        if attention in dict(model.named_parameters()):  # zero at the start: nothing behind it learns
            nn.init.ones_(model.get_parameter(attention))
    loss = sum(model.loss(model(torch.randn(2, 3, 64, 96)), torch.randint(0, 5, (2, 64, 96))).values())
    assert isinstance(loss, Tensor)
    loss.backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert idle == []


@pytest.mark.parametrize("name", SMALL)
def test_an_image_is_segmented_alike_alone_and_in_a_batch(name: str) -> None:
    torch.manual_seed(0)
    model = models.create(name, 5, **SMALL[name]).eval()
    images = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits[:1], model(images[:1]).logits, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("icnet", {"main": 1.0, "sixteenth": 0.4, "eighth": 0.4}),
        ("danet", {"main": 1.0, "position": 1.0, "channel": 1.0}),
        ("enet", {"main": 1.0}),
    ],
)
def test_what_is_supervised_and_how_much(name: str, weights: dict[str, float]) -> None:
    torch.manual_seed(0)
    model = models.create(name, 5, **SMALL[name]).train()
    labels = torch.randint(0, 5, (2, 64, 96))
    prediction = model(torch.randn(2, 3, 64, 96))
    terms = model.loss(prediction, labels)
    assert terms.keys() == weights.keys()
    for key, logits in prediction.auxiliary.items():
        resized = F.interpolate(logits, labels.shape[-2:], mode="bilinear", align_corners=False)
        torch.testing.assert_close(terms[key], weights[key] * F.cross_entropy(resized, labels))


def test_the_guidance_of_icnet_is_at_a_sixteenth_and_at_an_eighth() -> None:
    model = models.create("icnet", 5, backbone="resnet18").train()
    auxiliary = model(torch.randn(2, 3, 128, 192)).auxiliary
    assert auxiliary["sixteenth"].shape == (2, 5, 8, 12)
    assert auxiliary["eighth"].shape == (2, 5, 16, 24)


# DANet's attention


@pytest.mark.parametrize("entries", [1, 300, 2**26])
def test_position_attention_in_parts_is_the_plain_formula(entries: int) -> None:
    torch.manual_seed(0)
    attention = PositionAttention(16, entries).double()
    nn.init.constant_(attention.gamma, 0.7)
    features = torch.randn(2, 16, 5, 7, dtype=torch.float64)
    query, key, value = (
        layer(features).flatten(2) for layer in (attention.query, attention.key, attention.value)
    )
    similarity = torch.einsum("nci,ncj->nij", query, key).softmax(dim=2)
    expected = 0.7 * torch.einsum("nij,ncj->nci", similarity, value).view_as(features) + features
    torch.testing.assert_close(attention(features), expected)


def test_channel_attention_is_the_plain_formula() -> None:
    torch.manual_seed(0)
    attention = danet.ChannelAttention().double()
    nn.init.constant_(attention.gamma, 0.7)
    features = torch.randn(2, 6, 4, 3, dtype=torch.float64)
    flat = features.flatten(2)
    unlike = (-torch.einsum("nip,njp->nij", flat, flat)).softmax(dim=2)
    expected = 0.7 * torch.einsum("nij,njp->nip", unlike, flat).view_as(features) + features
    torch.testing.assert_close(attention(features), expected)


def test_channel_attention_does_not_depend_on_mixed_precision() -> None:
    torch.manual_seed(0)
    attention = danet.ChannelAttention()
    nn.init.constant_(attention.gamma, 0.7)
    features = 30 * torch.rand(1, 6, 20, 30)
    expected = attention(features)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(attention(features), expected)


class LiveMemory(TorchDispatchMode):
    """Adds up the bytes of all tensors that exist at a time, and keeps the most."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self._tensors: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(value, Tensor):
                self._add(value)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()  # views share a storage
        if key not in self._tensors:
            self._tensors[key] = 0
            self.live += size
            self.most = max(self.most, self.live)
        self._tensors[key] += 1
        weakref.finalize(tensor, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._tensors[key] -= 1
        if not self._tensors[key]:
            del self._tensors[key]
            self.live -= size


def test_danet_at_full_size_needs_little_memory() -> None:
    """The matrix of all positions by all positions alone would be 4 GiB, and its softmax as much again."""
    network = on_meta("danet")
    with LiveMemory() as memory:
        network(torch.empty(1, 3, 1024, 2048, device="meta"))
    assert memory.most < 2 * 2**30


def test_the_parts_of_an_attention_are_all_counted() -> None:
    features = torch.empty(1, 64, 32, 64, device="meta")
    counts = set()
    for entries in (2**15, 2**26):
        with torch.device("meta"):
            attention = PositionAttention(64, entries).requires_grad_(False)
        counts.add(count_operators(Features(attention, features), (1, 1)).macs)
    positions = 32 * 64
    assert counts == {positions * 64 * (8 + 8 + 64) + positions**2 * (8 + 64)}


class Features(nn.Module):
    """Counting gives an image; a part of a network takes features."""

    def __init__(self, part: nn.Module, features: Tensor):
        super().__init__()
        self.part, self.features = part, features

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.part(self.features)
        return result


def test_the_last_stage_of_danets_resnet_has_a_dilation_for_each_block() -> None:
    stage = on_meta("danet").get_submodule("backbone.trunk.layer4")
    convolutions = [m for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert [c.dilation for c in convolutions] == [(4, 4), (8, 8), (16, 16)]
    assert [c.padding for c in convolutions] == [(4, 4), (8, 8), (16, 16)]


# Backbones


def test_a_dilated_densenet_sees_what_the_strided_one_sees() -> None:
    """Every second of its features is what the network that pools finds."""
    torch.manual_seed(0)
    plain = backbones.create("densenet121", levels=(3,)).eval()
    dilated = backbones.create("densenet121", levels=(3,), output_stride=8).eval()
    dilated.load_state_dict(plain.state_dict())
    assert (plain.strides, dilated.strides) == ([16], [8])
    # Pooling a map that is constant in blocks of two by two keeps every second value. So these two inputs of
    # the third block are the same map before and after the pooling that one of the networks leaves out.
    block, wide = (network.get_submodule("trunk.features_denseblock3") for network in (plain, dilated))
    features = torch.randn(1, 256, 6, 8)
    with torch.no_grad():
        every_second = wide(features.repeat_interleave(2, -1).repeat_interleave(2, -2))[..., ::2, ::2]
        torch.testing.assert_close(every_second, block(features), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "stride", "strides"),
    [
        ("densenet121", 16, [4, 8, 16, 16]),
        ("resnet50", 8, [4, 8, 8, 8]),
        ("xception65", 16, [4, 8, 16, 16]),
        ("drn_d_14_narrow", 16, [4, 8, 8, 8]),
    ],
)
def test_backbones_stop_at_a_stride(name: str, stride: int, strides: list[int]) -> None:
    with torch.device("meta"):
        backbone = backbones.create(name, output_stride=stride).eval().requires_grad_(False)
        features = backbone(torch.zeros(1, 3, 64, 128))
    assert backbone.strides == strides
    assert [64 // f.shape[-2] for f in features] == strides
    assert [f.shape[1] for f in features] == backbone.channels


@pytest.mark.parametrize(
    ("name", "stride", "message"),
    [
        ("resnet50", 4, "output_stride is 4; expected 8 or 16"),
        ("swin_tiny_patch4_window7_224", 8, "'swin_tiny_patch4_window7_224' cannot stop at stride 8"),
    ],
)
def test_a_backbone_that_cannot_stop_there_says_so(name: str, stride: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        backbones.create(name, output_stride=stride)


def test_squeezenet_is_torchvisions_apart_from_the_border(tmp_path: Path) -> None:
    from torchvision.models import squeezenet1_1

    theirs = squeezenet1_1().eval()
    torch.save(theirs.state_dict(), tmp_path / "squeezenet.pth")
    ours = SqueezeNet("squeezenet1_1", pretrained=str(tmp_path / "squeezenet.pth")).eval()
    theirs.get_submodule("features.0").padding = (1, 1)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = ours(images)
        torch.testing.assert_close(features[-1], theirs.features(images))
    assert [tuple(f.shape[1:]) for f in features] == [(64, 32, 48), (128, 16, 24), (256, 8, 12), (512, 4, 6)]
    assert ours.channels == [64, 128, 256, 512]


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"ImageNet weights of 'squeezenet1_1' do not fit: .*features"):
        SqueezeNet("squeezenet1_1", pretrained=str(tmp_path / "other.pth"))


# Unpooling


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (32, 64)])
def test_padding_goes_below_and_to_the_right(size: tuple[int, int]) -> None:
    images = torch.randn(1, 2, *size)
    padded = pad_to_multiple(images, 32)
    assert all(0 <= after - before < 32 for before, after in zip(size, padded.shape[-2:], strict=True))
    assert not any(side % 32 for side in padded.shape[-2:])
    torch.testing.assert_close(padded[..., : size[0], : size[1]], images)
    assert padded.count_nonzero() == images.count_nonzero()


def test_unpooling_is_torchs() -> None:
    values, places = F.max_pool2d(torch.randn(2, 3, 6, 10), 2, return_indices=True)
    torch.testing.assert_close(unpool(values, places), F.max_unpool2d(values, places, [2, 2]), rtol=0, atol=0)


def test_enets_shortcut_puts_values_where_the_maxima_were() -> None:
    torch.manual_seed(0)
    up = enet.Upsampling(4, 4).eval()
    for parameter in up.residual.parameters():
        nn.init.zeros_(parameter)
    nn.init.dirac_(up.get_parameter("shortcut.0.weight"))
    features = torch.rand(1, 4, 6, 8) + 1
    pooled, places = F.max_pool2d(features, 2, return_indices=True)
    with torch.no_grad():
        unpooled = up(pooled, places)
    is_maximum = features == pooled.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(unpooled > 0, is_maximum)
    torch.testing.assert_close(unpooled[is_maximum], features[is_maximum], rtol=1e-3, atol=1e-3)


def test_segnet_unpools_each_stage_to_the_places_of_its_own_pooling(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []
    used: list[Tensor] = []
    pool = F.max_pool2d

    def noted_pool(*args: Any, **options: Any) -> Any:
        values, places = pool(*args, **options)
        found.append(places)
        return values, places

    def noted_unpool(values: Tensor, places: Tensor) -> Tensor:
        used.append(places)
        return unpool(values, places)

    monkeypatch.setattr(F, "max_pool2d", noted_pool)
    monkeypatch.setattr(segnet, "unpool", noted_unpool)
    model = models.create("segnet", 5, backbone="vgg8_bn_narrow").eval()
    with torch.no_grad():
        model(torch.randn(1, 3, 45, 70))
    assert [places.shape[1] for places in found] == [8, 16, 32, 64, 64]
    assert all(one is other for one, other in zip(found, reversed(used), strict=True))


# Released checkpoints


def authors_danet(model: models.Segmenter) -> dict[str, Tensor]:
    """A state under the names of junfu1115/DANet."""
    theirs = {ours: name for name, ours in danet._RELEASED_MODULES.items()}
    state = {"pretrained.fc.weight": torch.zeros(1000, 8)}
    for key in model.state_dict():
        module, _, tensor = key.rpartition(".")
        name = theirs.get(module) or module.replace("backbone.trunk", "pretrained")
        state[f"{name}.{tensor}"] = torch.empty(0)
    return state


def authors_denseaspp(model: models.Segmenter) -> dict[str, Tensor]:
    """A state under the names of DeepMotionAIResearch/DenseASPP, as their data parallelism saved it."""
    state = {}
    layers = {0: "norm.1", 2: "conv.1", 3: "norm.2", 5: "conv.2"}
    for key in model.state_dict():
        name = key.replace("backbone.trunk.features_", "features.")
        for part in ("norm", "conv"):
            for number in "12":
                name = name.replace(f".{part}{number}.", f".{part}.{number}.")
        name = name.replace("features.norm5", "features.transition4.norm")
        name = name.replace("reduce.0", "features.transition4.conv").replace("reduce.1", "features.norm5")
        name = name.replace("classifier.1", "classification.1")
        if name.startswith("layers."):
            _, layer, part, tensor = name.split(".")
            name = f"ASPP_{denseaspp.DILATIONS[int(layer)]}.{layers[int(part)]}.{tensor}"
        state[f"module.{name}"] = torch.empty(0)
    return state


def authors_erfnet(model: models.Segmenter) -> dict[str, Tensor]:
    """A state under the names of Eromera/erfnet_pytorch."""
    theirs = {ours: name for name, ours in erfnet._RELEASED_MODULES.items()}
    state = {f"module.encoder.output_conv.{name}": torch.zeros(20) for name in ("weight", "bias")}
    for key in model.state_dict():
        module, _, tensor = key.rpartition(".")
        state[f"module.{theirs[module]}.{tensor}"] = torch.empty(0)
    return state


RELEASED: dict[str, tuple[Callable[[models.Segmenter], dict[str, Tensor]], dict[str, Any], str]] = {
    "danet": (authors_danet, {"backbone": "resnet18"}, "head.sa.gamma"),
    "denseaspp": (
        authors_denseaspp,
        {"backbone": "densenet121", "width": 32, "growth": 16},
        "module.ASPP_24.conv.2.weight",
    ),
    "erfnet": (authors_erfnet, {}, "module.decoder.layers.4.conv1x3_2.weight"),
}


def released(name: str) -> tuple[models.Segmenter, models.Segmenter, dict[str, Tensor]]:
    """Two networks of different weights, and the first one's under the authors' names."""
    names, options, _ = RELEASED[name]
    source, target = (models.create(name, 5, **options).eval() for _ in range(2))
    state = names(source)
    # Both list the same tensors in the same order, after those that only the authors have.
    own = list(source.state_dict().values())
    extra = len(state) - len(own)
    state |= dict(zip(list(state)[extra:], own, strict=True))
    return source, target, state


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_checkpoint_loads_under_the_authors_names(name: str) -> None:
    torch.manual_seed(0)
    source, target, state = released(name)
    models.load_released(target, state)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(target(images).logits, source(images).logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", RELEASED)
def test_a_released_checkpoint_that_does_not_fit_is_named(name: str) -> None:
    _, target, state = released(name)
    key = RELEASED[name][2]
    wrong = state | {key: torch.zeros(7, 7, 7)}
    with pytest.raises(ValueError, match=rf"{key!r} has shape \(7, 7, 7\), the model needs"):
        models.load_released(target, wrong)
    with pytest.raises(ValueError, match=r"'head\.conv99\.weight' has no counterpart in this"):
        models.load_released(target, state | {"head.conv99.weight": torch.zeros(1)})
    state.pop(key)
    with pytest.raises(ValueError, match="released checkpoint: nothing in it for"):
        models.load_released(target, state)


@pytest.mark.parametrize("name", ["segnet", "enet", "sq", "icnet", "deeplabv3plus"])
def test_what_nobody_can_have_as_tensors_has_no_format(name: str) -> None:
    with pytest.raises(ValueError, match="authors' checkpoint format is not known"):
        models.load_released(models.create(name, 5, **SMALL[name]), {})


# Options


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("danet", {"auxiliary_weight": -1.0}, "auxiliary_weight is -1.0; expected 0 or more"),
        ("danet", {"backbone": "swin_nano"}, "swin_nano"),
        ("denseaspp", {"width": 0}, "width is 0; expected at least 1 channel"),
        ("denseaspp", {"growth": 0}, "growth is 0; expected at least 1 channel"),
        ("deeplabv3plus", {"channels": 0}, "channels is 0; expected at least 1"),
        ("icnet", {"kernels": "third"}, "kernels is 'third'; expected one of half, all"),
        ("icnet", {"backbone": "vgg16"}, "backbone is 'vgg16'; expected a ResNet"),
        ("icnet", {"auxiliary_weight": -1.0}, "auxiliary_weight is -1.0; expected 0 or more"),
        ("icnet", {"pretrained": True}, "no ImageNet weights of 'resnet50 with half of its kernels'"),
        ("segnet", {"backbone": "resnet18"}, "unknown backbone 'resnet18'; did you mean"),
        ("sq", {"backbone": "resnet18"}, "backbone is 'resnet18'; expected one of squeezenet1_1"),
        ("enet", {"pretrained": True}, "no ImageNet weights of 'enet'; set 'pretrained' to false"),
        ("erfnet", {"pretrained": True}, "no ImageNet weights of 'erfnet'; set 'pretrained' to false"),
    ],
)
def test_an_impossible_option_gets_one_line(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        models.create(name, 5, **options)
    assert "\n" not in str(caught.value)


def test_every_system_has_the_subsampling_of_its_row() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    said = {}
    with (ROOT / "results/published/gun.csv").open() as file:
        for row in csv.DictReader(file):
            if row["table"] == "cityscapes-test" and row["metric"] == "subsampling":
                said[row["row"]] = int(row["value"])
    checked = set()
    for name in SMALL:
        entry = params["experiments"][name]
        if entry["paper"] == "gun":
            assert params["recipes"][entry["recipe"]].get("subsampling", 1) == said[entry["row"]], name
            checked.add(name)
    assert len(checked) == 6
