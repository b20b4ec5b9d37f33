"""SeMask (Jain et al., ICCV Workshops 2023, arXiv 2112.12782): class semantics inside the encoder.

A Semantic Layer after the blocks of every stage of a hierarchical transformer predicts a prior map of
the classes, and lets the tokens attend to each other by it before they go on to the next stage and to
the decoder.

All of it was read in the authors' repository, but for Mix Transformer, which the sources only name. How
well it fits, in millions of parameters at 150 classes (published in brackets): with Semantic FPN 34.7 for
T (35), 56.0 for S (56), 96.5 for B (96), 210.8 for L (211), and 34.2 for T at 19 classes (34); on L 218.7
with MaskFormer (219), 222.6 with Mask2Former (222), 226.7 with FaPN (227), 223.9 with MSFaPN (224). The
Semantic Layers of T add 3.2 G to the 38.4 G multiply-accumulates of the plain one at 512 x 512.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn

from models import backbones
from models.backbones.hierarchical import HierarchicalTransformer
from models.backbones.mix_transformer import DEPTHS, MixTransformer
from models.backbones.swin import NANO, Swin, is_swin
from models.decoders.mask_classification import MaskDecoder
from models.decoders.semantic_fpn import SemanticFPN
from models.parts.layers import upsample
from models.parts.semantic_layer import SemanticLayer, semantic_decoder
from models.segmenter import LabelCounts, Prediction, Segmenter, check_images

BACKBONES = (NANO, *DEPTHS)
"""Backbones that are not timm's: the stand-in and Mix Transformer. Every Swin of timm is valid too."""

AttentionKind = Literal["auto", "window", "global"]
DecoderKind = Literal["fpn", "maskformer", "mask2former", "fapn", "msfapn"]


MOST_CLASSES_IN_WINDOWS = 19
"""With more, the authors let the deep stages of some backbones attend over the whole map."""


