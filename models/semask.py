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

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from models import backbones
from models.backbones.hierarchical import HierarchicalTransformer
from models.backbones.mix_transformer import DEPTHS, MixTransformer
from models.backbones.swin import NANO, Swin, is_swin
from models.decoders.mask_classification import MaskDecoder, with_prefix
from models.decoders.semantic_fpn import SemanticFPN
from models.parts.layers import upsample
from models.parts.semantic_layer import SemanticLayer, SemanticStart, semantic_decoder
from models.released import ReleasedFormat
from models.segmenter import IGNORE_LABEL, LabelCounts, Prediction, Segmenter, check_images

BACKBONES = (NANO, *DEPTHS)
"""Backbones that are not timm's: the stand-in and Mix Transformer. Every Swin of timm is valid too."""

AttentionKind = Literal["auto", "window", "global"]
DecoderKind = Literal["fpn", "maskformer", "mask2former", "fapn", "msfapn"]


MOST_CLASSES_IN_WINDOWS = 19
"""With more, the authors' Semantic FPN models of some widths attend over the whole map in deep stages."""
CLASSES_OF_ADE20K = 150
"""The number of classes at which the authors' Mask2Former attends over the whole map in the last stage."""
MASK_DECODER_MULTIPLE = 32
"""What the authors pad the sides of an image to before a decoder of masks sees it."""


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
            stage 1 of a 512 x 512 image that takes 1 GB of scores). ``auto`` is the authors' rule, see
            ``released_windows``. Mix Transformer, which has no windows, takes those of 7 (inferred).
        fixed_lambda: weight of the semantic attention in a Semantic Layer, in place of the one that is
            learned from 0. Fixed at 0, the prior maps are predicted and not fed back.
        semantic_start: ``drawn`` as the authors' Semantic FPN models start, ``zero`` as their other ones
            do. From ``zero``, with a lambda that is learned, neither lambda nor the projection behind the
            attention ever gets a gradient: the attention stays off, as in the released models.
        prior_classes: number of classes of the prior maps; by default K. The authors' COCO-Stuff models
            have 150 beside 171, and the classes beyond do not take part in the priors' loss.
        prior_weight: weight of the loss on the sum of the prior maps; 0 leaves them without
            supervision.
        guided_upsampling: Semantic FPN's scores go to full size by GUN's guided upsampling.
        drop_path: rate of stochastic depth of the backbone's last block, in [0, 1).

    Raises:
        ValueError: a backbone that is not a hierarchical transformer, or an option outside its range.
    """

    training_only = frozenset({"prior_weight", "semantic_start", "drop_path"})
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
        semantic_start: SemanticStart = "drawn",
        prior_classes: int | None = None,
        prior_weight: float = 0.4,
        guided_upsampling: bool = False,
        drop_path: float = 0.3,
    ):
        super().__init__(num_classes, {"priors": prior_weight})
        check_options(semantic_stages, decoder, attention, prior_weight, guided_upsampling, drop_path)
        if semantic_start not in get_args(SemanticStart):
            raise ValueError(
                f"semantic_start is {semantic_start!r}; expected one of {', '.join(get_args(SemanticStart))}"
            )
        if prior_classes is not None and prior_classes < 1:
            raise ValueError(f"prior_classes is {prior_classes}; expected at least 1, or none for K")
        self.check_backbone(backbone)
        transformer = MixTransformer if backbone in DEPTHS else Swin
        trunk: HierarchicalTransformer = transformer(backbone, pretrained, drop_path)
        self.prior_classes = num_classes if prior_classes is None else prior_classes
        windows = semantic_windows(attention, decoder, trunk, self.prior_classes)
        layers = [
            SemanticLayer(channels, self.prior_classes, window, fixed_lambda, semantic_start)
            if stage in semantic_stages
            else None
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
        """See ``Segmenter``. Where the authors' rule is attention within windows everywhere, it is that."""
        settled = super().settled_options(num_classes, **options)
        settled["semantic_stages"] = sorted(settled["semantic_stages"])
        settled["prior_classes"] = settled["prior_classes"] or num_classes
        if settled["attention"] == "auto" and not any(
            released_windows(settled["decoder"], True, settled["prior_classes"])
        ):
            settled["attention"] = "window"
        silent = set()
        if not settled["semantic_stages"]:
            silent |= {"attention", "fixed_lambda", "semantic_start", "prior_classes", "prior_weight"}
        return {name: value for name, value in settled.items() if name not in silent}

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width.

        The maps are each stage's prior, ``prior_1`` to ``prior_4`` (N, K, ~H / 4 .. 32, ~W / 4 .. 32),
        and their sum ``priors`` (N, K, ~H / 4, ~W / 4), all of them class scores. With a decoder of masks
        ``auxiliary`` covers the image with its padding, at the right and bottom, to multiples of 32.
        """
        check_images(images)
        height, width = images.shape[-2:]
        images = self.padded(images)
        features, priors = self.encoder(images)
        prediction: Prediction = self.decoder(features, images.shape[-2:])
        prediction.logits = prediction.logits[..., :height, :width]
        maps = {f"prior_{stage}": prior for stage, prior in priors.items()}
        if priors:
            maps["priors"] = semantic_decoder(priors, [x.shape[-2:] for x in features])
            if self.training and self.auxiliary_weights["priors"]:
                prediction.auxiliary["priors"] = maps["priors"]
        for name, prior in maps.items():
            stride = 4 if name == "priors" else 2 ** (int(name[-1]) + 1)
            prediction.maps[name] = prior.detach()[..., : -(-height // stride), : -(-width // stride)]
        return prediction

    @property
    def predicts_masks(self) -> bool:
        """See ``Segmenter``."""
        return isinstance(self.decoder, MaskDecoder)

    def padded(self, x: Tensor, value: float = 0) -> Tensor:
        """Images or labels (.., H, W), filled up at the right and bottom to a size that the decoder takes."""
        if not self.predicts_masks:
            return x
        right, bottom = (-side % MASK_DECODER_MULTIPLE for side in (x.shape[-1], x.shape[-2]))
        return F.pad(x, (0, right, 0, bottom), value=value) if right or bottom else x

    def loss(
        self, prediction: Prediction, labels: Tensor, whole: LabelCounts | None = None
    ) -> dict[str, Tensor]:
        """See ``Segmenter.loss``. A mask decoder's own terms take the place of the one on the scores.

        Their weights are the authors', which normalise the masks' losses by the number of masks; the priors,
        which the authors' decoders of masks upsample with aligned corners, never align them here.
        """
        terms = {}
        if "priors" in prediction.auxiliary:
            loss = self._prior_loss(prediction.auxiliary["priors"], labels, whole)
            terms["priors"] = self.auxiliary_weights["priors"] * loss
        if isinstance(self.decoder, MaskDecoder):
            return self.decoder.loss(prediction, self.padded(labels, IGNORE_LABEL), whole) | terms
        scores_only = Prediction(prediction.logits, maps=prediction.maps)
        return super().loss(scores_only, labels, whole) | terms

    def _prior_loss(self, priors: Tensor, labels: Tensor, whole: LabelCounts | None) -> Tensor:
        """Of classes that the priors do not have, the pixels count as ignored ones."""
        seen = self.padded(labels.masked_fill(labels >= self.prior_classes, IGNORE_LABEL), IGNORE_LABEL)
        if whole is not None:
            whole = replace(whole, of_class=whole.of_class[: self.prior_classes])
        return self.auxiliary_criterion(upsample(priors, seen.shape[-2:]), seen, whole)

    def released_format(self) -> ReleasedFormat:
        """See ``Segmenter``. Semantic FPN's are those of mmsegmentation, the others those of detectron2."""
        decoder: Any = self.decoder
        beyond = int(isinstance(decoder, MaskDecoder))
        return ReleasedFormat(
            _ENCODER_NAMES | with_prefix("", "decoder.", decoder.released_names()),
            class_options={
                r"^encoder\.semantic_layers\.\d\.attention\.(query|key)\.": ("prior_classes", 0),
                r"^decoder\.(classifier|criterion)\.": ("num_classes", beyond),
            },
        )


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


