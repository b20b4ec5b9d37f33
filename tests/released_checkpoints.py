"""Made-up checkpoints in the names that the SeMask authors' code saves under."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Family = Literal["fpn", "maskformer", "mask2former", "fapn", "msfapn"]
Shapes = Iterator[tuple[str, tuple[int, ...]]]


def semask_checkpoint(
    family: Family = "fpn", num_classes: int = 5, prior_classes: int | None = None
) -> dict[str, Tensor]:
    """Every tensor drawn at random, for the shapes of ``swin_nano``.

    A norm that two layers share is one tensor under two names, as it is in the authors' files.
    """
    random = torch.Generator().manual_seed(3)
    checkpoint = {}
    for name, shape in semask_shapes(family, num_classes, prior_classes).items():
        # Weights that keep the size of a feature.
        size = torch.Size(shape[1:]).numel() ** 0.5 if len(shape) > 1 else 1
        checkpoint[name] = torch.randn(shape, generator=random) / size
        if name.endswith("running_var"):
            checkpoint[name] = checkpoint[name].square() + 0.5
    for name in checkpoint:
        if ".offset.norm." in name:
            checkpoint[name] = checkpoint[name.replace("align", "layer").replace("offset.", "")]
    return checkpoint


def semask_shapes(
    family: Family = "fpn",
    num_classes: int = 5,
    prior_classes: int | None = None,
    width: int = 32,
    depths: tuple[int, int, int, int] = (2, 2, 2, 2),
    heads: int = 2,
    side: int = 4,
    decoder_width: int = 64,
) -> dict[str, tuple[int, ...]]:
    """Names and shapes: ``width``, ``depths``, ``heads`` and ``side`` of the windows are Swin's."""
    priors = num_classes if prior_classes is None else prior_classes
    shapes = dict(backbone(priors, width, depths, heads, side))
    if family == "fpn":
        return shapes | dict(semantic_fpn(num_classes, width, decoder_width))
    return shapes | dict(mask_decoder(family, num_classes, width, decoder_width))


def norm(name: str, channels: int) -> Shapes:
    yield f"{name}.weight", (channels,)
    yield f"{name}.bias", (channels,)


def linear(name: str, out: int, channels: int) -> Shapes:
    yield f"{name}.weight", (out, channels)
    yield f"{name}.bias", (out,)


