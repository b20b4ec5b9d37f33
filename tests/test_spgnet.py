"""SPGNet as its paper describes it: the guidance, the stages, the size, the ablations."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import models
from models.parts.semantic_guidance import PooledGuidance, SemanticPredictionGuidance
from models.spgnet import CrossStageAggregation, SPGNet

ABLATIONS: dict[str, dict[str, Any]] = {
    "r18-1stage": {"backbone": "resnet18", "stages": 1},
    "r34-1stage": {"backbone": "resnet34", "stages": 1},
    "r18-2stage": {"backbone": "resnet18", "reweighting": "none"},
    "r18-2stage-no-csfa": {
        "backbone": "resnet18",
        "reweighting": "none",
        "cross_stage_aggregation": False,
    },
    "r18-spg": {"backbone": "resnet18"},
    "r18-spg-unsupervised": {"backbone": "resnet18", "supervision": False},
    "r18-spg-no-identity": {"backbone": "resnet18", "identity": False},
    "r18-spg-softmax": {"backbone": "resnet18", "excitation": "softmax"},
    "r18-spg-tanh": {"backbone": "resnet18", "excitation": "tanh"},
    "r18-spg-relu": {"backbone": "resnet18", "excitation": "relu"},
    "r18-spg-linear": {"backbone": "resnet18", "excitation": "none"},
    "r18-se": {"backbone": "resnet18", "reweighting": "se", "identity": False, "supervision": False},
    "r18-ge": {"backbone": "resnet18", "reweighting": "ge", "identity": False, "supervision": False},
    "r18-3stage": {"backbone": "resnet18", "stages": 3},
    "r18-4stage-ge": {"backbone": "resnet18", "stages": 4, "reweighting": "ge"},
    "r50": {"backbone": "resnet50"},
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def cost(**options: Any) -> tuple[int, float]:
    """Parameters and multiply-accumulates of one 1024 x 2048 image with 19 classes."""
    with torch.device("meta"):
        model = SPGNet(19, **options).eval()
        images = torch.empty(1, 3, 1024, 2048)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return parameters(model), counter.get_total_flops() / 2


def batch(size: tuple[int, int] = (64, 64), num_classes: int = 5, count: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 3, *size), torch.randint(num_classes, (count, *size))


def total_loss(model: models.Segmenter, images: Tensor, labels: Tensor) -> Tensor:
    return torch.stack(list(model.loss(model(images), labels).values())).sum()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def two_stages() -> SPGNet:
    torch.manual_seed(0)
    return SPGNet(5, backbone="resnet18").eval()


# The size that the paper states


def test_two_resnet50_stages_have_the_published_parameters_and_multiply_accumulates() -> None:
    count, macs = cost()
    assert count == pytest.approx(59.8e6, rel=0.01)
    assert macs == pytest.approx(654.8e9, rel=0.02)


def test_one_resnet34_stage_costs_about_as_much_as_two_resnet18_stages() -> None:
    one, two = cost(backbone="resnet34", stages=1), cost(backbone="resnet18")
    assert one == pytest.approx(two, rel=0.1)


@pytest.mark.parametrize(
    ("options", "width"),
    [({"backbone": "resnet18"}, 64), ({}, 256), ({"backbone": "resnet18", "decoder_width": 24}, 24)],
)
def test_decoder_is_as_wide_as_the_encoder_at_a_quarter_unless_told_otherwise(
    options: dict[str, Any], width: int
) -> None:
    with torch.device("meta"):
        prediction = SPGNet(5, **options).eval()(torch.empty(1, 3, 64, 64))
    assert prediction.maps["stage1_guided_attention"].shape == (1, width, 16, 16)


# Supervise and excite


@pytest.mark.parametrize("excitation", ["relu", "tanh", "none"])
def test_identity_path_with_zero_excitation_leaves_the_features_untouched(excitation: Any) -> None:
    features, logits = torch.randn(2, 8, 6, 7), torch.randn(2, 3, 6, 7)
    for identity, expected in ((True, features), (False, torch.zeros_like(features))):
        guidance = SemanticPredictionGuidance(3, 8, excitation, identity)
        for parameter in guidance.parameters():
            nn.init.zeros_(parameter)
        guided, mask = guidance(features, logits)
        assert not mask.any()
        assert torch.equal(guided, expected)


def test_sigmoid_guidance_is_features_plus_features_times_the_excited_scores() -> None:
    features, logits = torch.randn(2, 8, 6, 7), torch.randn(2, 3, 6, 7)
    guidance = SemanticPredictionGuidance(3, 8, "sigmoid", identity=True)
    weight, bias = guidance.to_mask.parameters()
    mask = torch.sigmoid(torch.einsum("ck,nkhw->nchw", weight[:, :, 0, 0], logits) + bias[:, None, None])
    guided, returned = guidance(features, logits)
    torch.testing.assert_close(returned, mask)
    torch.testing.assert_close(guided, features + features * mask)


@pytest.mark.parametrize(
    ("excitation", "low", "high"),
    [("sigmoid", 0.0, 1.0), ("softmax", 0.0, 1.0), ("tanh", -1.0, 1.0), ("relu", 0.0, float("inf"))],
)
@given(scale=st.floats(0.01, 100))
@settings(max_examples=10, deadline=None)
def test_mask_stays_in_its_excitations_range(excitation: Any, low: float, high: float, scale: float) -> None:
    guidance = SemanticPredictionGuidance(3, 8, excitation, identity=True)
    _, mask = guidance(torch.ones(1, 8, 4, 4), scale * torch.randn(1, 3, 4, 4))
    assert low <= mask.min()
    assert mask.max() <= high
    per_class = guidance.per_class(mask)
    assert low - 1e-6 <= per_class.min()
    assert per_class.max() <= mask.max() + 1e-6


def test_softmax_excitation_makes_channels_compete_at_each_pixel() -> None:
    guidance = SemanticPredictionGuidance(3, 8, "softmax", identity=True)
    _, mask = guidance(torch.ones(2, 8, 4, 4), torch.randn(2, 3, 4, 4))
    torch.testing.assert_close(mask.sum(dim=1), torch.ones(2, 4, 4))


def test_attention_per_class_is_the_mean_mask_of_the_channels_that_the_class_excites() -> None:
    guidance = SemanticPredictionGuidance(num_classes=3, width=4, excitation="sigmoid", identity=True)
    weight = torch.tensor([[1.0, 0.0, -1.0], [3.0, 0.0, -1.0], [-2.0, 5.0, -1.0], [0.0, 0.0, 0.0]])
    guidance.to_mask.load_state_dict({"weight": weight[:, :, None, None], "bias": torch.zeros(4)})
    mask = torch.tensor([0.2, 0.6, 0.9, 0.4]).view(1, 4, 1, 1)
    expected = torch.tensor([(1 * 0.2 + 3 * 0.6) / 4, 0.9, 0.0]).view(1, 3, 1, 1)  # class 2 excites nothing
    torch.testing.assert_close(guidance.per_class(mask), expected)


def test_squeeze_and_excite_gives_one_mask_for_the_whole_image() -> None:
    _, mask = PooledGuidance(16, "sigmoid", identity=False, extent=None)(torch.randn(2, 16, 9, 12), None)
    assert mask.shape == (2, 16, 9, 12)
    assert torch.equal(mask, mask[:, :, :1, :1].expand_as(mask))
    assert not torch.equal(mask[0], mask[1])


def test_gather_and_excite_looks_only_at_the_neighbourhood() -> None:
    guidance = PooledGuidance(128, "sigmoid", identity=False, extent=2)
    features = torch.randn(1, 128, 9, 12)
    changed = features.clone()
    changed[..., -1, -1] += 10
    mask, other = guidance(features, None)[1], guidance(changed, None)[1]
    assert mask.shape == features.shape
    assert torch.equal(mask[..., :6, :8], other[..., :6, :8])
    assert not torch.equal(mask[..., -1, -1], other[..., -1, -1])


# Stages


def test_next_stage_starts_from_the_guided_features_and_has_no_stem(two_stages: SPGNet) -> None:
    seen: dict[str, Tensor] = {}
    second: Any = two_stages.stages[1]
    guidance, entry = two_stages.guidance[0], second.encoder.entry
    hooks = [
        guidance.register_forward_hook(lambda _module, _inputs, output: seen.update(guided=output[0])),
        entry.register_forward_hook(lambda _module, inputs, _output: seen.update(entered=inputs[0])),
    ]
    with torch.no_grad():
        two_stages(torch.randn(1, 3, 64, 96))
    for hook in hooks:
        hook.remove()
    assert seen["entered"] is seen["guided"]
    assert seen["guided"].shape == (1, 64, 16, 24)
    assert [conv.kernel_size for conv in entry.modules() if isinstance(conv, nn.Conv2d)] == [(1, 1)]


def test_stages_share_no_parameters_and_each_adds_its_own() -> None:
    with torch.device("meta"):
        counts = [parameters(SPGNet(5, backbone="resnet18", stages=n)) for n in (1, 2, 3, 4)]
    steps = [after - before for before, after in itertools.pairwise(counts)]
    assert steps[0] > 0.9 * counts[0]
    assert len(set(steps)) == 1


def test_cross_stage_aggregation_off_removes_exactly_its_parameters() -> None:
    with torch.device("meta"):
        on = SPGNet(5, backbone="resnet18", stages=3)
        off = SPGNet(5, backbone="resnet18", stages=3, cross_stage_aggregation=False)
    aggregations = [module for module in on.modules() if isinstance(module, CrossStageAggregation)]
    assert len(aggregations) == 2 * 4  # two later stages, four resolutions
    assert parameters(on) - parameters(off) == sum(parameters(module) for module in aggregations)
    assert not [module for module in off.modules() if isinstance(module, CrossStageAggregation)]


def test_cross_stage_aggregation_adds_both_features_to_the_encoders() -> None:
    aggregation = CrossStageAggregation(channels=8, decoder_width=4).eval()
    x, encoded, decoded = torch.randn(1, 8, 5, 6), torch.randn(1, 8, 5, 6), torch.randn(1, 4, 5, 6)
    expected = x + aggregation.from_encoder(encoded) + aggregation.from_decoder(decoded)
    torch.testing.assert_close(aggregation(x, encoded, decoded), expected)
    assert not torch.allclose(aggregation(x, encoded, decoded), aggregation(x, encoded, 0 * decoded))
    assert not torch.allclose(aggregation(x, encoded, decoded), aggregation(x, 0 * encoded, decoded))


def test_every_intermediate_stage_is_supervised() -> None:
    model = SPGNet(5, backbone="resnet18", stages=3)
    images, labels = batch()
    prediction = model(images)
    assert {name: tuple(scores.shape) for name, scores in prediction.auxiliary.items()} == {
        "stage1": (2, 5, 16, 16),
        "stage2": (2, 5, 16, 16),
    }
    assert set(model.loss(prediction, labels)) == {"main", "stage1", "stage2"}


@pytest.mark.parametrize("reweighting", ["spg", "se", "none"])
def test_without_supervision_the_first_stage_has_no_loss(reweighting: Any) -> None:
    model = SPGNet(5, backbone="resnet18", reweighting=reweighting, supervision=False)
    images, labels = batch()
    prediction = model(images)
    assert prediction.auxiliary == {}
    assert set(model.loss(prediction, labels)) == {"main"}


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablation_trains_a_step_and_its_gradients_reach_every_parameter(name: str) -> None:
    model = SPGNet(5, **ABLATIONS[name])
    for module in model.modules():
        # timm starts a residual branch's last norm at zero, which holds back the gradients before it.
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    images, labels = batch()
    before = {key: value.clone() for key, value in model.named_parameters()}
    loss = total_loss(model, images, labels)
    loss.backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert loss.isfinite()
    without = [
        key
        for key, value in model.named_parameters()
        if value.grad is None or not value.grad.any() or torch.equal(value, before[key])
    ]
    assert without == []


def test_every_stage_starts_from_the_pretrained_encoder(tmp_path: Path) -> None:
    weights = timm.create_model("resnet18").state_dict()
    file = tmp_path / "resnet18.pth"
    torch.save(weights, file)
    for stage in SPGNet(5, backbone="resnet18", pretrained=str(file)).stages:
        encoder: Any = stage.encoder
        for level, name in zip(encoder.levels, ("layer1", "layer2", "layer3", "layer4"), strict=True):
            for key, value in level.state_dict().items():
                assert torch.equal(value, weights[f"{name}.{key}"]), f"{name}.{key}"


# What comes out


@given(height=st.integers(1, 70), width=st.integers(1, 70), count=st.integers(1, 2))
@settings(max_examples=12, deadline=None)
def test_logits_have_the_images_own_resolution(
    two_stages: SPGNet, height: int, width: int, count: int
) -> None:
    with torch.no_grad():
        prediction = two_stages(torch.randn(count, 3, height, width))
    assert prediction.logits.shape == (count, 5, height, width)
    assert prediction.logits.isfinite().all()
    assert prediction.auxiliary == {}


@pytest.mark.parametrize("num_classes", [1, 150])
def test_any_number_of_classes_and_a_batch_of_one_train(num_classes: int) -> None:
    model = SPGNet(num_classes, backbone="resnet18")
    images, labels = batch((33, 47), num_classes, count=1)
    prediction = model(images)
    assert prediction.logits.shape == (1, num_classes, 33, 47)
    assert torch.isfinite(sum(model.loss(prediction, labels).values(), torch.zeros(())))


def test_maps_hold_both_predictions_and_the_guided_attention(two_stages: SPGNet) -> None:
    with torch.no_grad():
        maps = two_stages(torch.randn(2, 3, 64, 96)).maps
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        "stage1_prediction": (2, 5, 16, 24),
        "stage1_guided_attention": (2, 64, 16, 24),  # the mask has the decoder feature's shape
        "stage1_guided_attention_per_class": (2, 5, 16, 24),
        "stage2_prediction": (2, 5, 16, 24),
    }


@pytest.mark.parametrize("name", ["r18-se", "r18-ge", "r18-2stage", "r18-3stage", "r18-1stage"])
def test_maps_hold_what_the_ablation_has_and_no_graph(name: str) -> None:
    maps = SPGNet(5, **ABLATIONS[name])(batch()[0]).maps
    expected = {
        "r18-se": {"stage1_guided_attention", "stage2_prediction"},
        "r18-ge": {"stage1_guided_attention", "stage2_prediction"},
        "r18-2stage": {"stage1_prediction", "stage2_prediction"},
        "r18-3stage": {
            *(f"stage{i}_prediction" for i in (1, 2, 3)),
            *(f"stage{i}_guided_attention" for i in (1, 2)),
            *(f"stage{i}_guided_attention_per_class" for i in (1, 2)),
        },
        "r18-1stage": {"stage1_prediction"},
    }
    assert set(maps) == expected[name]
    assert not any(value.requires_grad for value in maps.values())


def test_half_precision_gives_half_precision_scores(two_stages: SPGNet) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        prediction = two_stages(torch.randn(1, 3, 64, 64))
    assert prediction.logits.dtype == torch.bfloat16
    assert prediction.logits.isfinite().all()


# Activation checkpointing


def test_checkpointing_gives_the_same_gradients_and_counts_each_batch_once() -> None:
    plain = SPGNet(5, backbone="resnet18").double()
    checkpointed = SPGNet(5, backbone="resnet18", checkpoint=True).double()
    checkpointed.load_state_dict(plain.state_dict())
    images, labels = batch()
    for model in (plain, checkpointed):
        total_loss(model, images.double(), labels).backward()
    for (name, one), other in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, msg=name)
    for (name, buffer), counted in zip(plain.named_buffers(), checkpointed.buffers(), strict=True):
        torch.testing.assert_close(counted, buffer, msg=name)


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all tensors alive, on any device, the meta device included."""

    def __init__(self, *existing: Tensor):
        super().__init__()
        self.alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.now = self.peak = 0
        for tensor in existing:
            self.add(tensor)

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self.alive:
            return

        def freed(_: weakref.ref[torch.UntypedStorage]) -> None:
            self.now -= size
            del self.alive[key]

        self.alive[key] = weakref.ref(storage, freed)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return output


