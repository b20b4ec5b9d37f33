"""AlignSeg: the alignment, the authors' network, its ablations, their checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import models
from models.alignseg import AlignSeg
from models.parts.alignment import Alignment, FeatureAlignment, OffsetBranch, align, in_output_pixels
from models.parts.context import AlignCM

ABLATIONS: dict[str, dict[str, Any]] = {
    "baseline": {"align_fa": "none", "context": "none"},
    "fa": {"context": "none"},
    "cm": {"align_fa": "none"},
    "fa-cm": {},
    "fa-ppm": {"context": "ppm"},
    "fa-aspp": {"context": "aspp"},
    "fa-gap": {"context": "gap"},
    "fa-one-offset": {"align_fa": "deep"},
    "cm-1": {"context_size": 1},
    "cm-5": {"context_size": 5},
    "no-aux": {"auxiliary_weight": 0.0},
    "released": {"alignment": "released"},
}

Model = TypeVar("Model", bound=nn.Module)

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))


def small(**options: Any) -> AlignSeg:
    torch.manual_seed(0)
    return AlignSeg(4, **{"backbone": "resnet18s", **options})


def awake(model: Model) -> Model:
    """Gives what starts at zero a value, as training does: offsets, and residuals of the backbone."""
    for module in model.modules():
        if isinstance(module, OffsetBranch):
            nn.init.normal_(module.predict.weight, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model


def test_the_auxiliary_head_sees_the_levels_down_to_the_sixteenth_and_none_below() -> None:
    model = awake(small()).train()
    taken: list[Tensor] = []
    model.backbone.register_forward_hook(lambda *call: taken.extend(call[2]))
    auxiliary = model(torch.randn(2, 3, 64, 64)).auxiliary["auxiliary"]
    gradients = torch.autograd.grad(auxiliary.sum(), taken, allow_unused=True)
    reached = [gradient is not None and bool(gradient.any()) for gradient in gradients]
    assert reached == [True, True, True, False]


# ---- alignment


@given(sizes, sizes)
def test_zero_offsets_are_bilinear_upsampling(map_size: tuple[int, int], size: tuple[int, int]) -> None:
    features = torch.randn(2, 3, *map_size)
    expected = F.interpolate(features, size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(align(features, torch.zeros(2, 2, *size)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("map_size", [(7, 11), (3, 4)])
def test_one_unit_of_offset_is_one_output_pixel(map_size: tuple[int, int]) -> None:
    features = torch.randn(1, 3, *map_size)
    offsets = torch.zeros(1, 2, 7, 11)
    still = align(features, offsets)
    offsets[:, 0] = 1  # x
    torch.testing.assert_close(align(features, offsets)[..., :-1], still[..., 1:], atol=1e-5, rtol=1e-5)
    offsets[:, 0], offsets[:, 1] = 0, -2  # y
    torch.testing.assert_close(align(features, offsets)[..., 2:, :], still[..., :-2, :], atol=1e-5, rtol=1e-5)


def test_the_released_form_is_its_formula_on_a_map_that_is_not_square() -> None:
    height, width, out_height, out_width = 3, 5, 4, 6
    features = torch.randn(1, 1, height, width, dtype=torch.float64)
    offsets = 2 * torch.randn(1, 2, out_height, out_width, dtype=torch.float64)

    def read(row: int, column: int) -> float:
        inside = 0 <= row < height and 0 <= column < width
        return features[0, 0, row, column].item() if inside else 0.0

    expected = torch.empty(1, 1, out_height, out_width, dtype=torch.float64)
    for i in range(out_height):
        for j in range(out_width):
            # Grid from -1 to 1, offset over (width, height) of the map, -1 and 1 its outer edges.
            x = -1 + 2 * j / (out_width - 1) + offsets[0, 0, i, j].item() / width
            y = -1 + 2 * i / (out_height - 1) + offsets[0, 1, i, j].item() / height
            column, row = ((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2
            left, top = int(column // 1), int(row // 1)
            right_share, lower_share = column - left, row - top
            expected[0, 0, i, j] = (1 - lower_share) * (
                (1 - right_share) * read(top, left) + right_share * read(top, left + 1)
            ) + lower_share * (
                (1 - right_share) * read(top + 1, left) + right_share * read(top + 1, left + 1)
            )
    torch.testing.assert_close(align(features, offsets, "released"), expected)


def test_released_offsets_are_reported_in_output_pixels() -> None:
    features = torch.randn(1, 2, 5, 9)
    offsets = torch.zeros(1, 2, 5, 9)
    still = align(features, offsets, "released")
    offsets[:, 0] = 2 * 9 / 8
    offsets[:, 1] = 2 * 5 / 4
    moved = align(features, offsets, "released")
    torch.testing.assert_close(in_output_pixels(offsets, (5, 9), "released"), torch.ones(1, 2, 5, 9))
    torch.testing.assert_close(moved[..., :-1, :-1], still[..., 1:, 1:], atol=1e-5, rtol=1e-5)


@given(sizes, sizes, st.integers(0, 10**6))
def test_constant_features_stay_constant_under_offsets_that_stay_inside(
    map_size: tuple[int, int], size: tuple[int, int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    # Every output position reads some other position of the output, all of them inside the map.
    x = torch.rand(1, height, width, generator=generator) * (width - 1) - torch.arange(width)
    y = torch.rand(1, height, width, generator=generator) * (height - 1) - torch.arange(height)[:, None]
    aligned = align(torch.full((1, 2, *map_size), 3.0), torch.stack((x, y), dim=1))
    torch.testing.assert_close(aligned, torch.full_like(aligned, 3.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("alignment", ["corrected", "released"])
def test_gradients_of_the_alignment_are_exact(alignment: Alignment) -> None:
    torch.manual_seed(0)
    features = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    offsets = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f, o: align(f, o, alignment), (features, offsets))


@pytest.mark.parametrize("train", [True, False])
def test_gradients_of_the_alignment_module_are_exact(train: bool) -> None:
    torch.manual_seed(0)
    module = awake(FeatureAlignment(3)).double().train(train)
    shallow = torch.randn(1, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    deep = torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s, d: module(s, d)[0], (shallow, deep))


@pytest.mark.parametrize("train", [True, False])
def test_the_offset_branch_is_its_layers_on_the_concatenated_features(train: bool) -> None:
    torch.manual_seed(0)
    branch = OffsetBranch(6).train(train)
    nn.init.normal_(branch.predict.weight)
    nn.init.normal_(branch.norm.weight)
    nn.init.normal_(branch.norm.bias)
    branch.norm.running_mean, branch.norm.running_var = torch.randn(6), torch.rand(6) + 0.5
    fine, coarse = torch.randn(2, 6, 5, 9), torch.randn(2, 6, 3, 4)

    joined = torch.cat((fine, F.interpolate(coarse, (5, 9), mode="bilinear", align_corners=True)), dim=1)
    norm = F.batch_norm(
        branch.reduce(joined),
        branch.norm.running_mean.clone(),
        branch.norm.running_var.clone(),
        branch.norm.weight,
        branch.norm.bias,
        training=train,
    )
    torch.testing.assert_close(
        branch(fine, coarse), branch.predict(F.leaky_relu(norm, 0.01)), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_agrees_with_float32(dtype: torch.dtype) -> None:
    model = awake(small()).eval()
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        exact = model(images)
        half = model.to(dtype)(images.to(dtype))
    assert half.logits.dtype == dtype
    error = (half.logits.float() - exact.logits).abs().max() / exact.logits.abs().max()
    assert error < 10 * torch.finfo(dtype).eps


def test_alignment_compiles_without_a_graph_break() -> None:
    torch.manual_seed(0)
    step, context = awake(FeatureAlignment(8)).eval(), awake(AlignCM(16, 8)).eval()

    def aggregate(shallow: Tensor, deepest: Tensor) -> tuple[Tensor, Any]:
        module_output, _ = context(deepest)
        output: tuple[Tensor, Any] = step(shallow, module_output)
        return output

    shallow, deepest = torch.randn(1, 8, 9, 17), torch.randn(1, 16, 5, 7)
    compiled = torch.compile(aggregate, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(shallow, deepest), aggregate(shallow, deepest))


# ---- the network


@pytest.mark.parametrize("key", ABLATIONS)
def test_every_ablation_trains_all_of_its_parameters(key: str) -> None:
    model = awake(small(**ABLATIONS[key])).train()
    labels = torch.randint(4, (2, 70, 90))
    terms = model.loss(model(torch.randn(2, 3, 70, 90)), labels)
    torch.stack(list(terms.values())).sum().backward()
    untouched = {
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    }
    # A context of one cell reads the same everywhere, so where to read it cannot be learnt.
    branch = {name for name, _ in model.named_parameters() if name.startswith("context.offset.")}
    assert untouched == (branch if key == "cm-1" else set())


@settings(deadline=None, max_examples=6)
@given(st.integers(1, 100), st.integers(1, 100))
def test_logits_have_the_resolution_of_the_images(height: int, width: int) -> None:
    model = small(channels=8).eval()
    with torch.no_grad():
        prediction = model(torch.randn(1, 3, height, width))
    assert prediction.logits.shape == (1, 4, height, width)
    assert not prediction.auxiliary
    assert all(field.isfinite().all() for field in prediction.maps.values())


@pytest.mark.parametrize("num_classes", [1, 150])
def test_any_number_of_classes(num_classes: int) -> None:
    model = AlignSeg(num_classes, backbone="resnet18s", channels=8).train()
    prediction = model(torch.randn(2, 3, 64, 64))
    assert prediction.logits.shape == prediction.auxiliary["auxiliary"].shape == (2, num_classes, 64, 64)


def test_a_new_network_starts_as_plain_bilinear_aggregation() -> None:
    aligned, plain = small(), small(align_fa="none")
    missing, unexpected = plain.load_state_dict(aligned.state_dict(), strict=False)
    assert not missing
    assert all(".align.branches." in key for key in unexpected)
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        torch.testing.assert_close(
            aligned.eval()(images).logits, plain.eval()(images).logits, atol=1e-4, rtol=1e-4
        )


def test_maps_are_both_offset_fields_of_every_step() -> None:
    with torch.no_grad():
        maps = awake(small()).eval()(torch.randn(1, 3, 64, 128)).maps
    steps = {
        f"offset_{level}_{feature}"
        for level in ("8", "16", "32", "context")
        for feature in ("deep", "shallow")
    }
    assert maps.keys() == {*steps, "offset_aligncm"}
    # Pooling in ceil mode makes 64 / 4 = 16 rows one more.
    assert all(maps[name].shape == (1, 2, 17, 33) for name in steps)
    assert maps["offset_aligncm"].shape == (1, 2, 3, 5)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("baseline", set()),
        ("cm", {"offset_aligncm"}),
        (
            "fa-one-offset",
            {"offset_8_deep", "offset_16_deep", "offset_32_deep", "offset_context_deep", "offset_aligncm"},
        ),
    ],
)
def test_maps_are_only_of_what_is_shifted(key: str, expected: set[str]) -> None:
    with torch.no_grad():
        maps = small(**ABLATIONS[key]).eval()(torch.randn(1, 3, 64, 64)).maps
    assert maps.keys() == expected


def test_the_auxiliary_loss_has_its_weight_or_no_head() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 64, 64), torch.randint(4, (2, 64, 64))
    terms = {}
    for weight in (0.1, 0.4):
        torch.manual_seed(0)
        model = small(auxiliary_weight=weight)
        terms[weight] = model.loss(model(images), labels)
    torch.testing.assert_close(terms[0.4]["auxiliary"], 4 * terms[0.1]["auxiliary"])

    without = small(auxiliary_weight=0.0)
    assert without.loss(without(images), labels).keys() == {"main"}
    assert not [name for name in without.state_dict() if "auxiliary" in name]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"context": "psp"}, "context is 'psp'; expected one of aligned, ppm, aspp, gap, none"),
        ({"align_fa": "off"}, "align_fa is 'off'; expected one of both, deep, none"),
        ({"alignment": "fixed"}, "alignment is 'fixed'; expected one of corrected, released"),
        ({"context_size": 0}, "context_size is 0; expected at least 1"),
        ({"auxiliary_weight": -0.1}, "auxiliary_weight is -0.1; expected 0"),
        ({"channels": 2}, "channels is 2; expected at least 4"),
        ({"backbone": "vgg11_bn"}, "backbone is 'vgg11_bn' with features at strides"),
    ],
)
def test_a_bad_option_gets_one_line_that_names_it(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as error:
        small(**options)
    assert "\n" not in str(error.value)


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._alive[StorageWeakRef(storage)] = storage.nbytes()
        self._alive = {ref: size for ref, size in self._alive.items() if not ref.expired()}
        self.peak = max(self.peak, sum(self._alive.values()))
        return out


def test_inference_at_1024_x_2048_needs_at_most_3_gib() -> None:
    with torch.device("meta"), torch.no_grad():
        model = AlignSeg(19).eval()
        weights = sum(tensor.nbytes for tensor in model.state_dict().values())
        images = torch.empty(1, 3, 1024, 2048)
        with PeakMemory() as memory:
            prediction = model(images)
    assert prediction.logits.shape == (1, 19, 1024, 2048)
    # Convolutions on a CPU copy their input into another layout, hence the allowance.
    assert weights + images.nbytes + memory.peak <= 2 * 2**30


# ---- released checkpoints


def released_names(blocks: tuple[int, ...], num_classes: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a checkpoint of the authors: a ResNet of bottlenecks, 256 channels wide."""

    def conv(name: str, out_channels: int, in_channels: int, size: int = 1) -> Iterator[Any]:
        yield f"{name}.weight", (out_channels, in_channels, size, size)

    def norm(name: str, channels: int) -> Iterator[Any]:
        for tensor in ("weight", "bias", "running_mean", "running_var"):
            yield f"{name}.{tensor}", (channels,)

    def refinement(name: str, in_channels: int) -> Iterator[Any]:
        yield from conv(f"{name}.unify", 256, in_channels)
        yield from conv(f"{name}.residual.0", 64, 256, 3)
        yield from norm(f"{name}.residual.1", 64)
        yield from conv(f"{name}.residual.2", 256, 64, 3)
        yield from norm(f"{name}.norm", 256)

    def offset_branch(name: str) -> Iterator[Any]:
        yield from conv(f"{name}.0", 256, 512)
        yield from norm(f"{name}.1", 256)
        yield from conv(f"{name}.2", 2, 256, 3)

    def head(name: str) -> Iterator[Any]:
        yield from conv(f"{name}.0", 256, 256, 3)
        yield f"{name}.0.bias", (256,)
        yield from norm(f"{name}.1", 256)
        yield from conv(f"{name}.3", num_classes, 256)
        yield f"{name}.3.bias", (num_classes,)

    in_channels = 3
    for number, channels in enumerate((64, 64, 128), start=1):
        yield from conv(f"conv{number}", channels, in_channels, 3)
        yield from norm(f"bn{number}", channels)
        in_channels = channels
    for stage, (count, channels) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), start=1):
        for block in range(count):
            name = f"layer{stage}.{block}"
            yield from conv(f"{name}.conv1", channels, in_channels)
            yield from norm(f"{name}.bn1", channels)
            yield from conv(f"{name}.conv2", channels, channels, 3)
            yield from norm(f"{name}.bn2", channels)
            yield from conv(f"{name}.conv3", 4 * channels, channels)
            yield from norm(f"{name}.bn3", 4 * channels)
            if block == 0:
                yield from conv(f"{name}.downsample.0", 4 * channels, in_channels)
                yield from norm(f"{name}.downsample.1", 4 * channels)
            in_channels = 4 * channels
    for name, first in (("CAM.pool", 1), ("CAM.adapt", 0)):
        yield from conv(f"{name}.{first}", 2048, 2048)
        yield from norm(f"{name}.{first + 1}", 2048)
        yield from conv(f"{name}.{first + 2}", 256, 2048, 3)
        yield from norm(f"{name}.{first + 3}", 256)
    yield from offset_branch("CAM.delta_gen")
    for number, channels in enumerate((256, 512, 1024, 2048, 256), start=1):
        yield from refinement(f"RRB{number}a", channels)
        if number > 1:
            yield from refinement(f"RRB{number}b", 256)
            yield from offset_branch(f"CAB{number}.delta_gen1")
            yield from offset_branch(f"CAB{number}.delta_gen2")
    yield from head("dsn")
    yield from head("head")