def released_windows(decoder: DecoderKind, prefers_global: bool, prior_classes: int) -> list[bool]:
    """For each stage whether the authors' Semantic Layer attends over the whole map, not within windows.

    Read in the four code bases of their repository: with Semantic FPN in stages 3 and 4 where the backbone is
    Swin-T, S or L and there are more than 19 classes; with MaskFormer in stage 4; with Mask2Former in stage 4
    if there are 150 classes; with FaPN and MSFaPN in stages 3 and 4.
    """
    first = {
        "fpn": 3 if prefers_global and prior_classes > MOST_CLASSES_IN_WINDOWS else 5,
        "maskformer": 4,
        "mask2former": 4 if prior_classes == CLASSES_OF_ADE20K else 5,
        "fapn": 3,
        "msfapn": 3,
    }[decoder]
    return [stage >= first for stage in (1, 2, 3, 4)]


def semantic_windows(
    attention: AttentionKind, decoder: DecoderKind, trunk: HierarchicalTransformer, prior_classes: int
) -> list[int | None]:
    """For each stage the side of the Semantic Layer's windows, ``None`` for the whole map."""
    is_global = {
        "auto": released_windows(decoder, trunk.prefers_global, prior_classes),
        "window": [False] * 4,
        "global": [True] * 4,
    }[attention]
    return [None if whole else window for whole, window in zip(is_global, trunk.windows, strict=True)]


