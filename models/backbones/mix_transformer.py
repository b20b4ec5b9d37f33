"""Mix Transformer as a list of stages: SegFormer's encoder, from ``transformers``.

Importing ``transformers`` takes seconds, so only what builds one does it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones.base import read_weights, unreachable_hub
from models.backbones.hierarchical import DecoderSize, HierarchicalTransformer

DEPTHS = {
    "mit_b0": [2, 2, 2, 2],
    "mit_b1": [2, 2, 2, 2],
    "mit_b2": [3, 4, 6, 3],
    "mit_b3": [3, 4, 18, 3],
    "mit_b4": [3, 8, 27, 3],
    "mit_b5": [3, 6, 40, 3],
}
"""Blocks of each stage, by the variant's name."""


class MixStage(nn.Module):
    """Overlapping patch embedding, then the blocks of one resolution.

    The layer norm that ends a stage of SegFormer's is left to the encoder, which puts the Semantic Layer
    before it.
    """

    def __init__(self, stage: Any, takes_images: bool):
        super().__init__()
        self.patch_embeddings = stage.patch_embeddings
        self.blocks = stage.blocks
        self.takes_images = takes_images

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W), or the previous stage's (N, H, W, C), to tokens (N, H', W', C')."""
        if self.takes_images:
            # The first stage's attention needs 8 x 8 tokens.
            x = F.pad(x, (0, max(0, 32 - x.shape[3]), 0, max(0, 32 - x.shape[2])))
        else:
            x = x.permute(0, 3, 1, 2)
        tokens: Tensor
        tokens, height, width = self.patch_embeddings(x)
        for block in self.blocks:
            tokens = block(tokens, height, width)
        return tokens.reshape(len(tokens), height, width, -1)


class MixTransformer(HierarchicalTransformer):
    """Mix Transformer, SegFormer's encoder.

    Args:
        name: ``mit_b0`` to ``mit_b5``.
        pretrained: ImageNet weights from the hub (``True``), from a local file in the hub's names, or none.
        drop_path: rate of stochastic depth in the last block; it grows linearly from 0.

    Raises:
        FileNotFoundError: ``pretrained`` is a path and there is no file.
        ConnectionError: ``pretrained`` is true and the hub cannot be reached.
        ValueError: the file lacks a weight of this variant.
    """

    norms_on_path = True
    prefers_global = False
    decoder_size = DecoderSize()

    def __init__(self, name: str, pretrained: bool | str = False, drop_path: float = 0.0):
        super().__init__()
        model = segformer_encoder(name, pretrained, drop_path)
        self.stages = nn.ModuleList(MixStage(stage, i == 0) for i, stage in enumerate(model.stages))
        self.norms = nn.ModuleList(stage.layer_norm for stage in model.stages)
        self.channels = list(model.config.hidden_sizes)
        # It has no windows of its own; 7 is Swin-T's.
        self.windows = [7] * len(self.channels)


def segformer_encoder(name: str, pretrained: bool | str, drop_path: float) -> Any:
    """The ``SegformerModel`` of a variant; the errors are ``MixTransformer``'s."""
    from transformers import SegformerConfig, SegformerModel

    config = SegformerConfig(
        hidden_sizes=[32, 64, 160, 256] if name == "mit_b0" else [64, 128, 320, 512],
        depths=DEPTHS[name],
        drop_path_rate=drop_path,
    )
    if pretrained is False:
        return SegformerModel(config)
    name_on_hub: str | None = f"nvidia/{name.replace('_', '-')}"
    weights = None
    if isinstance(pretrained, str):
        name_on_hub, weights = None, read_weights(pretrained)
    load: Any = SegformerModel.from_pretrained
    try:
        model, report = load(name_on_hub, config=config, state_dict=weights, output_loading_info=True)
    except OSError as error:
        raise unreachable_hub(name, error) from error
    except RuntimeError as error:
        raise ValueError(
            f"backbone weights: {pretrained!r} does not hold the weights of {name!r}: tensors differ in shape"
        ) from error
    if missing := report["missing_keys"]:
        raise ValueError(f"backbone weights {pretrained!r}: nothing in it for {min(missing)!r}")
    return model