def checkpoint(blocks: tuple[int, ...] = (3, 4, 23, 3), num_classes: int = 19) -> dict[str, Tensor]:
    """Every tensor filled with its own position in the checkpoint."""
    names = released_names(blocks, num_classes)
    return {name: torch.tensor(float(index)).expand(shape) for index, (name, shape) in enumerate(names)}


def meta_model(num_classes: int = 19, **options: Any) -> AlignSeg:
    with torch.device("meta"):
        return AlignSeg(num_classes, **options)


def test_the_main_model_has_the_authors_parameters() -> None:
    authors = sum(tensor.numel() for name, tensor in checkpoint().items() if "running_" not in name)
    assert sum(parameter.numel() for parameter in meta_model().parameters()) == authors == 66_846_310


def test_a_released_checkpoint_lands_where_its_names_say() -> None:
    released = checkpoint((3, 4, 6, 3))
    model = AlignSeg(19, backbone="resnet50s", alignment="released")
    models.load_released(model, released)

    places = {
        "conv2.weight": "backbone.trunk.conv1.3.weight",
        "bn3.running_var": "backbone.trunk.bn1.running_var",
        "layer3.5.bn2.bias": "backbone.trunk.layer3.5.bn2.bias",
        "CAM.pool.3.weight": "context.context.2.0.weight",
        "CAM.adapt.1.running_mean": "context.local.0.1.running_mean",
        "CAM.delta_gen.2.weight": "context.offset.predict.weight",
        "RRB1a.unify.weight": "refine.unify.weight",
        "RRB4a.residual.2.weight": "align_fa.32.refine_deep.residual.1.weight",
        "RRB5b.norm.bias": "align_fa.context.refine_sum.norm.bias",
        # Theirs are numbered: the first branch shifts the deep feature, the second the shallow one.
        "CAB2.delta_gen1.2.weight": "align_fa.8.align.branches.deep.predict.weight",
        "CAB3.delta_gen2.0.weight": "align_fa.16.align.branches.shallow.reduce.weight",
        "dsn.3.bias": "auxiliary_head.4.bias",
        "head.3.weight": "head.4.weight",
    }
    state = model.state_dict()
    for theirs, ours in places.items():
        assert torch.equal(state[ours], released[theirs]), theirs
    loaded = torch.cat([tensor.flatten()[:1] for tensor in state.values() if tensor.ndim])
    # The weights of norms are larger by their eps.
    assert sorted(loaded.round().tolist()) == list(range(len(released)))


