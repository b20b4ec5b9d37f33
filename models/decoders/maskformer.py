"""MaskFormer (Cheng et al., NeurIPS 2021) as a decoder, of the parts in ``transformers``.

Importing them takes seconds; only what builds this decoder does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DetrConfig, MaskFormerConfig
from transformers.models.maskformer import modeling_maskformer as parts

from models.decoders.mask_classification import (
    PIXELS,
    QUERIES,
    MaskDecoder,
    MaskSet,
    split_attention,
    with_prefix,
)


class MaskFormer(MaskDecoder):
    """A feature pyramid for the pixels, a transformer decoder on the deepest feature for the masks.

    8 heads, 6 layers on 100 queries, dropout 0.1 after every part, of the attention's weights and between the
    two feed-forward layers; focal loss 20, dice loss 1, class loss 1, with 0.1 for "no object": the authors'
    configuration.

    Args:
        in_channels: of the backbone's features at 1/4 to 1/32.
        num_classes: K.
        width: of everything in the decoder, a multiple of 32; the feed-forward layers are 8 times as wide.
        queries: how many masks it predicts.
        divisor: of the number of layers.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        width: int = 256,
        queries: int = 100,
        divisor: int = 1,
    ):
        super().__init__()
        config = MaskFormerConfig(
            fpn_feature_size=width,
            mask_feature_size=width,
            decoder_config=DetrConfig(
                d_model=width,
                num_queries=queries,
                decoder_layers=6 // divisor,
                decoder_ffn_dim=8 * width,
                dropout=0.1,
                attention_dropout=0.1,
                activation_dropout=0.1,
            ),
        )
        self.pixel_decoder = parts.MaskFormerPixelDecoder(
            in_features=in_channels[-1],
            feature_size=width,
            mask_feature_size=width,
            lateral_widths=list(in_channels[:-1]),
        )
        self.transformer: Any = parts.MaskFormerTransformerModule(in_channels[-1], config)
        self.mask_embedder = parts.MaskformerMLPPredictionHead(width, width, width)
        # Draws their weights as the whole model does; see models/decoders/mask2former.py for why no
        # subclass does.
        model = parts.MaskFormerPreTrainedModel(config)
        for name, part in self.named_children():
            model.add_module(name, part)
        model.post_init()
        self._draw_as_the_authors()
        self.classifier = nn.Linear(width, num_classes + 1)
        self.weights = {
            "cross_entropy": config.cross_entropy_weight,
            "mask": config.mask_weight,
            "dice": config.dice_weight,
        }
        matcher = parts.MaskFormerHungarianMatcher(
            cost_class=config.cross_entropy_weight,
            cost_mask=config.mask_weight,
            cost_dice=config.dice_weight,
        )
        self.no_object_weight = config.no_object_weight
        self.criterion = parts.MaskFormerLoss(num_classes, matcher, self.weights, config.no_object_weight)

    def _draw_as_the_authors(self) -> None:
        """Starts what ``transformers`` starts otherwise from where the authors' code does.

        It draws the decoder and the queries with a deviation of 0.02: so small that attention is uniform and
        all queries are alike. At a width of 64 they learnt no masks in 220 steps.
        """
        for parameter in self.transformer.decoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.transformer.queries_embedder.weight)
        for module in self.mask_embedder.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        nn.init.kaiming_uniform_(self.pixel_decoder.mask_projection.weight, a=1)

    def predict(self, features: Sequence[Tensor]) -> MaskSet:
        """Features at 1/4 to 1/32, shallow to deep, to masks at 1/4: six sets in training, else the last."""
        mask_feature = self.pixel_decoder(list(features)).last_hidden_state
        queries = self.decode(features[-1])
        queries = queries if self.training else queries[:, -1:]
        masks = torch.einsum("ndqc,nchw->ndqhw", self.mask_embedder(queries), mask_feature)
        return MaskSet(masks, self.classifier(queries))

    def decode(self, feature: Tensor) -> Tensor:
        """The deepest feature (N, C, h, w) to every layer's queries (N, D, Q, 256)."""
        transformer = self.transformer
        project = transformer.input_projection  # none where the widths are equal
        x = feature if project is None else project(feature)
        memory = x.flatten(2).transpose(1, 2)
        position = transformer.position_embedder(x.shape, x.device, x.dtype).flatten(2).transpose(1, 2)
        query_position = transformer.queries_embedder.weight.expand(len(x), -1, -1)
        queries = torch.zeros_like(query_position)
        decoded = []
        # Layer by layer, since the module itself would hand the next layer a normalised query.
        for layer in transformer.decoder.layers:
            queries = layer(queries, None, position, query_position, memory)
            decoded.append(transformer.decoder.layernorm(queries))
        return torch.stack(decoded, dim=1)

    def released_names(self) -> dict[str, str | Sequence[str]]:
        """See ``MaskDecoder``."""
        return {
            # Their levels are numbered from 1/4 to 1/32, ours from 1/16 to 1/4 after the stem at 1/32.
            PIXELS + r"layer_4\.norm": "pixel_decoder.fpn.stem.1",
            PIXELS + "layer_4": "pixel_decoder.fpn.stem.0",
            PIXELS + r"adapter_(\d)\.norm": "pixel_decoder.fpn.layers.{from_3_0}.proj.1",
            PIXELS + r"adapter_(\d)": "pixel_decoder.fpn.layers.{from_3_0}.proj.0",
            PIXELS + r"layer_(\d)\.norm": "pixel_decoder.fpn.layers.{from_3_0}.block.1",
            PIXELS + r"layer_(\d)": "pixel_decoder.fpn.layers.{from_3_0}.block.0",
            PIXELS + "mask_features": "pixel_decoder.mask_projection",
            QUERIES + "query_embed": "transformer.queries_embedder",
            QUERIES + "input_proj": "transformer.input_projection",
            **with_prefix(
                QUERIES + r"transformer\.decoder\.layers\.(\d+)\.",
                "transformer.decoder.layers.{0}.",
                {
                    **split_attention("self_attn", "self_attn"),
                    r"self_attn\.out_proj": "self_attn.o_proj",
                    **split_attention("multihead_attn", "encoder_attn"),
                    r"multihead_attn\.out_proj": "encoder_attn.o_proj",
                    "linear1": "mlp.fc1",
                    "linear2": "mlp.fc2",
                    "norm1": "self_attn_layer_norm",
                    "norm2": "encoder_attn_layer_norm",
                    "norm3": "final_layer_norm",
                },
            ),
            QUERIES + r"transformer\.decoder\.norm": "transformer.decoder.layernorm",
            QUERIES + r"mask_embed\.layers\.(\d)": "mask_embedder.{0}.0",
            QUERIES + "class_embed": "classifier",
            r"criterion\.empty_weight": "criterion.empty_weight",
        }
