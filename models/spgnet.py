"""SPGNet: Semantic Prediction Guidance for Scene Parsing (Cheng et al., ICCV 2019, arXiv 1908.09798).

Encoder-decoder stages in a row. Between two stages, Semantic Prediction Guidance turns the earlier
stage's supervised class scores into a mask over that stage's features, and the features so re-weighted
are the later stage's input. Cross Stage Feature Aggregation feeds the later encoder at every resolution.

Stated by the sources: ResNet encoders, light upsample modules (bilinear by two, ResNet's residual block),
a mask per pixel and channel by a 1x1 convolution on the scores, sigmoid, identity path and supervision as
the best choice, losses on final and intermediate scores, and the size of two ResNet-50 stages: 59.8 M
parameters, 654.8 G multiply-accumulates.

Inferred: encoders are not dilated (output stride 32). One width, that of the encoder's feature at 1/4 (256
for bottleneck ResNets, 64 for ResNet-18 and -34), serves the whole decoder. Four upsample modules, the first
of which takes the globally pooled feature to 1/32, add a 1x1 lateral and refine with one residual block of
the encoder's kind, a bottleneck having half the width inside. A 3x3 convolution ends the decoder. A later
stage has no stem: a 1x1 convolution takes the guided feature to the stem's width. Aggregation adds a 1x1
convolution (norm, ReLU) of the previous encoder's and of the previous decoder's feature at each of four
resolutions, as in the pose network that it comes from (Li et al., arXiv 1901.00148).

Counted for 19 classes at 1024 x 2048, this is 59.52 M parameters (0.5 % under the published number) and
652.9 G multiply-accumulates (0.3 % under). No neighbour stays within 1 % and 2 %: without the 3x3 -2.4 and
-23.9 %, without the residual block at 1/32 -1.2 and -0.4 %, a quarter of the width inside the bottlenecks
-2.4 and -7.9 %, basic blocks +12 and +51 %, half the width -7.5 and -31 %, aggregation of encoder features
only -2.1 and -2.8 %, of decoder features only -9.8 and -5.5 %.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from models import backbones
from models.parts.checkpointing import run_checkpointed
from models.parts.layers import ConvNormAct, upsample
from models.parts.semantic_guidance import (
    GATHER_EXTENT,
    Excitation,
    Guidance,
    PooledGuidance,
    SemanticPredictionGuidance,
)
from models.segmenter import Prediction, Segmenter, check_images

ReweightingKind = Literal["spg", "se", "ge", "none"]

MAX_STAGES = 4
LEVELS = ["layer1", "layer2", "layer3", "layer4"]
INTERMEDIATE_WEIGHT = 1.0
"""Weight of the loss on each intermediate stage's scores. Inferred: the sources name the losses only."""


