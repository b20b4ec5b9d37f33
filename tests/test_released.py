"""The SeMask authors' checkpoints with decoders of masks, and what differs silently in their networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from released_checkpoints import Family, semask_checkpoint, semask_shapes
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

import models
from models.parts.semantic_layer import SemanticAttention
from models.segmenter import IGNORE_LABEL
from models.semask import DecoderKind, SeMaskSegmenter, released_windows

pytest.importorskip("transformers")

FAMILIES: list[Family] = ["maskformer", "mask2former", "fapn", "msfapn"]


def semask(decoder: DecoderKind, num_classes: int = 5, **options: Any) -> SeMaskSegmenter:
    torch.manual_seed(0)
    options = {"backbone": "swin_nano", "drop_path": 0.0, **options}
    return SeMaskSegmenter(num_classes, decoder=decoder, **options)


def loaded(family: Family) -> tuple[Any, dict[str, Tensor]]:
    """A model and the checkpoint that it has loaded."""
    model, checkpoint = semask(family), semask_checkpoint(family)
    models.load_released(model, checkpoint)
    return model.eval(), checkpoint


def images(height: int = 64, width: int = 96) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


# Names


@pytest.mark.parametrize(
    ("family", "count"), [("maskformer", 378), ("mask2former", 526), ("fapn", 453), ("msfapn", 533)]
)
def test_a_file_on_swin_t_has_as_many_names_as_the_authors_code_saves(family: Family, count: int) -> None:
    shapes = semask_shapes(family, 150, width=96, depths=(2, 2, 6, 2), heads=3, side=7, decoder_width=256)
    assert len(shapes) == count
    with torch.device("meta"):
        model = semask(family, 150, backbone="swin_tiny_patch4_window7_224.ms_in1k")
        models.load_released(model, {name: torch.empty(shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_released_checkpoint_is_in_the_model_tensor_by_tensor(family: Family) -> None:
    model, checkpoint = loaded(family)
    own, released = model.state_dict(), model.released_format()
    seen = set()
    for theirs, tensor in checkpoint.items():
        ours = released.ours(theirs)
        assert ours is not None
        if ours:
            assert torch.equal(torch.cat([own[name].flatten() for name in ours]), tensor.flatten()), theirs
        seen |= set(ours)
    assert seen == set(own)
    assert model(images()).logits.isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_no_score_depends_on_may_be_there_or_not(family: Family) -> None:
    model, checkpoint = loaded(family)
    expected = model(images()).logits
    del checkpoint["criterion.empty_weight"]
    checkpoint |= {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    again = semask(family).eval()
    models.load_released(again, checkpoint)
    assert torch.equal(again(images()).logits, expected)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda c: c.pop("sem_seg_head.predictor.class_embed.bias"),
            "nothing in it for 'decoder.classifier.b",
        ),
        (
            lambda c: c.update({"sem_seg_head.predictor.input_proj.2": torch.zeros(1)}),
            "input_proj.2.* no count",
        ),
        (
            lambda c: c.update({"decode_head.conv_seg.bias": torch.zeros(5)}),
            "conv_seg.bias.* has no counterpart",
        ),
        (
            lambda c: c.update(semask_checkpoint("mask2former", 7)),
            "with num_classes=7 instead of 5$",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(change: Any, complaint: str) -> None:
    checkpoint = semask_checkpoint("mask2former")
    change(checkpoint)
    with pytest.raises(ValueError, match=complaint) as error:
        models.load_released(semask("mask2former"), checkpoint)
    assert "\n" not in str(error.value)


def test_a_model_whose_authors_released_nothing_says_so() -> None:
    with torch.device("meta"):
        model = models.create("spgnet", 5, backbone="resnet18")
    with pytest.raises(ValueError, match="SPGNet: its authors' checkpoint format is not known"):
        models.load_released(model, {})


# Blocks that differ, in formulas of their own


def fused_attention(checkpoint: dict[str, Tensor], name: str) -> nn.MultiheadAttention:
    """PyTorch's attention, which the authors use, with a checkpoint's tensors."""
    attention = nn.MultiheadAttention(64, 8, batch_first=True)
    tensors = {k.removeprefix(f"{name}."): t for k, t in checkpoint.items() if k.startswith(f"{name}.")}
    attention.load_state_dict(tensors)
    return attention.eval()


def test_attention_that_a_file_has_fused_is_split_as_it_was_meant() -> None:
    x, position = torch.randn(2, 2, 7, 64).unbind()
    model, checkpoint = loaded("mask2former")
    theirs = fused_attention(
        checkpoint, "sem_seg_head.predictor.transformer_self_attention_layers.2.self_attn"
    )
    ours = model.decoder.transformer.decoder.layers[2].self_attn
    expected, _ = theirs(x + position, x + position, x)
    found = ours(x.transpose(0, 1), position_embeddings=position.transpose(0, 1))[0].transpose(0, 1)
    torch.testing.assert_close(found, expected)

    model, checkpoint = loaded("maskformer")
    memory = torch.randn(2, 9, 64)
    layer = "sem_seg_head.predictor.transformer.decoder.layers.1"
    ours = model.decoder.transformer.decoder.layers[1]
    expected, _ = fused_attention(checkpoint, f"{layer}.self_attn")(x, x, x)
    torch.testing.assert_close(ours.self_attn(x)[0], expected)
    expected, _ = fused_attention(checkpoint, f"{layer}.multihead_attn")(x, memory, memory)
    torch.testing.assert_close(ours.encoder_attn(x, memory)[0], expected)


@pytest.mark.parametrize(("family", "number", "mode"), [("fapn", 2, "nearest"), ("msfapn", 1, "bilinear")])
def test_one_norm_serves_the_offsets_and_the_output_of_a_level(
    family: Family, number: int, mode: str
) -> None:
    model, checkpoint = loaded(family)
    decoder = model.decoder.pixel_decoder
    level = decoder.levels[3 - number] if family == "fapn" else decoder.level
    feature, above = torch.randn(1, 32 << (number - 1), 8, 6), torch.randn(1, 64, 4, 3)

    def tensor(name: str) -> Tensor:
        return checkpoint[f"sem_seg_head.pixel_decoder.{name}"]

    def group_norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, 32, tensor(f"{name}.weight"), tensor(f"{name}.bias"))

    adapter, layer, align = (f"{part}_{number}" for part in ("adapter", "layer", "align"))
    lateral = group_norm(F.conv2d(feature, tensor(f"{adapter}.weight")), f"{adapter}.norm")
    x = lateral + F.interpolate(above, (8, 6), mode=mode)
    offset = F.conv2d(torch.cat((lateral, 2 * x), 1), tensor(f"{align}.offset.weight"))
    offset = group_norm(offset, f"{layer}.norm")
    y_of_taps, x_of_taps, mask = F.conv2d(
        offset,
        tensor(f"{align}.dcpack_L2.conv_offset_mask.weight"),
        tensor(f"{align}.dcpack_L2.conv_offset_mask.bias"),
        padding=1,
    ).chunk(3, dim=1)
    aligned = deform_conv2d(
        x,
        torch.cat((y_of_taps, x_of_taps), 1),
        tensor(f"{align}.dcpack_L2.weight"),
        tensor(f"{align}.dcpack_L2.bias"),
        padding=1,
        mask=mask.sigmoid(),
    )
    output = F.conv2d(aligned.relu() + lateral, tensor(f"{layer}.weight"), padding=1)
    expected = group_norm(output, f"{layer}.norm").relu()
    torch.testing.assert_close(level(feature, above), expected, rtol=1e-4, atol=1e-4)

    names = {
        name for name, p in model.named_parameters(remove_duplicate=False) if p is level.output[1].weight
    }
    assert len(names) == 2


# What differs by decoder


@pytest.mark.parametrize(
    ("decoder", "prefers_global", "classes", "stages"),
    [
        ("fpn", True, 150, "WWGG"),
        ("fpn", True, 19, "WWWW"),
        ("fpn", False, 150, "WWWW"),
        ("maskformer", False, 19, "WWWG"),
        ("mask2former", True, 150, "WWWG"),
        ("mask2former", True, 171, "WWWW"),
        ("fapn", False, 19, "WWGG"),
        ("msfapn", True, 150, "WWGG"),
    ],
)
def test_each_decoder_has_its_rule_of_attention_over_the_whole_map(
    decoder: DecoderKind, prefers_global: bool, classes: int, stages: str
) -> None:
    assert released_windows(decoder, prefers_global, classes) == [stage == "G" for stage in stages]


def test_the_number_of_prior_classes_decides_the_rule() -> None:
    layers: Any = semask("fpn", 171, prior_classes=19).encoder.semantic_layers
    assert [layer.window for layer in layers.values()] == [4, 4, 4, 4]
    layers = semask("fpn", 19, prior_classes=150).encoder.semantic_layers
    assert [layer.window for layer in layers.values()] == [4, 4, None, None]


def test_classes_without_a_prior_map_take_no_part_in_the_priors_loss() -> None:
    labels = torch.tensor([[0, 4, 6]]).repeat_interleave(32, dim=1).expand(1, 64, 96)
    model = semask("fpn", 7, prior_classes=5).train()
    torch.manual_seed(0)
    prediction = model(images())
    known = labels.masked_fill(labels == 6, IGNORE_LABEL)
    assert model.loss(prediction, labels)["priors"] == model.loss(prediction, known)["priors"]
    assert model.loss(prediction, labels)["main"] != model.loss(prediction, known)["main"]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_is_padded_to_multiples_of_32_before_a_decoder_of_masks(family: Family) -> None:
    model, _ = loaded(family)
    small = images(50, 65)
    padded = F.pad(small, (0, 31, 0, 14))
    found, expected = model(small), model(padded)
    assert torch.equal(found.logits, expected.logits[..., :50, :65])
    assert found.maps["prior_4"].shape[-2:] == (2, 3)
    assert torch.equal(found.maps["priors"], expected.maps["priors"][..., :13, :17])
    labels = torch.zeros(1, 50, 65, dtype=torch.int64)
    terms = model.train().loss(model(small), labels)
    assert all(term.isfinite() for term in terms.values())


def test_semantic_fpn_pads_nothing() -> None:
    x = images(50, 65)
    assert semask("fpn").padded(x) is x


def test_maskformer_drops_out_attention_weights_and_hidden_units_as_well() -> None:
    decoder: Any = semask("maskformer").decoder
    layer = decoder.transformer.decoder.layers[0]
    rates = (layer.dropout, layer.self_attn.attention_dropout, layer.encoder_attn.attention_dropout)
    assert (*rates, layer.mlp.activation_dropout) == (0.1, 0.1, 0.1, 0.1)


def test_the_deformable_encoder_starts_as_the_authors_draw_it() -> None:
    decoder: Any = semask("mask2former").decoder

    def largest(tensor: Tensor) -> float:
        return tensor.detach().abs().max().item()

    for layer in decoder.pixel_decoder.encoder.layers:
        for linear, fan_in in ((layer.fc1, 64), (layer.fc2, 256)):
            assert largest(linear.weight) == pytest.approx((6 / (64 + 256)) ** 0.5, rel=0.01)
            assert largest(linear.bias) == pytest.approx(fan_in**-0.5, rel=0.2)
    for projection, _ in decoder.pixel_decoder.projections:
        assert largest(projection.weight) == pytest.approx(
            (6 / sum(projection.weight.shape)) ** 0.5, rel=0.02
        )
        assert not largest(projection.bias)


# The start of the semantic attention


@pytest.mark.parametrize(("start", "moves"), [("drawn", True), ("zero", False)])
def test_lambda_moves_unless_the_projection_starts_at_zero_too(start: Any, moves: bool) -> None:
    torch.manual_seed(0)
    attention = SemanticAttention(16, 5, start=start)
    optimiser = torch.optim.SGD(attention.parameters(), 1.0)
    for _ in range(3):
        attended, _ = attention(torch.randn(2, 9, 16))
        optimiser.zero_grad()
        attended.square().sum().backward()
        optimiser.step()
    assert bool(attention.lambda_.any()) is moves
    assert bool(attention.projection.weight.any()) is moves


def test_a_start_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="semantic_start is 'ones'; expected one of drawn, zero"):
        semask("fpn", semantic_start="ones")
    with pytest.raises(ValueError, match="prior_classes is 0; expected at least 1"):
        semask("fpn", prior_classes=0)
