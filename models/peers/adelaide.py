"""Adelaide's context CRF (Lin, Shen, van den Hengel and Reid, CVPR 2016, arXiv 1504.01013).

A CRF over the nodes of a feature map, whose potentials are networks. A feature network sees the image at
three scales and pools its surroundings (background context); a unary network scores the classes of a node,
and two pairwise networks score every pair of classes of two nodes (patch-patch context): of nodes that
surround each other, and of a node with those above it, in this order. Training is piecewise: every potential
is a softmax of its own, over K classes or K^2 pairs, so that no inference is needed. At test mean field runs
over the nodes, its scores are upsampled, and a fully connected CRF over the pixels refines them.

A pairwise potential that is trained so is a likelihood of two labels, and holds the evidence for each alone.
Added up as they are, potentials would count a node's own evidence once more for every neighbour. Where nodes
form a tree, their likelihood is the product of the nodes' and the pairs', over both nodes' for each pair
(Bethe's form), which mean field takes over here: a pair's score is its neighbour's, given the node's label.

Stated by the paper's abstract and outline: CNN potentials of both kinds, piecewise training, multi-scale
input with sliding pyramid pooling, a coarse prediction that is refined. Inferred: the numbers (scales,
windows of 5 and 9, a sixth block of 4096 and twice 512 channels, hidden layers of 512, range boxes of 0.4 of
the map's shorter side, three updates), that the five blocks of VGG-16 are shared by the scales and the sixth
is not, the stride of 16, scores given a node's label, their average over its neighbours instead of their sum,
and the last CRF, which is DeepLab's with CRF-RNN's bandwidth of colour.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.backbones import vgg
from models.parts.dense_crf import Bandwidths, DenseCRF
from models.parts.layers import upsample
from models.segmenter import IGNORE_LABEL, LabelCounts, Prediction, Segmenter, check_images

_SCALES = (1.2, 0.8, 0.4)
_WINDOWS = (5, 9)
_RANGE = 0.4
"""Side of a range box, in shorter sides of the feature map."""
_REFINEMENTS = 10
_HIDDEN_VALUES = 2**26
"""Of pairwise networks in mean field, how many to hold at a time: 256 MiB in float32."""

Offset = tuple[int, int]
"""From a node to its neighbour: rows down, columns to the right."""


class Adelaide(Segmenter):
    """Unary and pairwise potential networks, trained piecewise.

    Args:
        num_classes: K, at least 1.
        backbone: a name of ``vgg.NAMES``. The sixth block has eight times the channels of its last stage,
            then as many; hidden layers of the potentials have as many too.
        pretrained: ImageNet weights of the backbone's five stages.
        iterations: mean field updates over the nodes in evaluation mode, at least 0.
        training_offsets: of each pairwise network, how many relative places of neighbours a training step
            draws at random, at least 1: an unbiased part of the sum over all pairs, which no memory holds.
        position_bandwidth: of the last CRF's appearance kernel, in pixels of the network's input.
        smoothness_bandwidth: of its smoothness kernel, likewise.

    Raises:
        ValueError: a value outside these ranges.

    ``Prediction.auxiliary`` has, in training, the scores (N, K^2, h', w') of the pairs at each drawn offset,
    under the relation's name and the offset. ``Prediction.maps`` has ``unary_scores`` (N, K, h, w).
    """

    training_only = frozenset({"training_offsets"})
    inference_only = frozenset({"iterations", "position_bandwidth", "smoothness_bandwidth"})

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str = "vgg16",
        pretrained: bool | str = False,
        iterations: int = 3,
        training_offsets: int = 8,
        position_bandwidth: float = 49.0,
        smoothness_bandwidth: float = 3.0,
    ):
        if iterations < 0 or training_offsets < 1:
            raise ValueError(
                f"iterations is {iterations} and training_offsets is {training_offsets}; "
                "expected at least 0 and at least 1"
            )
        super().__init__(num_classes)
        self.iterations, self.training_offsets = iterations, training_offsets
        self.features = FeatureMapNetwork(backbone, pretrained)
        width, hidden = self.features.channels, self.features.hidden
        self.unary = nn.Sequential(
            nn.Conv2d(width, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, num_classes, 1)
        )
        self.pairwise = nn.ModuleDict(
            {name: PairwiseNetwork(width, hidden, num_classes) for name in _RELATIONS}
        )
        self.refinement = DenseCRF(
            num_classes,
            Bandwidths(position_bandwidth, 3, smoothness_bandwidth),
            appearance_weight=4,
            smoothness_weight=3,
        )

    @classmethod
    def check_backbone(cls, name: str) -> None:
        """See ``Segmenter``."""
        vgg.check_name(name)

    def forward(self, images: Tensor) -> Prediction:
        """Segments normalised RGB images (N, 3, H, W) of any height and width."""
        check_images(images)
        features = self.features(images)
        unary = self.unary(features)
        pairs = {name: network(features) for name, network in self.pairwise.items()}
        prediction = Prediction(unary, maps={"unary_scores": unary.detach()})
        if self.training:
            prediction.logits = upsample(unary, images.shape[-2:])
            for name, scores in pairs.items():
                offsets = _RELATIONS[name](*unary.shape[-2:])
                for drawn in torch.randperm(len(offsets), device="cpu")[: self.training_offsets].tolist():
                    offset = offsets[drawn]
                    prediction.auxiliary[_name(name, offset)] = scores(_at(offset, unary))
        else:
            scores = self._mean_field(unary, pairs)
            logits = upsample(scores, images.shape[-2:])
            prediction.logits = self.refinement(logits, images, _REFINEMENTS)
        return prediction

    def loss(
        self, prediction: Prediction, labels: Tensor, whole: LabelCounts | None = None
    ) -> dict[str, Tensor]:
        """The piecewise likelihoods: of the unary network as ``main``, and of each pairwise network.

        The pairwise ones are means over pairs of relations that each part of a batch draws for itself: parts
        count by their images, and another cut of the batch sees other pairs.

        Args:
            prediction: what ``forward`` returned in training mode.
            labels: (N, H, W) int64 at the input's resolution, ``IGNORE_LABEL`` ignored.
            whole: of the batch of which these are a part; ``None``: these are all of it.
        """
        terms = {"main": self.criterion(prediction.logits, labels, whole)}
        share = 1.0 if whole is None else len(labels) / whole.images
        height, width = prediction.maps["unary_scores"].shape[-2:]
        nodes = F.interpolate(labels[:, None].float(), (height, width), mode="nearest-exact")[:, 0].long()
        for name, relation in _RELATIONS.items():
            drawn = []
            for offset in relation(height, width):
                scores = prediction.auxiliary.get(_name(name, offset))
                if scores is not None:
                    pairs = _at(offset, nodes)
                    first, second = pairs.first(nodes), pairs.second(nodes)
                    ignored = (first == IGNORE_LABEL) | (second == IGNORE_LABEL)
                    # The number of a pair may be that of an ignored label, where classes are 16 or more.
                    joint = (first * self.num_classes + second).masked_fill(ignored, _IGNORED_PAIR)
                    drawn.append(_pair_likelihood(scores, joint))
            if drawn:
                terms[name] = share * torch.stack(drawn).mean()
        return terms

    def _mean_field(self, unary: Tensor, pairs: dict[str, Callable[[Pairs], Tensor]]) -> Tensor:
        """Scores (N, K, h, w) whose softmax is the marginals of the nodes."""
        count, classes, height, width = unary.shape
        most = max(1, _HIDDEN_VALUES // (count * self.features.hidden * height))
        related = {
            name: list(_in_rows(_RELATIONS[name](height, width), height, width, most, unary.device))
            for name in pairs
        }
        share = {name: 1 / _neighbours(some, unary[0, 0]).clamp(min=1) for name, some in related.items()}
        current = unary
        for _ in range(self.iterations):
            marginals = current.softmax(1)
            current = unary
            for name, scores in pairs.items():
                # On a GPU autocast gives the sums that are added to them single precision.
                messages = torch.zeros_like(unary, dtype=torch.promote_types(unary.dtype, torch.float32))
                for some in related[name]:
                    table = scores(some).unflatten(1, (classes, classes))  # (N, K, K, h', P)
                    # Each view is taken where it is written: autograd follows no view older than a write.
                    expected = (table * some.second(marginals)[:, None]).sum(2)
                    some.add_to_first(messages, expected - table.logsumexp(2))
                    expected = (table * some.first(marginals)[:, :, None]).sum(1)
                    some.add_to_second(messages, expected - table.logsumexp(1))
                current = current + messages * share[name]
        return current


class FeatureMapNetwork(nn.Module):
    """Features of nodes: VGG-16 and a sixth block at three scales, and what lies around (section 4).

    Args:
        backbone: a name of ``vgg.NAMES``.
        pretrained: as for ``vgg.VGG``.

    Attributes:
        channels: of the features.
        hidden: channels of the backbone's last stage.
    """

    def __init__(self, backbone: str, pretrained: bool | str):
        super().__init__()
        poolings = (*(vgg.Pooling(),) * 4, vgg.Pooling(3, 1))
        self.trunk = vgg.VGG(backbone, poolings=poolings, pretrained=pretrained)
        self.hidden = self.trunk.channels[0]
        self.blocks = nn.ModuleList(vgg.sixth_block(backbone) for _ in _SCALES)
        self.channels = self.hidden * len(_SCALES) * (1 + len(_WINDOWS))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) to features (N, channels, ~1.2 H / 16, ~1.2 W / 16)."""
        maps: list[Tensor] = []
        for scale, block in zip(_SCALES, self.blocks, strict=True):
            size = [max(1, round(side * scale)) for side in images.shape[-2:]]
            (features,) = self.trunk(upsample(images, size))
            features = block(features)
            around = [F.max_pool2d(features, window, 1, window // 2) for window in _WINDOWS]
            joined = torch.cat((features, *around), dim=1)
            maps.append(upsample(joined, maps[0].shape[-2:]) if maps else joined)
        return torch.cat(maps, dim=1)


class PairwiseNetwork(nn.Module):
    """Scores of every pair of classes, from the features of two nodes through a hidden layer.

    The hidden layer of two features side by side is a sum of one product for each, so that it is computed
    for each node and not for each pair.
    """

    def __init__(self, in_channels: int, hidden: int, num_classes: int):
        super().__init__()
        self.first = nn.Conv2d(in_channels, hidden, 1)
        self.second = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.scores = nn.Conv2d(hidden, num_classes**2, 1)

    def forward(self, features: Tensor) -> Callable[[Pairs], Tensor]:
        """Features (N, in_channels, h, w) to a function: pairs to their scores (N, K^2, h', P)."""
        ours, theirs = self.first(features), self.second(features)

        def pair_scores(pairs: Pairs) -> Tensor:
            scores: Tensor = self.scores(F.relu(pairs.first(ours) + pairs.second(theirs)))
            return scores

        return pair_scores


@dataclass(frozen=True)
class Pairs:
    """Pairs of nodes of a map, in h' rows of P pairs: the columns are the same in each row."""

    first_rows: slice
    second_rows: slice
    first_columns: Tensor
    """(P) of a map's w columns."""
    second_columns: Tensor

    def first(self, nodes: Tensor) -> Tensor:
        """The first node of each pair: (..., h, w) to (..., h', P)."""
        return nodes[..., self.first_rows, :].index_select(-1, self.first_columns)

    def second(self, nodes: Tensor) -> Tensor:
        """The second node of each pair: (..., h, w) to (..., h', P)."""
        return nodes[..., self.second_rows, :].index_select(-1, self.second_columns)

    def add_to_first(self, nodes: Tensor, values: Tensor) -> None:
        """Adds values (..., h', P) of pairs to their first nodes (..., h, w)."""
        nodes[..., self.first_rows, :].index_add_(-1, self.first_columns, values)

    def add_to_second(self, nodes: Tensor, values: Tensor) -> None:
        """Adds values (..., h', P) of pairs to their second nodes (..., h, w)."""
        nodes[..., self.second_rows, :].index_add_(-1, self.second_columns, values)


def _in_rows(
    offsets: list[Offset], height: int, width: int, most: int, device: torch.device
) -> Iterator[Pairs]:
    """All pairs of nodes at some offsets: offsets that go equally far down together, as one operation costs
    much more than its pairs.

    Args:
        offsets: from first to second nodes.
        height: of the map.
        width: of the map.
        most: pairs in a row at a time, or one offset's if those are more.
        device: of the map.
    """
    for down, row in groupby(sorted(offsets), key=lambda offset: offset[0]):
        rights = [right for _, right in row]
        at_a_time = max(1, most // width)
        for start in range(0, len(rights), at_a_time):
            # Chosen by value, which only the CPU has where a network is counted.
            right = torch.tensor(rights[start : start + at_a_time], device="cpu")[:, None]
            first = torch.arange(width, device="cpu").expand(len(right), width)
            second = first + right
            inside = (second >= 0) & (second < width)
            yield Pairs(
                slice(max(0, -down), height - max(0, down)),
                slice(max(0, down), height - max(0, -down)),
                first[inside].to(device),
                second[inside].to(device),
            )


def _neighbours(related: list[Pairs], nodes: Tensor) -> Tensor:
    """How many pairs each of some nodes (h, w) is in."""
    neighbours = torch.zeros_like(nodes)
    for pairs in related:
        ones = torch.ones_like(pairs.first(nodes))
        pairs.add_to_first(neighbours, ones)
        pairs.add_to_second(neighbours, ones)
    return neighbours


def _at(offset: Offset, nodes: Tensor) -> Pairs:
    """All pairs of nodes (..., h, w) at one offset."""
    height, width = nodes.shape[-2:]
    (pairs,) = _in_rows([offset], height, width, width, nodes.device)
    return pairs


def _surrounding(height: int, width: int) -> list[Offset]:
    """Half of the range box around a node: the other half has the same pairs."""
    reach = _reach(height, width)
    box = [(dy, dx) for dy in range(-reach, 1) for dx in range(-reach, reach + 1) if (dy, dx) < (0, 0)]
    return list(_within(box, height, width))


def _above(height: int, width: int) -> list[Offset]:
    """The range box that stands on a node."""
    reach = _reach(height, width)
    box = [(dy, dx) for dy in range(-2 * reach, 0) for dx in range(-reach, reach + 1)]
    return list(_within(box, height, width))


def _reach(height: int, width: int) -> int:
    return max(1, int(_RANGE * min(height, width) / 2))


def _within(offsets: list[Offset], height: int, width: int) -> Iterator[Offset]:
    return (offset for offset in offsets if abs(offset[0]) < height and abs(offset[1]) < width)


_RELATIONS = {"surrounding": _surrounding, "above": _above}
"""Which nodes a pairwise network relates: offsets to neighbours, on a map of some height and width."""
_IGNORED_PAIR = -1


def _name(relation: str, offset: Offset) -> str:
    return f"{relation} {offset[0]} {offset[1]}"


def _pair_likelihood(scores: Tensor, joint: Tensor) -> Tensor:
    """Mean cross-entropy of scores (N, K^2, h, w) where pairs (N, h, w) are labelled; zero where none is."""
    total = F.cross_entropy(scores.float(), joint, ignore_index=_IGNORED_PAIR, reduction="sum")
    return total / (joint != _IGNORED_PAIR).sum().clamp(min=1)


MODEL = Adelaide