class SPGNet(Segmenter):
    """Two encoder-decoder stages joined by Semantic Prediction Guidance.

    Any height and width works, down to one pixel in evaluation mode; in training, batch norm needs more
    than one value per channel at 1/32 (a batch of one has to be larger than 32 pixels on a side).

    ``Prediction.auxiliary`` holds the supervised scores of the intermediate stages, ``stage1``, ...,
    (N, K, H/4, W/4). ``Prediction.maps`` holds, detached and at 1/4 of the input:

    - ``stage<i>_prediction`` (N, K, H/4, W/4): class scores of every stage that predicts.
    - ``stage<i>_guided_attention`` (N, C, H/4, W/4): the mask between stage i and the next.
    - ``stage<i>_guided_attention_per_class`` (N, K, H/4, W/4): the same, reduced to what each class
      excites (``SemanticPredictionGuidance.per_class``); only for ``reweighting="spg"``.

    Args:
        num_classes: K, at least 1.
        backbone: encoder of every stage, any ResNet of timm with residual levels at strides 4, 8, 16, 32.
        pretrained: see ``models.create``; every stage's encoder starts from these weights.
        stages: 1 to 4. With one stage, the options between stages have no effect.
        reweighting: what re-weights a stage's features for the next: Semantic Prediction Guidance,
            Squeeze-and-Excite, Gather-and-Excite, or nothing.
        excitation: last function of the mask. ``softmax`` is over channels.
        identity: features F and mask M give F + F * M (true) or F * M (false).
        supervision: whether intermediate stages' scores have a loss of their own. A stage whose scores
            neither have a loss nor guide anything has no classifier.
        cross_stage_aggregation: whether a stage's encoder also sees the previous stage's features.
        decoder_width: channels of decoder and stage output, at least 2. Defaults to the encoder's
            channels at 1/4 (see the module's docstring).
        checkpoint: recompute activations in the backward pass: the same gradients for less memory and
            one more forward pass. Two ResNet-50 stages at 769 x 769, one image, float32, 19 classes need
            3.36 GiB for weights, gradients and activations, and 1.14 GiB with it (counted, no workspace).

    Raises:
        ValueError: a value outside these ranges, or an encoder without the four levels.
    """

    training_only = frozenset({"checkpoint"})

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "resnet50",
        pretrained: bool | str = False,
        stages: int = 2,
        reweighting: ReweightingKind = "spg",
        excitation: Excitation = "sigmoid",
        identity: bool = True,
        supervision: bool = True,
        cross_stage_aggregation: bool = True,
        decoder_width: int | None = None,
        checkpoint: bool = False,
    ):
        _check_options(stages, reweighting, excitation, decoder_width)
        supervised = [f"stage{number}" for number in range(1, stages)] if supervision else []
        super().__init__(num_classes, dict.fromkeys(supervised, INTERMEDIATE_WEIGHT))
        self.stages = nn.ModuleList()
        self.guidance = nn.ModuleList()
        width = decoder_width
        for number in range(1, stages + 1):
            first, last = number == 1, number == stages
            encoder = Encoder(
                backbone,
                pretrained,
                in_channels=None if first else width,
                aggregation=cross_stage_aggregation and not first,
                checkpoint=checkpoint,
            )
            width = width or encoder.channels[0]
            decoder = Decoder(encoder.channels, width, encoder.bottleneck, checkpoint)
            predicts = last or supervision or reweighting == "spg"
            self.stages.append(Stage(encoder, decoder, num_classes if predicts else None))
            if last or reweighting == "none":
                continue
            if reweighting == "spg":
                guidance: Guidance = SemanticPredictionGuidance(num_classes, width, excitation, identity)
            else:
                extent = GATHER_EXTENT if reweighting == "ge" else None
                guidance = PooledGuidance(width, excitation, identity, extent)
            self.guidance.append(guidance)

    @classmethod
    def settled_options(cls, num_classes: int, **options: Any) -> dict[str, Any]:
        """See ``Segmenter``. One stage has nothing between stages; without a mask nothing is excited."""
        settled = super().settled_options(num_classes, **options)
        silent = set()
        if settled["stages"] == 1:
            silent |= {"reweighting", "excitation", "identity", "supervision", "cross_stage_aggregation"}
        elif settled["reweighting"] == "none":
            silent |= {"excitation", "identity"}
        return {name: value for name, value in settled.items() if name not in silent}

    def forward(self, images: Tensor) -> Prediction:
        """Images (N, 3, H, W) to class scores; see the class for ``auxiliary`` and ``maps``."""
        check_images(images)
        auxiliary: dict[str, Tensor] = {}
        maps: dict[str, Tensor] = {}
        x = images
        features: StageFeatures | None = None
        for number, stage in enumerate(self.stages, start=1):
            features, logits = stage(x, features)
            x = features.output
            name = f"stage{number}"
            if logits is not None:
                maps[f"{name}_prediction"] = logits.detach()
            if self.training and name in self.auxiliary_weights:
                auxiliary[name] = logits
            if number <= len(self.guidance):
                guidance = self.guidance[number - 1]
                x, mask = guidance(x, logits)
                maps[f"{name}_guided_attention"] = mask.detach()
                if isinstance(guidance, SemanticPredictionGuidance):
                    maps[f"{name}_guided_attention_per_class"] = guidance.per_class(mask)
        return Prediction(upsample(logits, images.shape[-2:]), auxiliary, maps)