def create_decoder(
    name: DecoderKind, trunk: HierarchicalTransformer, num_classes: int, guided_upsampling: bool
) -> nn.Module:
    """Builds a decoder; only the ones of masks cost the time of importing ``transformers``."""
    if name == "fpn":
        return SemanticFPN(trunk.channels, num_classes, trunk.decoder_size.width, guided_upsampling)
    if name == "maskformer":
        from models.decoders.maskformer import MaskFormer

        return MaskFormer(trunk.channels, num_classes, *trunk.decoder_size)
    from models.decoders.mask2former import Mask2Former, PixelDecoderKind

    pixel_decoder: PixelDecoderKind = "plain" if name == "mask2former" else name
    return Mask2Former(trunk.channels, num_classes, pixel_decoder, *trunk.decoder_size)


_LAYER = r"backbone\.layers\.(\d)\."
_THEIRS, _OURS = _LAYER + r"semantic_layer\.", "encoder.semantic_layers.{next_0}."

_ENCODER_NAMES: dict[str, str | Sequence[str]] = {
    # What their blocks store and timm's compute.
    _LAYER + r"blocks\.(\d+)\.attn\.relative_position_index": (),
    r"backbone\.patch_embed": "encoder.stages.0.downsample",
    _LAYER + "blocks": "encoder.stages.{0}.blocks",
    # Theirs merges patches at the end of a stage, timm's at the beginning of the next.
    _LAYER + "downsample": "encoder.stages.{next_0}.downsample",
    # Ours are named by the stage's number, counted from 1.
    _THEIRS + "norm1": _OURS + "norm",
    _THEIRS + r"class_injection\.0\.mlp_cls_q": _OURS + "attention.query",
    _THEIRS + r"class_injection\.0\.mlp_cls_k": _OURS + "attention.key",
    _THEIRS + r"class_injection\.0\.mlp_v": _OURS + "attention.value",
    _THEIRS + r"class_injection\.0\.mlp_res": _OURS + "attention.projection",
    _THEIRS + r"class_injection\.0\.gamma": _OURS + "attention.lambda_",
    r"backbone\.norm(\d)": "encoder.norms.{0}",
}
"""Beginnings of the authors' parameter names, as regular expressions, and of ours."""

MODEL = SeMaskSegmenter
