"""Mask2Former (Cheng et al., CVPR 2022) as a decoder, plain or with a feature-aligned pyramid.

The parts are those of ``transformers``: the layers of multi-scale deformable attention, the masked-attention
decoder, and the set loss. Importing them takes seconds; only what builds this decoder does.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as parts

from models.decoders.fapn import (
    RELEASED_LEVEL_NAMES,
    FeatureAlignedPyramid,
    PyramidLevel,
    mask_projection,
)
from models.decoders.mask_classification import (
    PIXELS,
    QUERIES,
    MaskDecoder,
    MaskSet,
    split_attention,
    with_prefix,
)
from models.segmenter import LabelCounts, Prediction

PixelDecoderKind = Literal["plain", "fapn", "msfapn"]


class Mask2Former(MaskDecoder):
    """Masked-attention decoder over a pixel decoder.

    Depths, numbers of queries and points, and the weights of the loss are the authors', and the defaults of
    ``transformers``: 8 heads, 6 layers of deformable attention with 4 points on 3 levels, 9 decoder layers
    on 100 queries, a prediction before the first and after each.

    Args:
        in_channels: of the backbone's features at 1/4 to 1/32.
        num_classes: K.
        pixel_decoder: ``plain`` is Mask2Former's own, ``msfapn`` the same with an aligned level at 1/4,
            ``fapn`` a feature-aligned pyramid in its place.
        width: of everything in the decoder, a multiple of 32; the feed-forward layers are 4 times as wide
            in the deformable attention and 8 times in the decoder.
        queries: how many masks it predicts.
        divisor: of the numbers of layers, 1 or 3.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        pixel_decoder: PixelDecoderKind = "plain",
        width: int = 256,
        queries: int = 100,
        divisor: int = 1,
    ):
        super().__init__()
        config = Mask2FormerConfig(
            feature_size=width,
            mask_feature_size=width,
            hidden_dim=width,
            encoder_feedforward_dim=4 * width,
            dim_feedforward=8 * width,
            num_queries=queries,
            encoder_layers=6 // divisor,
            decoder_layers=9 // divisor + 1,  # theirs counts the prediction before the first
        )
        config.num_labels = num_classes
        self.pixel_decoder: FeatureAlignedPyramid | DeformablePixelDecoder = (
            FeatureAlignedPyramid(in_channels, width)
            if pixel_decoder == "fapn"
            else DeformablePixelDecoder(in_channels, config, align=pixel_decoder == "msfapn")
        )
        self.transformer = initialised(
            parts.Mask2FormerTransformerModule(in_features=width, config=config), config
        )
        self.classifier = nn.Linear(width, num_classes + 1)
        self.weights = {
            "cross_entropy": config.class_weight,
            "mask": config.mask_weight,
            "dice": config.dice_weight,
        }
        self.no_object_weight = config.no_object_weight
        self.criterion = parts.Mask2FormerLoss(config, self.weights)
        self.points: int = config.train_num_points

    def predict(self, features: Sequence[Tensor]) -> MaskSet:
        """Features at 1/4 to 1/32, shallow to deep, to masks at 1/4: ten sets in training, else the last."""
        levels, mask_feature = self.pixel_decoder(features)
        decoded = self.transformer(levels, mask_feature)
        kept = slice(None) if self.training else slice(-1, None)
        return MaskSet(
            torch.stack(decoded.masks_queries_logits[kept], dim=1),
            self.classifier(torch.stack(decoded.intermediate_hidden_states[kept])).permute(2, 0, 1, 3),
        )

    def loss(
        self, prediction: Prediction, labels: Tensor, whole: LabelCounts | None = None
    ) -> dict[str, Tensor]:
        """See ``MaskDecoder``. Sampled at 12 544 points of a mask, or as many as a smaller one has pixels."""
        points = min(self.points, prediction.auxiliary["masks"].shape[-2:].numel())
        self.criterion.num_points = self.criterion.matcher.num_points = points
        return super().loss(prediction, labels, whole)

    def released_names(self) -> dict[str, str | Sequence[str]]:
        """See ``MaskDecoder``."""
        return {
            **with_prefix(PIXELS, "pixel_decoder.", self.pixel_decoder.released_names()),
            **with_prefix(
                QUERIES + r"transformer_self_attention_layers\.(\d+)\.",
                "transformer.decoder.layers.{0}.",
                {
                    **split_attention("self_attn", "self_attn"),
                    "self_attn": "self_attn",
                    "norm": "self_attn_layer_norm",
                },
            ),
            **with_prefix(
                QUERIES + r"transformer_cross_attention_layers\.(\d+)\.",
                "transformer.decoder.layers.{0}.",
                {"multihead_attn": "cross_attn", "norm": "cross_attn_layer_norm"},
            ),
            **with_prefix(
                QUERIES + r"transformer_ffn_layers\.(\d+)\.",
                "transformer.decoder.layers.{0}.",
                {"linear1": "fc1", "linear2": "fc2", "norm": "final_layer_norm"},
            ),
            QUERIES + "decoder_norm": "transformer.decoder.layernorm",
            QUERIES + "query_feat": "transformer.queries_features",
            QUERIES + "query_embed": "transformer.queries_embedder",
            QUERIES + "level_embed": "transformer.level_embed",
            QUERIES + r"mask_embed\.layers\.(\d)": "transformer.decoder.mask_predictor.mask_embedder.{0}.0",
            QUERIES + "class_embed": "classifier",
            r"criterion\.empty_weight": "criterion.empty_weight",
        }