class StageFeatures(NamedTuple):
    """What a stage hands to the next."""

    encoder: list[Tensor]
    """(N, channels[i], H/4, W/4) to (N, channels[i], H/32, W/32)."""
    decoder: list[Tensor]
    """(N, width, H/4, W/4) to (N, width, H/32, W/32), one from each upsample module."""
    output: Tensor
    """(N, width, H/4, W/4), where the decoder ends."""


class Stage(nn.Module):
    """Encoder, decoder and, where ``num_classes`` is given, a 1x1 classifier (figure 2a)."""

    def __init__(self, encoder: Encoder, decoder: Decoder, num_classes: int | None):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.classifier = nn.Conv2d(decoder.width, num_classes, 1) if num_classes else None

    def forward(self, x: Tensor, previous: StageFeatures | None) -> tuple[StageFeatures, Tensor | None]:
        """Stage input and the previous stage's features to this stage's features and class scores."""
        encoded = self.encoder(x, previous)
        decoded, output = self.decoder(encoded)
        logits = self.classifier(output) if self.classifier is not None else None
        return StageFeatures(encoded, decoded, output), logits


class Encoder(nn.Module):
    """A timm ResNet's residual levels behind an entry, with cross-stage aggregation in later stages.

    Args:
        backbone: name of a timm ResNet.
        pretrained: its weights, see ``models.create``.
        in_channels: channels of the previous stage's output (N, in_channels, H/4, W/4), which enters
            through a 1x1 convolution; ``None`` for the first stage, which takes images through the stem.
        aggregation: add the previous stage's features at every level.
        checkpoint: recompute activations in the backward pass.
    """

    channels: list[int]
    """Channels of the features at 1/4, 1/8, 1/16, 1/32."""
    bottleneck: bool
    """Whether the residual blocks are bottlenecks rather than basic ones."""

    def __init__(
        self,
        backbone: str,
        pretrained: bool | str,
        in_channels: int | None,
        aggregation: bool,
        checkpoint: bool,
    ):
        super().__init__()
        resnet = backbones.create(backbone, pretrained=pretrained)
        trunk: Any = resnet.trunk if isinstance(resnet, backbones.TimmBackbone) else nn.Module()
        parts = dict(trunk.named_children())
        if not parts.keys() >= set(LEVELS) or resnet.strides != [4, 8, 16, 32]:
            raise ValueError(
                f"backbone is {backbone!r}; expected a ResNet of timm, "
                f"with {LEVELS[0]} to {LEVELS[-1]} at strides 4, 8, 16, 32"
            )
        self.channels = resnet.channels
        self.bottleneck = parts[LEVELS[0]][0].expansion > 1
        self.entry: nn.Module = (
            nn.Sequential(*(part for name, part in parts.items() if name not in LEVELS))
            if in_channels is None
            else ConvNormAct(in_channels, trunk.feature_info.channels(0), kernel_size=1)
        )
        self.levels = nn.ModuleList(parts[level] for level in LEVELS)
        self.aggregation = (
            nn.ModuleList(CrossStageAggregation(width, in_channels) for width in self.channels)
            if aggregation and in_channels is not None
            else None
        )
        self.checkpoint = checkpoint

    def forward(self, x: Tensor, previous: StageFeatures | None) -> list[Tensor]:
        """Stage input to features at 1/4, 1/8, 1/16 and 1/32 of the image."""
        x = run_checkpointed(self.entry, x, checkpoint=self.checkpoint)
        features: list[Tensor] = []
        for i, level in enumerate(self.levels):
            x = run_checkpointed(level, x, checkpoint=self.checkpoint)
            if self.aggregation is not None and previous is not None:
                inputs = x, previous.encoder[i], previous.decoder[i]
                x = run_checkpointed(self.aggregation[i], *inputs, checkpoint=self.checkpoint)
            features.append(x)
        return features