def conv(name: str, out: int, channels: int, size: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (out, channels, size, size)
    if bias:
        yield f"{name}.bias", (out,)


def conv_norm(name: str, out: int, channels: int, size: int) -> Shapes:
    yield from conv(name, out, channels, size, bias=False)
    yield from norm(f"{name}.norm", out)


def backbone(prior_classes: int, width: int, depths: tuple[int, ...], heads: int, side: int) -> Shapes:
    yield from conv("backbone.patch_embed.proj", width, 3, 4)
    yield from norm("backbone.patch_embed.norm", width)
    for i, depth in enumerate(depths):
        c, stage = width << i, f"backbone.layers.{i}"
        for block in (f"{stage}.blocks.{j}" for j in range(depth)):
            yield from norm(f"{block}.norm1", c)
            yield f"{block}.attn.relative_position_bias_table", ((2 * side - 1) ** 2, heads << i)
            yield f"{block}.attn.relative_position_index", (side**2, side**2)
            yield from linear(f"{block}.attn.qkv", 3 * c, c)
            yield from linear(f"{block}.attn.proj", c, c)
            yield from norm(f"{block}.norm2", c)
            yield from linear(f"{block}.mlp.fc1", 4 * c, c)
            yield from linear(f"{block}.mlp.fc2", c, 4 * c)
        yield from norm(f"{stage}.semantic_layer.norm1", c)
        attention = f"{stage}.semantic_layer.class_injection.0"
        yield from linear(f"{attention}.mlp_cls_q", prior_classes, c)
        yield from linear(f"{attention}.mlp_cls_k", prior_classes, c)
        yield from linear(f"{attention}.mlp_v", c, c)
        yield from linear(f"{attention}.mlp_res", c, c)
        yield f"{attention}.gamma", (1,)
        if i < 3:
            yield from norm(f"{stage}.downsample.norm", 4 * c)
            yield f"{stage}.downsample.reduction.weight", (2 * c, 4 * c)
        yield from norm(f"backbone.norm{i}", c)


def semantic_fpn(num_classes: int, width: int, decoder_width: int) -> Shapes:
    for i in range(4):
        for j in range(max(1, i)):
            module = f"decode_head.scale_heads.{i}.{2 * j}"
            yield from conv(
                f"{module}.conv", decoder_width, decoder_width if j else width << i, 3, bias=False
            )
            yield from norm(f"{module}.bn", decoder_width)
            yield f"{module}.bn.running_mean", (decoder_width,)
            yield f"{module}.bn.running_var", (decoder_width,)
    yield from conv("decode_head.conv_seg", num_classes, decoder_width, 1)


def mask_decoder(family: Family, num_classes: int, width: int, c: int) -> Shapes:
    pixels, queries = "sem_seg_head.pixel_decoder", "sem_seg_head.predictor"
    pyramid = [1] if family in ("mask2former", "msfapn") else [1, 2, 3]
    for level in pyramid:
        yield from conv_norm(f"{pixels}.adapter_{level}", c, width << (level - 1), 1)
        yield from conv_norm(f"{pixels}.layer_{level}", c, c, 3)
        if family in ("fapn", "msfapn"):
            yield from conv_norm(f"{pixels}.align_{level}.offset", c, 2 * c, 1)
            yield from conv(f"{pixels}.align_{level}.dcpack_L2", c, c, 3)
            yield from conv(f"{pixels}.align_{level}.dcpack_L2.conv_offset_mask", 3 * 8 * 9, c, 3)
    if len(pyramid) == 3:
        yield from conv_norm(f"{pixels}.layer_4", c, 8 * width, 3)
    else:
        yield from deformable_encoder(pixels, width, c)
    yield from conv(f"{pixels}.mask_features", c, c, 1 if len(pyramid) == 1 else 3)
    count, divisor = (100, 1) if c == 256 else (32, 3)  # the stand-in's decoder is smaller
    yield f"{queries}.query_embed.weight", (count, c)
    if family == "maskformer":
        yield from conv(f"{queries}.input_proj", c, 8 * width, 1)
        yield from norm(f"{queries}.transformer.decoder.norm", c)
        for layer in (f"{queries}.transformer.decoder.layers.{i}" for i in range(6 // divisor)):
            yield from attention(f"{layer}.self_attn", c)
            yield from attention(f"{layer}.multihead_attn", c)
            yield from feed_forward(layer, c, 8 * c)
            for number in (1, 2, 3):
                yield from norm(f"{layer}.norm{number}", c)
    else:
        yield f"{queries}.query_feat.weight", (count, c)
        yield f"{queries}.level_embed.weight", (3, c)
        yield from norm(f"{queries}.decoder_norm", c)
        for i in range(9 // divisor):
            yield from attention(f"{queries}.transformer_self_attention_layers.{i}.self_attn", c)
            yield from attention(f"{queries}.transformer_cross_attention_layers.{i}.multihead_attn", c)
            yield from feed_forward(f"{queries}.transformer_ffn_layers.{i}", c, 8 * c)
            for kind in ("self_attention", "cross_attention", "ffn"):
                yield from norm(f"{queries}.transformer_{kind}_layers.{i}.norm", c)
    for i in range(3):
        yield from linear(f"{queries}.mask_embed.layers.{i}", c, c)
    yield from linear(f"{queries}.class_embed", num_classes + 1, c)
    yield "criterion.empty_weight", (num_classes + 1,)


def attention(name: str, c: int) -> Shapes:
    yield f"{name}.in_proj_weight", (3 * c, c)
    yield f"{name}.in_proj_bias", (3 * c,)
    yield from linear(f"{name}.out_proj", c, c)


def feed_forward(name: str, c: int, hidden: int) -> Shapes:
    yield from linear(f"{name}.linear1", hidden, c)
    yield from linear(f"{name}.linear2", c, hidden)


def deformable_encoder(pixels: str, width: int, c: int) -> Shapes:
    for i in range(3):
        yield from conv(f"{pixels}.input_proj.{i}.0", c, width << (3 - i), 1)
        yield from norm(f"{pixels}.input_proj.{i}.1", c)
    yield f"{pixels}.transformer.level_embed", (3, c)
    for layer in (f"{pixels}.transformer.encoder.layers.{i}" for i in range(6 if c == 256 else 2)):
        yield from linear(f"{layer}.self_attn.sampling_offsets", 2 * 8 * 3 * 4, c)
        yield from linear(f"{layer}.self_attn.attention_weights", 8 * 3 * 4, c)
        yield from linear(f"{layer}.self_attn.value_proj", c, c)
        yield from linear(f"{layer}.self_attn.output_proj", c, c)
        yield from feed_forward(layer, c, 4 * c)
        yield from norm(f"{layer}.norm1", c)
        yield from norm(f"{layer}.norm2", c)
