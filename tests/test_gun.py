"""GUN: the encoder's branches, the Guidance Modules, and what the paper's ablations turn on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import models
from models.gun import GUN, BranchNorm

ABLATIONS: dict[str, dict[str, Any]] = {
    "single-low": {"encoder": "single-low", "guidance": "none"},
    "single-medium": {"encoder": "single-medium", "guidance": "none"},
    "multi-unshared": {"encoder": "multi-unshared", "guidance": "none"},
    "multi-shared": {"guidance": "none"},
    "together": {"norm_statistics": "together", "guidance": "none"},
    "fuse-concat": {"fusion": "concat", "guidance": "none"},
    "no-aux": {"auxiliary_weight": 0, "guidance": "none"},
    "large-rf": {"guidance": "large-rf"},
    "high-res": {"guidance": "high-res"},
    "fusion": {},
    "nearest": {"sampling": "nearest"},
    "single-low-large-rf": {"encoder": "single-low", "guidance": "large-rf"},
    "ratio-4": {"branch_ratio": 4},
}


def narrow(num_classes: int = 3, **options: Any) -> GUN:
    torch.manual_seed(0)
    return GUN(num_classes, backbone="drn_d_14_narrow", **options)


def images(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def total(terms: dict[str, Tensor]) -> Tensor:
    return sum(terms.values(), torch.zeros(()))


def record_scores(model: GUN) -> list[Tensor]:
    """A list that the scores of every call, before they are upsampled, are added to."""
    scores: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        scores.append(output)

    model.classifier.register_forward_hook(hook)
    return scores


def with_offsets(model: GUN) -> GUN:
    """The model with offsets that differ from zero, as after training."""
    nn.init.normal_(model.upsampling.offsets.weight)
    return model


@pytest.mark.parametrize("options", ABLATIONS.values(), ids=ABLATIONS)
@pytest.mark.parametrize("size", [(64, 96), (45, 71)])
def test_every_ablation_segments_at_the_inputs_own_resolution(
    options: dict[str, Any], size: tuple[int, int]
) -> None:
    model = narrow(**options)
    prediction = model(images(2, 3, *size))
    assert prediction.logits.shape == (2, 3, *size)
    total(model.loss(prediction, torch.zeros(2, *size, dtype=torch.int64))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    prediction = model.eval()(images(1, 3, *size))
    assert prediction.logits.shape == (1, 3, *size)
    assert prediction.logits.isfinite().all()
    assert not prediction.auxiliary


@pytest.mark.parametrize("num_classes", [1, 150])
def test_any_number_of_classes_and_one_image_will_do(num_classes: int) -> None:
    model = narrow(num_classes)
    assert model(images(1, 3, 64, 64)).logits.shape == (1, num_classes, 64, 64)
    assert model.eval()(images(1, 3, 1, 7)).logits.shape == (1, num_classes, 1, 7)


def test_it_is_the_model_that_create_builds() -> None:
    assert isinstance(models.create("gun", 4, backbone="drn_d_14_narrow"), GUN)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": "hi-res"}, "guidance is 'hi-res'; expected one of none, large-rf, high-res, fusion"),
        ({"fusion": "max"}, "fusion is 'max'; expected one of sum, concat"),
        ({"encoder": "single"}, "encoder is 'single'; expected one of multi-shared"),
        ({"sampling": "cubic"}, "sampling is 'cubic'; expected one of bilinear, nearest"),
        ({"norm_statistics": "mixed"}, "norm_statistics is 'mixed'; expected one of apart, together"),
        ({"branch_ratio": 3}, "branch_ratio is 3; expected 2, 4 or 8"),
        ({"auxiliary_weight": -1.0}, "auxiliary_weight is -1.0; expected 0"),
        ({"backbone": "resnet18"}, "backbone is 'resnet18'; expected one of drn_d_14_narrow, drn_d_22"),
        (
            {"encoder": "single-low", "norm_statistics": "together"},
            "norm_statistics is 'together', but encoder is 'single-low'",
        ),
    ],
)
def test_an_option_out_of_range_is_named_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as refused:
        GUN(3, **options)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


def test_sharing_the_branches_weights_saves_the_second_branch() -> None:
    with torch.device("meta"):
        sizes = {
            encoder: sum(p.numel() for p in GUN(19, encoder=encoder).parameters())
            for encoder in ("multi-shared", "multi-unshared")
        }
        medium_branch = GUN(19, encoder="multi-unshared").encoder.medium
    assert medium_branch is not None
    saved = sizes["multi-unshared"] - sizes["multi-shared"]
    assert saved == sum(p.numel() for p in medium_branch.parameters())


def test_the_branches_see_half_and_whole_of_the_image() -> None:
    encoder = narrow().encoder.eval()
    (low, medium), early = encoder(images(1, 3, 64, 128))
    assert low.shape[-2:] == (4, 8)
    assert medium.shape[-2:] == (8, 16)
    assert early.shape[-2:] == (32, 64)
    shrunk = F.avg_pool2d(images(1, 3, 64, 128), 2)
    encoder._select_statistics(medium=False)
    torch.testing.assert_close(low, encoder.trunk(shrunk, (4,))[0])


def test_statistics_kept_apart_are_the_ones_each_branch_was_trained_with() -> None:
    # With a momentum of 1 the running statistics are those of the last batch, so that evaluation on
    # the same batch has to repeat training: unless the other branch's statistics came in between.
    change = {}
    for kept in ("apart", "together"):
        encoder = narrow(norm_statistics=kept).encoder
        for module in encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        batch = images(4, 3, 128, 128)
        with torch.no_grad():
            trained, evaluated = encoder.train()(batch)[0], encoder.eval()(batch)[0]
        change[kept] = [F.mse_loss(e, t) / t.square().mean() for t, e in zip(trained, evaluated, strict=True)]
    assert change["apart"][0] < 0.01  # what is left is the bias of a batch's variance
    assert change["apart"][1] < 0.01
    assert change["together"][0] > 0.1


def test_statistics_kept_apart_cost_buffers_but_no_parameters() -> None:
    with torch.device("meta"):
        apart, together = GUN(19), GUN(19, norm_statistics="together")
    sizes = [sum(p.numel() for p in model.parameters()) for model in (apart, together)]
    assert sizes[0] == sizes[1]
    extra = len(dict(apart.named_buffers())) - len(dict(together.named_buffers()))
    norms = [module for module in apart.modules() if isinstance(module, BranchNorm)]
    assert len(norms) == 3 + 2 * 2 * 2 + 2  # layer0 to layer2, two stages of two blocks, their shortcuts
    assert extra == 2 * len(norms)


def test_statistics_kept_apart_survive_the_conversion_for_several_gpus() -> None:
    model = narrow()
    keys = model.state_dict().keys()
    assert nn.SyncBatchNorm.convert_sync_batchnorm(model).state_dict().keys() == keys


def test_weights_can_be_saved_as_safetensors(tmp_path: Path) -> None:
    # The format refuses tensors that share memory, as two branches with one set of weights might.
    save_file(narrow().state_dict(), tmp_path / "weights.safetensors")


def test_the_low_branch_is_supervised_in_training_alone() -> None:
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    model = narrow()
    prediction = model(images(2, 3, 64, 64))
    assert prediction.auxiliary["low"].shape == (2, 3, 4, 4)
    terms = model.loss(prediction, labels)
    upsampled = F.interpolate(prediction.auxiliary["low"], (64, 64), mode="bilinear")
    torch.testing.assert_close(terms["low"], 0.4 * F.cross_entropy(upsampled, labels))
    for options in ABLATIONS["no-aux"], ABLATIONS["single-low"], ABLATIONS["single-medium"]:
        model = narrow(**options)
        prediction = model(images(2, 3, 64, 64))
        assert not prediction.auxiliary
        assert model.loss(prediction, labels).keys() == {"main"}


@pytest.mark.parametrize("guidance", ["large-rf", "high-res", "fusion"])
def test_training_starts_from_bilinear_upsampling_and_leaves_it(guidance: str) -> None:
    model = narrow(guidance=guidance)
    scores = record_scores(model)
    batch, labels = images(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64))
    prediction = model(batch)
    torch.testing.assert_close(
        prediction.logits, F.interpolate(scores[0], (64, 64), mode="bilinear"), rtol=0, atol=1e-6
    )
    assert not prediction.maps["offsets"].any()
    total(model.loss(prediction, labels)).backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    assert model(batch).maps["offsets"].any()


def test_each_guidance_module_looks_where_its_name_says() -> None:
    deep, early = images(1, 64, 8, 8), images(1, 16, 32, 32)
    seen = {}
    for guidance in ("large-rf", "high-res", "fusion"):
        module = narrow(guidance=guidance).eval().guidance
        assert module is not None
        whole = module(deep, early)
        assert whole.shape[1] == module.channels
        seen[guidance] = (
            not torch.equal(whole, module(-deep, early)),
            not torch.equal(whole, module(deep, -early)),
        )
    assert seen == {"large-rf": (True, False), "high-res": (False, True), "fusion": (True, True)}


def test_the_offset_table_is_in_pixels_of_the_output() -> None:
    model = narrow().eval()
    with torch.no_grad():
        model.upsampling.offsets.bias.copy_(torch.tensor([1.0, -2.0]))  # type: ignore[union-attr]
    offsets = model(images(1, 3, 64, 96)).maps["offsets"]
    assert offsets.shape == (1, 2, 64, 96)
    assert (offsets[:, 0] == 8).all()
    assert (offsets[:, 1] == -16).all()


def test_plain_upsampling_has_no_offset_table() -> None:
    assert not narrow(guidance="none")(images(2, 3, 64, 64)).maps


def test_nearest_sampling_changes_evaluation_alone() -> None:
    bilinear, nearest = with_offsets(narrow()), with_offsets(narrow(sampling="nearest"))
    nearest.load_state_dict(bilinear.state_dict())
    batch = images(2, 3, 64, 64)
    assert torch.equal(bilinear(batch).logits, nearest(batch).logits)
    scores = record_scores(nearest)
    sampled = nearest.eval()(batch).logits
    assert torch.isin(sampled, scores[0]).all()
    assert not torch.equal(sampled, bilinear.eval()(batch).logits)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_offset_that_is_not_finite_shows_in_the_loss(value: float) -> None:
    model = narrow()
    labels = torch.zeros(2, 64, 64, dtype=torch.int64)
    assert model.loss(model(images(2, 3, 64, 64)), labels)["offsets"] == 0
    with torch.no_grad():
        model.upsampling.offsets.bias.fill_(value)  # type: ignore[union-attr]
    assert model.loss(model(images(2, 3, 64, 64)), labels)["offsets"].isnan()


def test_training_lowers_the_loss() -> None:
    model = narrow(2)
    batch = images(4, 3, 64, 64)
    labels = (F.avg_pool2d(batch[:, :1], 15, 1, 7)[:, 0] > 0).long()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(25):
        loss = total(model.loss(model(batch), labels))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_it_runs_in_half_precision() -> None:
    model = with_offsets(narrow()).eval()
    exact = model(images(1, 3, 64, 64)).logits
    rough = model.bfloat16()(images(1, 3, 64, 64).bfloat16()).logits
    assert rough.dtype == torch.bfloat16
    assert F.cosine_similarity(rough.float().flatten(), exact.flatten(), dim=0) > 0.99


def test_it_compiles_without_graph_breaks() -> None:
    model = with_offsets(narrow())
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    batch = images(2, 3, 64, 64)
    torch.testing.assert_close(compiled(batch).logits, model(batch).logits)
    model.eval()
    torch.testing.assert_close(compiled(batch).logits, model(batch).logits)


def test_it_builds_and_runs_on_the_meta_device() -> None:
    with torch.device("meta"):
        prediction = GUN(19).eval()(torch.empty(1, 3, 512, 1024))
    assert prediction.logits.shape == (1, 19, 512, 1024)
