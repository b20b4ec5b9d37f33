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

from models.decoders.mask_classification import MaskDecoder, MaskSet


class MaskFormer(MaskDecoder):
    """A feature pyramid for the pixels, a transformer decoder on the deepest feature for the masks.

    8 heads, 6 layers on 100 queries, dropout 0.1; focal loss 20, dice loss 1, class loss 1, with
    0.1 for "no object": the authors' configuration, and the defaults of ``transformers``.

    Args:
        in_channels: of the backbone's features at 1/4 to 1/32.
        num_classes: K.
        width: of everything in the decoder, a multiple of 32; the feed-forward layers are 8 times as wide.
    """

    def __init__(self, in_channels: Sequence[int], num_classes: int, width: int = 256):
        super().__init__()
        config = MaskFormerConfig(
            fpn_feature_size=width,
            mask_feature_size=width,
            decoder_config=DetrConfig(d_model=width, decoder_ffn_dim=8 * width),
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
