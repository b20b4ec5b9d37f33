"""GUN: Guided Upsampling Network (Mazzini, BMVC 2018).

A multi-resolution encoder sees the image twice: at low resolution through the whole backbone, for
context, and at medium resolution through its early stages only, for detail. The two are fused into
class scores at an eighth of the image, and a Guided Upsampling Module brings these to full size in
one step, sampling them where predicted offsets point instead of on a regular grid.

Stated by the sources: two branches with shared weights, the offset table, and the names of three
Guidance Modules. Inferred: what each Guidance Module sees, which stages and widths (the docstrings below
say which). The authors released no code.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones import drn
from models.parts.layers import ConvNormAct, upsample
from models.parts.sampling import GuidedUpsampling, SamplingMode
from models.segmenter import OFFSETS, SCORES, Prediction, Segmenter, check_images

EncoderKind = Literal["multi-shared", "multi-unshared", "single-low", "single-medium"]
NormStatistics = Literal["apart", "together"]
FusionKind = Literal["sum", "concat"]
GuidanceKind = Literal["none", "large-rf", "high-res", "fusion"]

EARLY, MIDDLE, DEEP = 0, 2, 4
"""Feature levels of a DRN: before the second stride, before dilation, and its end."""
BRANCH_RATIOS = (2, 4, 8)
"""Divisors of the medium branch's stride: its grid and the low branch's nest."""


class GUN(Segmenter):
    """Guided Upsampling Network.

    Args:
        num_classes: K, at least 1.
        backbone: a name of ``drn.NAMES``. Other backbones have no early stages at the stride of the
            whole, which is what lets the two branches share their weights.
        pretrained: ImageNet weights from the authors' site (``True``) or from a local file (its path).
        encoder: ``multi-shared`` and ``multi-unshared`` have both branches, with one set of weights
            or two; ``single-low`` and ``single-medium`` send one resolution through the whole backbone.
        branch_ratio: how many times smaller the low branch's image is: 2, 4 or 8.
        norm_statistics: whether the two branches of ``multi-shared`` keep their batch norm statistics
            ``apart`` or ``together`` (see ``MultiResolutionEncoder``).
        fusion: how the branches are joined.
        auxiliary_weight: weight of the loss on the low branch's own classifier; 0 leaves it out. An
            encoder of one branch has none, as the loss reaches it directly.
        guidance: what the offsets are predicted from; ``none`` is plain bilinear upsampling.
        sampling: form of the guided upsampling in evaluation mode. Training uses ``bilinear``.

    Raises:
        ValueError: an option outside its range, in one line that names it.

    ``Prediction.auxiliary`` has ``low`` (N, K, H/16, W/16) in training. With guidance,
    ``Prediction.maps`` has ``offsets``, the Guidance Offset Table (N, 2, H, W) in pixels of the
    output, x before y: where each pixel took its scores from, relative to its own place; and
    ``scores`` (N, K, H/8, W/8), the class scores that it was taken from.
    """

    inference_only = frozenset({"sampling"})

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "drn_d_22",
        pretrained: bool | str = False,
        encoder: EncoderKind = "multi-shared",
        branch_ratio: int = 2,
        norm_statistics: NormStatistics = "apart",
        fusion: FusionKind = "sum",
        auxiliary_weight: float = 0.4,
        guidance: GuidanceKind = "fusion",
        sampling: SamplingMode = "bilinear",
    ):
        _check_options(
            backbone, encoder, branch_ratio, norm_statistics, fusion, auxiliary_weight, guidance, sampling
        )
        super().__init__(num_classes, {"low": auxiliary_weight})
        self.encoder = MultiResolutionEncoder(
            backbone, encoder, ratio=branch_ratio, norm_statistics=norm_statistics, pretrained=pretrained
        )
        width = self.encoder.middle_channels
        self.fusion = FusionModule(self.encoder.channels, width, fusion)
        self.classifier = nn.Conv2d(width, num_classes, kernel_size=1)
        self.auxiliary_classifier: nn.Module | None = None
        if auxiliary_weight > 0 and len(self.encoder.channels) > 1:
            self.auxiliary_classifier = nn.Conv2d(self.encoder.channels[0], num_classes, kernel_size=1)
        self.guidance: GuidanceModule | None = None
        if guidance != "none":
            self.guidance = _GUIDANCE_MODULES[guidance](width, self.encoder.early_channels)
            self.upsampling = GuidedUpsampling(self.guidance.channels, sampling=sampling)

    @classmethod
    def settled_options(cls, num_classes: int, **options: Any) -> dict[str, Any]:
        """See ``Segmenter``. One branch has neither a ratio to another, nor something to join with it."""
        settled = super().settled_options(num_classes, **options)
        silent = set()
        if not settled["encoder"].startswith("multi"):
            silent |= {"fusion", "auxiliary_weight"}
        if settled["encoder"] == "single-medium":
            silent.add("branch_ratio")
        if settled["encoder"] != "multi-shared":
            silent.add("norm_statistics")
        if settled["guidance"] == "none":
            silent.add("sampling")
        return {name: value for name, value in settled.items() if name not in silent}

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        size = images.shape[-2:]
        branches, early = self.encoder(images)
        fused = self.fusion(branches)
        scores = self.classifier(fused)
        prediction = Prediction(scores)
        if self.guidance is None:
            prediction.logits = upsample(scores, size)
        else:
            guidance = self.guidance(fused, early)
            prediction.maps[SCORES] = scores.detach()
            prediction.logits, offsets = self.upsampling(scores, guidance, size)
            prediction.maps[OFFSETS] = offsets.detach()
        if self.training and self.auxiliary_classifier is not None:
            prediction.auxiliary["low"] = self.auxiliary_classifier(branches[0])
        return prediction


class MultiResolutionEncoder(nn.Module):
    """One or two resolutions of the image through a dilated residual network.

    The low branch runs the whole network on the image shrunk by ``ratio``, the medium branch its
    stages up to an eighth of the image (inferred: layer0 to layer4, the undilated ones).

    With shared weights, batch norm in training takes each branch's own batch, whatever this class
    does. In evaluation it takes running statistics, which can be mixed over the branches
    (``together``) or kept ``apart``. Apart is the default: it is the same normalisation as in
    training, which the mixture is for neither branch, and it costs buffers but no parameters. Sharing
    one module between the branches, the plainest reading of the paper, is ``together``.

    Args:
        backbone: a name of ``drn.NAMES``.
        kind: which branches, and whether two share their weights.
        ratio: how many times smaller the low branch's image is.
        norm_statistics: ``apart`` or ``together``, for ``multi-shared``.
        pretrained: as for ``drn.DRN``, for every branch.

    Attributes:
        channels: of the branches' features, low before medium.
        middle_channels: of the backbone where the medium branch ends.
        early_channels: of the early feature.
    """

    def __init__(
        self,
        backbone: str,
        kind: EncoderKind,
        *,
        ratio: int = 2,
        norm_statistics: NormStatistics = "apart",
        pretrained: bool | str = False,
    ):
        super().__init__()
        self.ratio = 1 if kind == "single-medium" else ratio
        self.trunk = drn.DRN(backbone, (EARLY, MIDDLE, DEEP), pretrained)
        self.early_channels, self.middle_channels, deep_channels = self.trunk.channels
        self.channels = [deep_channels]
        self.two_branches = kind.startswith("multi")
        if self.two_branches:
            self.channels.append(self.middle_channels)
        self.medium: nn.Module | None = None
        if kind == "multi-unshared":
            self.medium = drn.DRN(backbone, (EARLY, MIDDLE), pretrained)
        elif kind == "multi-shared" and norm_statistics == "apart":
            stages = {stage for level in drn.LEVELS[: MIDDLE + 1] for stage in level}
            for name, module in list(self.trunk.named_modules()):
                if isinstance(module, nn.BatchNorm2d) and name.partition(".")[0] in stages:
                    self.trunk.set_submodule(name, BranchNorm(module))

    def forward(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of images (N, 3, H, W).

        Returns:
            The branches' features, low before medium, of strides 8 * ratio and 8, and the early
            feature of the finer branch, at four times that branch's resolution.
        """
        low_images = images
        if self.ratio > 1:
            low_size = [-(-side // self.ratio) for side in images.shape[-2:]]
            low_images = F.interpolate(images, low_size, mode="area")
        if not self.two_branches:
            early, deep = self.trunk(low_images, (EARLY, DEEP))
            return [deep], early
        self._select_statistics(medium=False)
        (deep,) = self.trunk(low_images, (DEEP,))
        self._select_statistics(medium=True)
        early, middle = self.trunk(images, (EARLY, MIDDLE)) if self.medium is None else self.medium(images)
        return [deep, middle], early

    def _select_statistics(self, *, medium: bool) -> None:
        for module in self.trunk.modules():
            if isinstance(module, BranchNorm):
                module.medium = medium


class BranchNorm(nn.Module):
    """Batch norm that two branches share, with running statistics for each of them.

    Args:
        norm: the batch norm that normalises, whose own statistics are the low branch's. It stays a
            module of its own, so that what converts or synchronises batch norms finds it.
    """

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__()
        self.norm = norm
        state = norm.state_dict()
        self.medium_mean = nn.Buffer(state["running_mean"].clone())
        self.medium_var = nn.Buffer(state["running_var"].clone())
        self.medium = False
        """Whether the next call is the medium branch's."""

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        low = norm.running_mean, norm.running_var
        if self.medium:
            norm.running_mean, norm.running_var = self.medium_mean, self.medium_var
        normalised: Tensor = norm(x)
        norm.running_mean, norm.running_var = low
        return normalised


class FusionModule(nn.Module):
    """Joins the branches' features at the finest branch's size and refines the result.

    Inferred: a 1 x 1 convolution with batch norm brings each branch to the same width, before
    upsampling, with which it commutes and where it costs a quarter; a 3 x 3 convolution refines. A
    branch alone passes through the same layers.

    Args:
        in_channels: channels of each branch, coarse to fine.
        width: channels of a branch when they are joined, and of the result.
        kind: ``sum`` or ``concat``.
    """

    def __init__(self, in_channels: Sequence[int], width: int, kind: FusionKind):
        super().__init__()
        self.kind = kind
        self.project = nn.ModuleList(
            ConvNormAct(channels, width, kernel_size=1, activation=None) for channels in in_channels
        )
        joined = width * len(in_channels) if kind == "concat" else width
        self.refine = ConvNormAct(joined, width)

    def forward(self, branches: Sequence[Tensor]) -> Tensor:
        """Features (N, in_channels[i], h_i, w_i), coarse to fine, to (N, width, h, w) of the finest."""
        size = branches[-1].shape[-2:]
        projected = [
            upsample(project(branch), size) for project, branch in zip(self.project, branches, strict=True)
        ]
        joined = torch.cat(projected, dim=1) if self.kind == "concat" else reduce(torch.add, projected)
        refined: Tensor = self.refine(F.relu(joined))
        return refined


class GuidanceModule(nn.Module):
    """Makes the feature from which ``GuidedUpsampling`` predicts the offsets."""

    channels: int
    """Channels of the guidance feature."""

    def forward(self, deep: Tensor, early: Tensor) -> Tensor:
        """Guidance (N, channels, any height and width).

        Args:
            deep: the fused feature (N, deep_channels, h, w).
            early: the early feature (N, early_channels, ~4h, ~4w).
        """
        raise NotImplementedError


class LargeReceptiveField(GuidanceModule):
    """``large-rf``: from the deep feature, which sees far but has lost detail.

    Inferred, as is all of it but the name: upsampled by three transposed convolutions of stride 2, each of
    which halves the channels. The most expensive of the three designs.
    """

    def __init__(self, deep_channels: int, early_channels: int):  # noqa: ARG002
        super().__init__()
        widths = [max(deep_channels >> halvings, 1) for halvings in range(4)]
        self.channels = widths[-1]
        self.doublings = nn.ModuleList(_double_size(*pair) for pair in pairwise(widths))

    def forward(self, deep: Tensor, early: Tensor) -> Tensor:
        for double in self.doublings[:2]:
            deep = double(deep)
        # An odd side was rounded up on its way down, so the doubled map reaches beyond the image.
        height, width = early.shape[-2:]
        guidance: Tensor = self.doublings[2](deep[..., :height, :width])
        return guidance


class HighResolution(GuidanceModule):
    """``high-res``: the early feature as it is, which has detail but sees little.

    Inferred: nothing but the 1 x 1 convolution of ``GuidedUpsampling`` follows.
    """

    def __init__(self, deep_channels: int, early_channels: int):  # noqa: ARG002
        super().__init__()
        self.channels = early_channels

    def forward(self, deep: Tensor, early: Tensor) -> Tensor:  # noqa: ARG002
        return early


class GuidanceFusion(GuidanceModule):
    """``fusion``: from both the deep and the early feature.

    Inferred: a 1 x 1 convolution with batch norm brings each to the early feature's width; the deep
    one is upsampled bilinearly and they are added.
    """

    def __init__(self, deep_channels: int, early_channels: int):
        super().__init__()
        self.channels = early_channels
        self.deep = ConvNormAct(deep_channels, early_channels, kernel_size=1, activation=None)
        self.early = ConvNormAct(early_channels, early_channels, kernel_size=1, activation=None)

    def forward(self, deep: Tensor, early: Tensor) -> Tensor:
        return F.relu(self.early(early) + upsample(self.deep(deep), early.shape[-2:]))


_GUIDANCE_MODULES: dict[str, type[LargeReceptiveField | HighResolution | GuidanceFusion]] = {
    "large-rf": LargeReceptiveField,
    "high-res": HighResolution,
    "fusion": GuidanceFusion,
}


def _double_size(in_channels: int, out_channels: int) -> nn.Module:
    """(N, in_channels, h, w) to (N, out_channels, 2h, 2w)."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, kernel_size=4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def _check_options(
    backbone: str,
    encoder: str,
    branch_ratio: int,
    norm_statistics: str,
    fusion: str,
    auxiliary_weight: float,
    guidance: str,
    sampling: str,
) -> None:
    """Raises ``ValueError``, in one line that names the option, for a value outside its range."""
    for option, value, choices in (
        ("backbone", backbone, drn.NAMES),
        ("encoder", encoder, get_args(EncoderKind)),
        ("norm_statistics", norm_statistics, get_args(NormStatistics)),
        ("fusion", fusion, get_args(FusionKind)),
        ("guidance", guidance, get_args(GuidanceKind)),
        ("sampling", sampling, get_args(SamplingMode)),
    ):
        if value not in choices:
            raise ValueError(f"{option} is {value!r}; expected one of {', '.join(choices)}")
    if branch_ratio not in BRANCH_RATIOS:
        raise ValueError(
            f"branch_ratio is {branch_ratio!r}; expected 2, 4 or 8, which divide the medium branch's stride 8"
        )
    if auxiliary_weight < 0:
        raise ValueError(
            f"auxiliary_weight is {auxiliary_weight}; expected 0 (no auxiliary classifier) or more"
        )
    if norm_statistics == "together" and encoder != "multi-shared":
        raise ValueError(
            f"norm_statistics is 'together', but encoder is {encoder!r}; expected encoder 'multi-shared'"
        )


MODEL = GUN