def test_every_norm_of_a_released_checkpoint_scales_by_the_weights_size_plus_eps() -> None:
    random = torch.Generator().manual_seed(0)
    released = {
        name: 0.1 * torch.randn(shape, generator=random) + name.endswith("running_var")
        for name, shape in released_names((3, 4, 6, 3), 19)
    }
    model = AlignSeg(19, backbone="resnet50s", alignment="released").eval()
    models.load_released(model, released)
    state = model.state_dict()
    places = {
        "bn3.weight": "backbone.trunk.bn1.weight",
        "layer2.0.downsample.1.weight": "backbone.trunk.layer2.0.downsample.1.weight",
        "head.1.weight": "head.1.weight",
    }
    for theirs, ours in places.items():
        assert (released[theirs] < 0).any()
        assert torch.equal(state[ours], released[theirs].abs() + 1e-5)

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias, mean, variance = (
            released[f"RRB1a.{name}.{tensor}"][:, None, None]
            for tensor in ("weight", "bias", "running_mean", "running_var")
        )
        y = (x - mean) / (variance + 1e-5).sqrt() * (weight.abs() + 1e-5) + bias
        return torch.where(y > 0, y, 0.01 * y)

    x = torch.randn(1, 256, 6, 5, generator=random)
    unified = F.conv2d(x, released["RRB1a.unify.weight"])
    hidden = norm(F.conv2d(unified, released["RRB1a.residual.0.weight"], padding=1), "residual.1")
    residual = F.conv2d(hidden, released["RRB1a.residual.2.weight"], padding=1)
    torch.testing.assert_close(model.refine(x), norm(unified + residual, "norm"))