class SeMaskEncoder(nn.Module):
    """A hierarchical transformer with Semantic Layers after the blocks of some stages.

    The output of a Semantic Layer is what the next stage's patch merging or embedding and the decoder
    take, the decoder through the transformer's layer norm. Mix Transformer, whose norm is on both ways,
    takes the Semantic Layer before it (inferred: this keeps what a new layer does to the features, and
    so to the ImageNet weights, to a repeated norm).

    Args:
        trunk: the transformer's stages.
        semantic_layers: for each stage, its Semantic Layer, or ``None`` for a plain stage.
    """

    def __init__(self, trunk: HierarchicalTransformer, semantic_layers: Sequence[SemanticLayer | None]):
        super().__init__()
        self.stages = trunk.stages
        self.channels = trunk.channels
        self.semantic_layers = nn.ModuleDict(
            {str(stage): layer for stage, layer in enumerate(semantic_layers, 1) if layer is not None}
        )
        self.norms = trunk.norms
        self.norms_on_path = trunk.norms_on_path

    def forward(self, images: Tensor) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Images (N, 3, H, W) to features and prior maps.

        Returns:
            The features (N, channels[i], ~H / 2^(i + 2), ~W / 2^(i + 2)), and the prior maps (N, K, .., ..)
            of the stages that have one, at the same resolutions, by the stage's number from 1.
        """
        features, priors = [], {}
        x = images
        for i, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True), 1):
            x = stage(x)
            if str(i) in self.semantic_layers:
                x, priors[i] = self.semantic_layers[str(i)](x)
            normed = norm(x)
            features.append(normed.permute(0, 3, 1, 2))
            x = normed if self.norms_on_path else x
        return features, priors


class SeMaskSegmenter(Segmenter):
    """SeMask with any of its decoders, and the plain transformer with the same.

    ``Prediction.auxiliary`` holds ``priors`` (N, K, ~H / 4, ~W / 4), the supervised sum of the prior maps,
    and, of a decoder of masks, what a ``MaskSet`` holds: ``masks`` and ``classes``.

    Args:
        num_classes: K.
        backbone: any Swin of timm (``swin_tiny_patch4_window7_224`` is the paper's T) or one of
            ``BACKBONES``.
        pretrained: ImageNet weights of the backbone from the hub (``True``), from a local file (its
            path), or none.
        semantic_stages: stages that end in a Semantic Layer, counted from 1; none is the plain
            transformer.
        decoder: ``fpn`` (Semantic FPN), ``maskformer``, ``mask2former``, and ``mask2former`` with a
            feature-aligned pyramid, ``fapn`` or ``msfapn``. All but ``fpn`` need ``transformers``.
        attention: ``window`` attends within the backbone's windows, ``global`` over the whole map (in
            stage 1 of a 512 x 512 image that takes 1 GB of scores). ``auto``, the authors' rule, is global
            in stages 3 and 4 of Swin-T, S and L (not B) where K exceeds 19, else within windows. Mix
            Transformer, which has no windows, takes those of 7 (inferred).
        fixed_lambda: weight of the semantic attention in a Semantic Layer, in place of the one that is
            learned from 0. Fixed at 0, the prior maps are predicted and not fed back.
        prior_weight: weight of the loss on the sum of the prior maps; 0 leaves them without
            supervision.
        guided_upsampling: Semantic FPN's scores go to full size by GUN's guided upsampling.
        drop_path: rate of stochastic depth of the backbone's last block, in [0, 1).

    Raises:
        ValueError: a backbone that is not a hierarchical transformer, or an option outside its range.
    """

    training_only = frozenset({"prior_weight", "drop_path"})
    backbone_modules = frozenset({"encoder"})

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "swin_tiny_patch4_window7_224",
        pretrained: bool | str = False,
        semantic_stages: tuple[int, ...] | list[int] = (1, 2, 3, 4),
        decoder: DecoderKind = "fpn",
        attention: AttentionKind = "auto",
        fixed_lambda: float | None = None,
        prior_weight: float = 0.4,
        guided_upsampling: bool = False,
        drop_path: float = 0.3,
    ):
        super().__init__(num_classes, {"priors": prior_weight})
        check_options(semantic_stages, decoder, attention, prior_weight, guided_upsampling, drop_path)
        self.check_backbone(backbone)
        transformer = MixTransformer if backbone in DEPTHS else Swin
        trunk: HierarchicalTransformer = transformer(backbone, pretrained, drop_path)
        windows = semantic_windows(attention, trunk, num_classes)
        layers = [
            SemanticLayer(channels, num_classes, window, fixed_lambda) if stage in semantic_stages else None
            for stage, (channels, window) in enumerate(zip(trunk.channels, windows, strict=True), 1)
        ]
        self.encoder = SeMaskEncoder(trunk, layers)
        self.decoder = create_decoder(decoder, trunk, num_classes, guided_upsampling)

    @classmethod
    def check_backbone(cls, name: str) -> None:
        """Raises ``ValueError`` unless the backbone has stages between which to put a Semantic Layer."""
        if is_swin(name) or name in BACKBONES:
            return
        backbones.check_name(name)
        raise ValueError(
            f"backbone is {name!r}, which is not a hierarchical transformer; expected a Swin of timm such as "
            f"'swin_tiny_patch4_window7_224' or one of {', '.join(BACKBONES)}"
        )

    @classmethod
    def settled_options(cls, num_classes: int, **options: Any) -> dict[str, Any]:
        """See ``Segmenter``. Up to 19 classes the authors' rule is attention within windows everywhere."""
        settled = super().settled_options(num_classes, **options)
        settled["semantic_stages"] = sorted(settled["semantic_stages"])
        if settled["attention"] == "auto" and num_classes <= MOST_CLASSES_IN_WINDOWS:
            settled["attention"] = "window"
        silent = set()
        if not settled["semantic_stages"]:
            silent |= {"attention", "fixed_lambda", "prior_weight"}
        return {name: value for name, value in settled.items() if name not in silent}

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width.

        The maps are each stage's prior, ``prior_1`` to ``prior_4`` (N, K, ~H / 4 .. 32, ~W / 4 .. 32),
        and their sum ``priors`` (N, K, ~H / 4, ~W / 4), all of them class scores.
        """
        check_images(images)
        features, priors = self.encoder(images)
        prediction: Prediction = self.decoder(features, images.shape[-2:])
        prediction.maps.update({f"prior_{stage}": prior.detach() for stage, prior in priors.items()})
        if priors:
            summed = semantic_decoder(priors, [x.shape[-2:] for x in features])
            prediction.maps["priors"] = summed.detach()
            if self.training and self.auxiliary_weights["priors"]:
                prediction.auxiliary["priors"] = summed
        return prediction

    @property
    def predicts_masks(self) -> bool:
        """See ``Segmenter``."""
        return isinstance(self.decoder, MaskDecoder)

    def loss(
        self, prediction: Prediction, labels: Tensor, whole: LabelCounts | None = None
    ) -> dict[str, Tensor]:
        """See ``Segmenter.loss``. A mask decoder's own terms take the place of the one on the scores."""
        if not isinstance(self.decoder, MaskDecoder):
            return super().loss(prediction, labels, whole)
        terms = self.decoder.loss(prediction, labels, whole)
        if "priors" in prediction.auxiliary:
            scores = upsample(prediction.auxiliary["priors"], labels.shape[-2:])
            loss = self.auxiliary_criterion(scores, labels, whole)
            terms["priors"] = self.auxiliary_weights["priors"] * loss
        return terms

    def released_names(self, key: str) -> str | None:
        """Our name of a tensor in the authors' Semantic FPN checkpoints.

        Empty for the window offsets that their blocks store and timm's compute; ``None`` for a name
        that has no counterpart.
        """
        if key.endswith(".attn.relative_position_index"):
            return ""
        for theirs, ours in _RELEASED_NAMES.items():
            if match := re.match(theirs + r"(?=\.|$)", key):
                following = int(match[1]) + 1 if match.groups() else None
                return ours.format(*match.groups(), following=following) + key[match.end() :]
        return None