class CrossStageAggregation(nn.Module):
    """Adds the previous stage's features at one resolution to the encoder's (figure 2c).

    Args:
        channels: of both encoders' features.
        decoder_width: channels of the previous decoder's feature.
    """

    def __init__(self, channels: int, decoder_width: int):
        super().__init__()
        self.from_encoder = ConvNormAct(channels, channels, kernel_size=1)
        self.from_decoder = ConvNormAct(decoder_width, channels, kernel_size=1)

    def forward(self, x: Tensor, encoded: Tensor, decoded: Tensor) -> Tensor:
        """Three features of one height and width to (N, channels, h, w)."""
        aggregated: Tensor = x + self.from_encoder(encoded) + self.from_decoder(decoded)
        return aggregated


class Decoder(nn.Module):
    """Upsample modules from the globally pooled feature up to 1/4, then a 3x3 convolution.

    Args:
        channels: of the encoder's features, shallow to deep.
        width: of every feature in the decoder.
        bottleneck: kind of the residual blocks.
        checkpoint: recompute activations in the backward pass.
    """

    def __init__(self, channels: list[int], width: int, bottleneck: bool, checkpoint: bool):
        super().__init__()
        self.width = width
        # No batch norm on a single pixel: its statistics would be over the batch alone.
        self.context = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels[-1], width, 1), nn.ReLU())
        self.upsample = nn.ModuleList(UpsampleModule(c, width, bottleneck) for c in channels)
        self.output = ConvNormAct(width, width, kernel_size=3)
        self.checkpoint = checkpoint

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Encoder features, shallow to deep, to decoder features likewise and the output at 1/4."""
        x = self.context(features[-1])
        decoded: list[Tensor] = []
        for feature, module in zip(reversed(features), reversed(self.upsample), strict=True):
            x = run_checkpointed(module, x, feature, checkpoint=self.checkpoint)
            decoded.append(x)
        return decoded[::-1], run_checkpointed(self.output, x, checkpoint=self.checkpoint)


class UpsampleModule(nn.Module):
    """Joins a coarser decoder feature with the encoder's finer one and refines the sum (figure 2b).

    Args:
        channels: of the encoder's feature.
        width: of the decoder's features.
        bottleneck: kind of the residual block.
    """

    def __init__(self, channels: int, width: int, bottleneck: bool):
        super().__init__()
        self.lateral = ConvNormAct(channels, width, kernel_size=1, activation=None)
        self.refine = ResidualBlock(width, bottleneck)

    def forward(self, coarse: Tensor, feature: Tensor) -> Tensor:
        """Decoder feature (N, width, h, w) and encoder feature (N, channels, H, W) to (N, width, H, W)."""
        joined = F.relu(self.lateral(feature) + upsample(coarse, feature.shape[-2:]))
        refined: Tensor = self.refine(joined)
        return refined


class ResidualBlock(nn.Module):
    """ResNet's block at constant width: a bottleneck of half the width, or two 3x3 convolutions."""

    def __init__(self, width: int, bottleneck: bool):
        super().__init__()
        if bottleneck:
            inner = width // 2
            first = [ConvNormAct(width, inner, 1), ConvNormAct(inner, inner, 3)]
            last = ConvNormAct(inner, width, 1, activation=None)
        else:
            first = [ConvNormAct(width, width, 3)]
            last = ConvNormAct(width, width, 3, activation=None)
        self.residual = nn.Sequential(*first, last)

    def forward(self, x: Tensor) -> Tensor:
        """(N, width, H, W) to the same shape."""
        return F.relu(x + self.residual(x))


def _check_options(stages: int, reweighting: str, excitation: str, decoder_width: int | None) -> None:
    """Raises ``ValueError`` for what the options' types cannot express."""
    if not 1 <= stages <= MAX_STAGES:
        raise ValueError(f"stages is {stages}; expected 1 to {MAX_STAGES}")
    choices = {"reweighting": (reweighting, ReweightingKind), "excitation": (excitation, Excitation)}
    for name, (value, choice) in choices.items():
        if value not in get_args(choice):
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(get_args(choice))}")
    if decoder_width is not None and decoder_width < 2:
        raise ValueError(f"decoder_width is {decoder_width}; expected at least 2 channels")


MODEL = SPGNet