def test_the_corrected_alignment_takes_no_released_checkpoint() -> None:
    with pytest.raises(ValueError, match="create the model with alignment='released'"):
        models.load_released(meta_model(), checkpoint())


@pytest.mark.parametrize(
    ("change", "options", "complaint"),
    [
        (lambda c: c.pop("CAB4.delta_gen2.1.bias"), {}, "align_fa.32.align.branches.shallow.norm.bias"),
        (lambda c: c.update({"CAB6.delta_gen1.0.weight": torch.zeros(1)}), {}, "CAB6.delta_gen1.0.weight"),
        (lambda c: c.update({"fc.weight": torch.zeros(1)}), {}, "fc.weight"),
        (lambda c: c.update({"layer3.23.conv1.weight": torch.zeros(1)}), {}, "layer3.23.conv1.weight"),
        (lambda _: None, {"num_classes": 21}, "num_classes=19 instead of 21"),
        (lambda _: None, {"backbone": "resnet50s"}, "layer3.6.conv1.weight"),
        (lambda _: None, {"auxiliary_weight": 0.0}, "dsn.0.weight"),
        (lambda _: None, {"context": "none"}, "CAM.pool.1.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_gets_one_line(change: Any, options: Any, complaint: str) -> None:
    released = checkpoint()
    change(released)
    with pytest.raises(ValueError, match=complaint) as error:
        models.load_released(meta_model(**{"alignment": "released", **options}), released)
    assert "\n" not in str(error.value)