def check_options(
    semantic_stages: Sequence[int],
    decoder: str,
    attention: str,
    prior_weight: float,
    guided_upsampling: bool,
    drop_path: float,
) -> None:
    """Raises ``ValueError``, in one line that names the option, for a value outside its range."""
    stages = list(semantic_stages)
    if len(set(stages)) < len(stages) or not set(stages) <= {1, 2, 3, 4}:
        raise ValueError(
            f"semantic_stages is {stages}; expected distinct stages from 1 to 4, as the backbones have 4"
        )
    if decoder not in get_args(DecoderKind):
        raise ValueError(f"decoder is {decoder!r}; expected one of {', '.join(get_args(DecoderKind))}")
    if guided_upsampling and decoder != "fpn":
        raise ValueError(f"guided_upsampling is true with decoder {decoder!r}; expected decoder 'fpn'")
    if attention not in get_args(AttentionKind):
        raise ValueError(f"attention is {attention!r}; expected one of {', '.join(get_args(AttentionKind))}")
    if prior_weight < 0:
        raise ValueError(f"prior_weight is {prior_weight}; expected at least 0")
    if not 0 <= drop_path < 1:
        raise ValueError(f"drop_path is {drop_path}; expected a rate from 0 to below 1")


def semantic_windows(
    attention: AttentionKind, trunk: HierarchicalTransformer, num_classes: int
) -> list[int | None]:
    """For each stage the side of the Semantic Layer's windows, ``None`` for the whole map."""
    deep_is_global = trunk.prefers_global and num_classes > MOST_CLASSES_IN_WINDOWS
    is_global = {
        "auto": [False, False, deep_is_global, deep_is_global],
        "window": [False] * 4,
        "global": [True] * 4,
    }[attention]
    return [None if whole else window for whole, window in zip(is_global, trunk.windows, strict=True)]


def create_decoder(
    name: DecoderKind, trunk: HierarchicalTransformer, num_classes: int, guided_upsampling: bool
) -> nn.Module:
    """Builds a decoder; only the ones of masks cost the time of importing ``transformers``."""
    if name == "fpn":
        return SemanticFPN(trunk.channels, num_classes, trunk.decoder_width, guided_upsampling)
    if name == "maskformer":
        from models.decoders.maskformer import MaskFormer

        return MaskFormer(trunk.channels, num_classes, trunk.decoder_width)
    from models.decoders.mask2former import Mask2Former

    return Mask2Former(
        trunk.channels, num_classes, "plain" if name == "mask2former" else name, trunk.decoder_width
    )


_LAYER = r"backbone\.layers\.(\d)\."
_THEIRS, _OURS = _LAYER + r"semantic_layer\.", "encoder.semantic_layers.{following}."
_SCALE_HEAD = r"decode_head\.scale_heads\.(\d)\.(\d)\."

_RELEASED_NAMES = {
    r"backbone\.patch_embed": "encoder.stages.0.downsample",
    _LAYER + "blocks": "encoder.stages.{0}.blocks",
    # Theirs merges patches at the end of a stage, timm's at the beginning of the next.
    _LAYER + "downsample": "encoder.stages.{following}.downsample",
    # Ours are named by the stage's number, counted from 1.
    _THEIRS + "norm1": _OURS + "norm",
    _THEIRS + r"class_injection\.0\.mlp_cls_q": _OURS + "attention.query",
    _THEIRS + r"class_injection\.0\.mlp_cls_k": _OURS + "attention.key",
    _THEIRS + r"class_injection\.0\.mlp_v": _OURS + "attention.value",
    _THEIRS + r"class_injection\.0\.mlp_res": _OURS + "attention.projection",
    _THEIRS + r"class_injection\.0\.gamma": _OURS + "attention.lambda_",
    r"backbone\.norm(\d)": "encoder.norms.{0}",
    _SCALE_HEAD + "conv": "decoder.scale_heads.{0}.{1}.0",
    _SCALE_HEAD + "bn": "decoder.scale_heads.{0}.{1}.1",
    r"decode_head\.conv_seg": "decoder.classifier",
}
"""Beginnings of the authors' parameter names, and of ours."""

MODEL = SeMaskSegmenter