def peak_training_memory(size: int, **options: Any) -> int:
    """Bytes of weights, gradients and activations at the worst moment of a step on one image."""
    with torch.device("meta"):
        model = SPGNet(19, **options)
        images, labels = torch.empty(1, 3, size, size), torch.empty(1, size, size, dtype=torch.long)
    memory = PeakMemory(*model.parameters(), *model.buffers(), images, labels)
    with memory:
        total_loss(model, images, labels).backward()
    return memory.peak


def test_checkpointing_lowers_peak_training_memory_at_769_pixels_by_30_percent_or_more() -> None:
    plain, checkpointed = (peak_training_memory(769, checkpoint=value) for value in (False, True))
    assert checkpointed <= 0.7 * plain


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"excitation": "sigmoidal"}, "excitation is 'sigmoidal'; expected one of sigmoid, softmax, tanh"),
        ({"reweighting": "gate"}, "reweighting is 'gate'; expected one of spg, se, ge, none"),
        ({"stages": 0}, "stages is 0; expected 1 to 4"),
        ({"stages": 5}, "stages is 5; expected 1 to 4"),
        ({"decoder_width": 0}, "decoder_width is 0; expected at least 2"),
        ({"backbone": "resnet19"}, "unknown backbone 'resnet19'; did you mean"),
        ({"backbone": "vgg11"}, "backbone is 'vgg11'; expected a ResNet of timm"),
        ({"backbone": "efficientnet_b0"}, "backbone is 'efficientnet_b0'; expected a ResNet of timm"),
        ({"backbone": "convnext_atto"}, "backbone 'convnext_atto' has no feature levels"),
        ({"excitations": "relu"}, "no option 'excitations'; did you mean 'excitation'"),
    ],
)
def test_an_impossible_option_is_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message) as caught:
        models.create("spgnet", 5, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backbone", ["resnet18s", "resnet26d", "seresnext26d_32x4d"])
def test_other_resnets_of_timm_work_as_encoder(backbone: str) -> None:
    with torch.device("meta"):
        prediction = models.create("spgnet", 5, backbone=backbone).eval()(torch.empty(1, 3, 65, 97))
    assert prediction.logits.shape == (1, 5, 65, 97)