class DeformablePixelDecoder(nn.Module):
    """Multi-scale deformable attention over the levels from 1/8 down, then one pyramid level at 1/4.

    Args:
        in_channels: of the backbone's features, shallow to deep.
        config: widths and depths.
        align: whether the pyramid level aligns features (MSFaPN).
    """

    def __init__(self, in_channels: Sequence[int], config: Mask2FormerConfig, align: bool):
        super().__init__()
        width = config.feature_size
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1), nn.GroupNorm(32, width)) for c in reversed(in_channels[1:])
        )
        self.position = parts.Mask2FormerSinePositionEmbedding(width // 2, normalize=True)
        self.level_embed = nn.Parameter(torch.randn(len(self.projections), width))
        self.encoder = initialised(parts.Mask2FormerPixelDecoderEncoderOnly(config), config)
        self.level = PyramidLevel(in_channels[0], width, align)
        self.mask_feature = mask_projection(width, config.mask_feature_size, 1)
        self._start_as_the_authors_do()

    def _start_as_the_authors_do(self) -> None:
        """``transformers`` draws the deformable attention as they do, and the rest of a layer otherwise."""
        linear: Any
        for linear, _ in cast("Sequence[nn.Sequential]", self.projections):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        for layer in cast("Sequence[Any]", self.encoder.layers):
            for linear in (layer.fc1, layer.fc2):
                linear.reset_parameters()  # for the biases, which they leave as torch draws them
                nn.init.xavier_uniform_(linear.weight)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Features, shallow to deep, to the three deeper levels, deepest first, and the mask feature at the
        resolution of the shallowest. In float32 whatever autocast says, like the authors'."""
        device = features[0].device.type
        # A meta tensor, whose parameters are only counted, knows no autocast.
        with torch.autocast(device, enabled=False) if device != "meta" else nullcontext():
            return self._forward([feature.float() for feature in features])

    def _forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        levels = [project(x) for project, x in zip(self.projections, reversed(features[1:]), strict=True)]
        sizes = [tuple(x.shape[-2:]) for x in levels]
        positions = [
            self.position(x.shape, x.device, x.dtype).flatten(2).transpose(1, 2) + embed
            for x, embed in zip(levels, self.level_embed, strict=True)
        ]
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in levels], dim=1)
        tokens = self.encoder(
            inputs_embeds=tokens,
            position_embeddings=torch.cat(positions, dim=1),
            spatial_shapes_list=sizes,
            valid_ratios=tokens.new_ones(len(tokens), len(sizes), 2),  # nothing is padded
        ).last_hidden_state
        lengths = [height * width for height, width in sizes]
        levels = [
            x.transpose(1, 2).unflatten(2, size)
            for x, size in zip(tokens.split(lengths, dim=1), sizes, strict=True)
        ]
        return levels, self.mask_feature(self.level(features[0], levels[-1]))

    def released_names(self) -> dict[str, str | Sequence[str]]:
        """See ``MaskDecoder``. They number the inputs from 1/32 on, and have one pyramid level, at 1/4."""
        return {
            r"input_proj\.(\d)": "projections.{0}",
            r"transformer\.level_embed": "level_embed",
            **with_prefix(
                r"transformer\.encoder\.layers\.(\d+)\.",
                "encoder.layers.{0}.",
                {
                    "self_attn": "self_attn",
                    "norm1": "self_attn_layer_norm",
                    "linear1": "fc1",
                    "linear2": "fc2",
                    "norm2": "final_layer_norm",
                },
            ),
            **with_prefix("", "level.", RELEASED_LEVEL_NAMES),
            "mask_features": "mask_feature",
        }


def initialised(part: nn.Module, config: Mask2FormerConfig) -> nn.Module:
    """A part of ``transformers``' model with the weights that the whole model would start from."""
    # Not a subclass: of those, transformers skips the modules without parameters of their own, and with
    # them how deformable attention starts.
    model = parts.Mask2FormerPreTrainedModel(config)
    model.add_module("part", part)
    model.post_init()
    return part
