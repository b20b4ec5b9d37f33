"""SeMask: the encoder, the segmenter and its options, and the authors' checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from released_checkpoints import semask_checkpoint
from torch import Tensor

import models
from models.backbones.swin import Swin, SwinBlock, shift_mask
from models.parts.windows import Windows
from models.semask import BACKBONES, SeMaskSegmenter

NANO = "swin_nano"
NANO_OPTIONS: dict[str, Any] = {
    "embed_dim": 32,
    "depths": (2, 2, 2, 2),
    "num_heads": (2, 4, 8, 16),
    "window_size": 4,
}
SWIN = {
    "T": "swin_tiny_patch4_window7_224.ms_in1k",
    "S": "swin_small_patch4_window7_224.ms_in1k",
    "B": "swin_base_patch4_window12_384.ms_in22k",
    "L": "swin_large_patch4_window12_384.ms_in22k",
}


def semask(num_classes: int = 5, **options: Any) -> SeMaskSegmenter:
    """A small one."""
    torch.manual_seed(0)
    model = models.create("semask", num_classes, **{"backbone": NANO, "drop_path": 0.0, **options})
    assert isinstance(model, SeMaskSegmenter)
    return model


def on_meta(num_classes: int, **options: Any) -> SeMaskSegmenter:
    """One without storage, of any size."""
    with torch.device("meta"):
        return semask(num_classes, **options)


def images(height: int = 64, width: int = 96, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def labels_of(x: Tensor, num_classes: int) -> Tensor:
    return torch.randint(num_classes, (x.shape[0], *x.shape[-2:]), generator=torch.Generator().manual_seed(2))


# The published sizes


@pytest.mark.parametrize(
    ("variant", "num_classes", "millions"),
    [("T", 150, 35), ("S", 150, 56), ("B", 150, 96), ("L", 150, 211), ("T", 19, 34)],
)
def test_parameters_with_semantic_fpn_are_the_published(
    variant: str, num_classes: int, millions: int
) -> None:
    model = on_meta(num_classes, backbone=SWIN[variant])
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


# The trunk


def test_where_the_windows_divide_the_map_the_trunk_is_timms() -> None:
    torch.manual_seed(0)
    ours = Swin(NANO).eval()
    x = images(64, 128)
    reference = timm.create_model(
        "swin_tiny_patch4_window7_224",
        **NANO_OPTIONS,
        img_size=(64, 128),
        always_partition=True,
        features_only=True,
        out_indices=(0, 1, 2),
    ).eval()
    renamed = {
        name.replace("patch_embed", "stages.0.downsample").replace("layers_", "stages."): tensor
        for name, tensor in reference.state_dict().items()
    }
    assert not ours.load_state_dict(renamed, strict=False).unexpected_keys
    y = x
    for stage, expected in zip(ours.stages[:3], reference(x), strict=True):
        y = stage(y)
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(8, 4), (7, 5), (3, 2)])
def test_windows_are_padded_at_the_right_and_bottom_before_they_are_shifted(
    size: tuple[int, int], shift: int
) -> None:
    torch.manual_seed(0)
    trunk: Any = Swin(NANO).double().eval()
    block = trunk.stages[0].blocks[1 if shift else 0]
    assert isinstance(block, SwinBlock)
    assert block.shift == shift
    x = torch.randn(1, *size, 32, dtype=torch.float64)
    windows, mask = Windows(*size, 4, shift), shift_mask(*size, 4, x) if shift else None
    expected = attention_over_all_pairs(block, x)
    torch.testing.assert_close(block.attend(x, windows, mask), expected)
    with torch.inference_mode():  # which fuses the attention
        both = torch.cat((x, x))
        torch.testing.assert_close(block.attend(both, windows, mask), torch.cat((expected, expected)))


def attention_over_all_pairs(block: SwinBlock, x: Tensor) -> Tensor:
    """Shifted window attention as one attention over the padded map, most pairs excluded."""
    side, shift, attn = block.window, block.shift, block.attn
    height, width = x.shape[1:3]
    rows, columns = -(-height // side) * side, -(-width // side) * side
    padded = x.new_zeros(rows, columns, x.shape[-1])
    padded[:height, :width] = x[0]
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    # Windows start at `shift`; what lies before the first one is a window of its own.
    row, column = row.flatten() + side - shift, column.flatten() + side - shift
    together = (row[:, None] // side == row // side) & (column[:, None] // side == column // side)
    down, right = (row[:, None] - row) + side - 1, (column[:, None] - column) + side - 1
    bias = attn.relative_position_bias_table[
        (down * (2 * side - 1) + right).clamp(0, (2 * side - 1) ** 2 - 1)
    ]
    query, key, value = attn.qkv(padded.flatten(0, 1)).unflatten(-1, (3, attn.num_heads, -1)).unbind(1)
    scores = torch.einsum("ihc,jhc->hij", query, key) * attn.scale + bias.permute(2, 0, 1)
    scores = scores.masked_fill(~together, -torch.inf).softmax(dim=-1)
    gathered = torch.einsum("hij,jhc->ihc", scores, value).flatten(1)
    result: Tensor = attn.proj(gathered).view(rows, columns, -1)[None, :height, :width]
    return result


def test_imagenet_weights_come_from_a_local_file(tmp_path: Path) -> None:
    trained: Any = timm.create_model("swin_tiny_patch4_window7_224", **NANO_OPTIONS)
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    model: Any = semask(pretrained=str(tmp_path / "weights.pth"))
    block = trained.layers[2].blocks[1]
    assert torch.equal(model.encoder.stages[2].blocks[1].mlp.fc1.weight, block.mlp.fc1.weight)
    assert torch.equal(model.encoder.stages[0].downsample.proj.weight, trained.patch_embed.proj.weight)
    assert torch.equal(
        model.encoder.stages[3].downsample.reduction.weight, trained.layers[3].downsample.reduction.weight
    )


# The segmenter


@pytest.mark.parametrize("size", [(64, 96), (33, 47), (1, 1), (50, 128)])
@pytest.mark.parametrize("num_classes", [1, 150])
def test_scores_have_the_images_own_size(size: tuple[int, int], num_classes: int) -> None:
    model = semask(num_classes).eval()
    with torch.no_grad():
        prediction = model(images(*size, batch=1))
    assert prediction.logits.shape == (1, num_classes, *size)
    assert prediction.logits.isfinite().all()
    assert prediction.auxiliary == {}


def test_every_parameter_gets_a_gradient() -> None:
    model = semask(attention="window")
    for name, parameter in model.named_parameters():
        if name.endswith("lambda_"):
            torch.nn.init.ones_(parameter)
    x = images(50, 70)
    terms = model.loss(model.train()(x), labels_of(x, 5))
    assert set(terms) == {"main", "priors"}
    torch.stack(list(terms.values())).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_a_few_steps_lower_the_loss() -> None:
    model = semask().train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    x = images(32, 32)
    y = (x.mean(dim=1) > 0).long()
    losses = []
    for _ in range(12):
        loss = torch.stack(list(model.loss(model(x), y).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_the_maps_are_the_prior_of_every_stage_and_their_sum() -> None:
    maps = semask().eval()(images(64, 96)).maps
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "prior_1": (2, 5, 16, 24),
        "prior_2": (2, 5, 8, 12),
        "prior_3": (2, 5, 4, 6),
        "prior_4": (2, 5, 2, 3),
        "priors": (2, 5, 16, 24),
    }


def test_the_next_stage_and_the_decoder_take_the_semantic_layers_output() -> None:
    model = semask(semantic_stages=[2], fixed_lambda=1.0).eval()
    encoder = model.encoder
    x = images(64, 96)
    features, _ = encoder(x)
    second, _ = encoder.semantic_layers["2"](encoder.stages[1](encoder.stages[0](x)))
    third = encoder.stages[2](second)
    torch.testing.assert_close(features[1], encoder.norms[1](second).permute(0, 3, 1, 2))
    torch.testing.assert_close(features[2], encoder.norms[2](third).permute(0, 3, 1, 2))


def test_guided_upsampling_starts_as_bilinear_upsampling_and_shows_its_offsets() -> None:
    plain, guided = semask().eval(), semask(guided_upsampling=True).eval()
    missing, unexpected = guided.load_state_dict(plain.state_dict(), strict=False)
    assert {name.split(".")[1] for name in missing} == {"upsampling"}
    assert unexpected == []
    expected, actual = plain(images(50, 70)), guided(images(50, 70))
    torch.testing.assert_close(actual.logits, expected.logits, rtol=0, atol=1e-5)
    assert actual.maps["offsets"].shape == (2, 2, 50, 70)


# The ablations


def test_without_semantic_layers_it_is_the_plain_transformer() -> None:
    x = images()
    model = semask(semantic_stages=[])
    prediction = model.train()(x)
    assert prediction.maps == {}
    assert set(model.loss(prediction, labels_of(x, 5))) == {"main"}
    assert not any("semantic" in name for name in model.state_dict())


def test_no_supervision_leaves_no_loss_term() -> None:
    x = images()
    model = semask(prior_weight=0.0)
    prediction = model.train()(x)
    assert prediction.auxiliary == {}
    assert set(model.loss(prediction, labels_of(x, 5))) == {"main"}
    assert "priors" in prediction.maps


def test_the_priors_loss_has_the_weight_that_was_asked_for() -> None:
    x = images()
    terms = {}
    for weight in (0.4, 1.0):
        model = semask(prior_weight=weight, attention="window").eval()  # no dropout
        prediction = model(x)
        prediction.auxiliary["priors"] = prediction.maps["priors"]
        terms[weight] = model.loss(prediction, labels_of(x, 5))["priors"]
    torch.testing.assert_close(terms[0.4], 0.4 * terms[1.0])


def test_lambda_fixed_at_zero_feeds_nothing_back() -> None:
    model = semask(fixed_lambda=0.0).eval()
    before = model(images()).logits
    for name, parameter in model.named_parameters():
        if ".projection." in name:
            torch.nn.init.normal_(parameter)
    assert torch.equal(model(images()).logits, before)
    assert "priors" in model.train()(images()).auxiliary


@pytest.mark.parametrize("stages", [[1], [1, 2], (3, 4)])
def test_semantic_layers_sit_in_the_stages_that_were_asked_for(stages: list[int]) -> None:
    model = semask(semantic_stages=stages).train()
    prediction = model(images())
    assert set(prediction.maps) == {"priors", *(f"prior_{stage}" for stage in stages)}
    assert prediction.auxiliary["priors"].shape == (2, 5, 16, 24)


@pytest.mark.parametrize(
    ("backbone", "num_classes", "attention", "windows"),
    [
        (SWIN["T"], 150, "auto", [7, 7, None, None]),
        (SWIN["S"], 20, "auto", [7, 7, None, None]),
        (SWIN["L"], 150, "auto", [12, 12, None, None]),
        (SWIN["B"], 150, "auto", [12, 12, 12, 12]),
        (SWIN["T"], 19, "auto", [7, 7, 7, 7]),
        (SWIN["T"], 150, "window", [7, 7, 7, 7]),
        (SWIN["T"], 19, "global", [None, None, None, None]),
        (NANO, 150, "auto", [4, 4, None, None]),
    ],
)
def test_attention_is_windowed_or_global_as_the_authors_rule_or_the_option_says(
    backbone: str, num_classes: int, attention: str, windows: list[int | None]
) -> None:
    model = on_meta(num_classes, backbone=backbone, attention=attention)
    assert [layer.window for layer in model.encoder.semantic_layers.values()] == windows


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet18"}, "backbone is 'resnet18', which is not a hierarchical transformer"),
        ({"backbone": "vit_tiny_patch16_224"}, "not a hierarchical transformer"),
        ({"backbone": "swin_tiny_patch4_window7_225"}, "did you mean 'swin_tiny_patch4_window7_224'"),
        ({"semantic_stages": [1, 2, 3, 4, 5]}, "semantic_stages is .*1 to 4"),
        ({"semantic_stages": [0]}, "semantic_stages is .*1 to 4"),
        ({"semantic_stages": [2, 2]}, "semantic_stages is .*distinct"),
        ({"decoder": "upernet"}, "decoder is 'upernet'; expected one of fpn, maskformer, mask2former"),
        ({"decoder": "fapn", "guided_upsampling": True}, "guided_upsampling is true with decoder 'fapn'"),
        ({"attention": "local"}, "attention is 'local'; expected one of auto, window, global"),
        ({"prior_weight": -0.1}, "prior_weight is -0.1"),
        ({"drop_path": 1.0}, "drop_path is 1.0"),
        ({"pretrained": True}, "no ImageNet weights of 'swin_nano'"),
    ],
)
def test_a_value_that_the_model_cannot_take_gets_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        semask(**options)
    assert "\n" not in str(error.value)


def test_every_own_backbone_can_be_built() -> None:
    for name in BACKBONES:
        on_meta(19, backbone=name)


# The authors' checkpoints


def test_a_released_checkpoint_is_loaded_by_renaming_alone() -> None:
    model, checkpoint = semask(), semask_checkpoint()
    models.load_released(model, checkpoint)
    own = {name: x for name, x in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    names = {theirs: model.released_format().ours(theirs) or () for theirs in checkpoint}
    for theirs, ours in names.items():
        assert (
            ours == () if theirs.endswith("position_index") else torch.equal(own[ours[0]], checkpoint[theirs])
        )
    assert {name for ours in names.values() for name in ours} == set(own)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("backbone.layers.1.semantic_layer.class_injection.0.mlp_cls_q.weight", "2.attention.query.weight"),
        ("backbone.layers.1.semantic_layer.class_injection.0.mlp_cls_k.weight", "2.attention.key.weight"),
        ("backbone.layers.1.semantic_layer.class_injection.0.mlp_v.bias", "2.attention.value.bias"),
        ("backbone.layers.1.semantic_layer.class_injection.0.mlp_res.bias", "2.attention.projection.bias"),
        ("backbone.layers.2.semantic_layer.class_injection.0.gamma", "3.attention.lambda_"),
        ("backbone.layers.0.downsample.norm.weight", "stages.1.downsample.norm.weight"),
    ],
)
def test_names_of_equal_shape_are_not_mixed_up(theirs: str, ours: str) -> None:
    assert str(semask().released_format().ours(theirs)).endswith(f"{ours}',)")


def test_a_released_checkpoint_that_does_not_fit_is_refused_by_name() -> None:
    model = semask()
    before = model.state_dict()["decoder.classifier.weight"].clone()
    missing = semask_checkpoint()
    del missing["backbone.layers.3.semantic_layer.class_injection.0.gamma"]
    with pytest.raises(ValueError, match=r"semantic_layers\.4\.attention\.lambda_"):
        models.load_released(model, missing)
    for extra in ("backbone.layers.3.downsample.norm.weight", "decode_head.auxiliary.weight"):
        with pytest.raises(ValueError, match=rf"'{re.escape(extra)}' has no counterpart in this SeMask"):
            models.load_released(model, semask_checkpoint() | {extra: torch.zeros(1)})
    classes = r"class_injection.*\(7, 32\).*num_classes=7 instead of 5"
    with pytest.raises(ValueError, match=classes):
        models.load_released(model, semask_checkpoint(num_classes=7))
    with pytest.raises(ValueError, match=r"'decode_head\.conv_seg\.bias' has shape \(4, 4\).*needs \(5,\)$"):
        models.load_released(model, semask_checkpoint() | {"decode_head.conv_seg.bias": torch.zeros(4, 4)})
    with pytest.raises(ValueError, match=r"'meta' holds a dict.*stands under 'state_dict'"):
        models.load_released(model, {"meta": {}, "state_dict": semask_checkpoint()})  # type: ignore[dict-item]
    assert torch.equal(model.state_dict()["decoder.classifier.weight"], before)


def test_the_priors_of_a_released_checkpoint_may_have_fewer_classes() -> None:
    checkpoint = semask_checkpoint(num_classes=7, prior_classes=5)
    with pytest.raises(ValueError, match=r"with prior_classes=5 instead of 7$"):
        models.load_released(semask(7), checkpoint)
    model = semask(7, prior_classes=5)
    models.load_released(model, checkpoint)
    prediction = model.eval()(images())
    assert prediction.logits.shape[1] == 7
    assert prediction.maps["priors"].shape[1] == 5


# Precision and compilation


def test_it_runs_in_half_precision() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = semask().eval()(images(40, 56)).logits
    assert logits.isfinite().all()


def test_it_compiles_without_graph_breaks() -> None:
    model = semask().eval()
    x = images(64, 64, batch=1)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)(x).logits
        torch.testing.assert_close(compiled, model(x).logits)
