"""The fully connected CRF of Kraehenbuehl and Koltun (NIPS 2011), and its mean field as layers (CRF-RNN).

Every pixel is connected with every other by two Gaussian kernels: appearance, in position and colour, and
smoothness, in position alone. A step of mean field filters the marginals with both, weighs the results, mixes
the classes by a compatibility and adds the unary scores.

Appearance is the matrix of all pairs of pixels where an image is small enough for it, and is filtered on the
permutohedral lattice elsewhere; smoothness is exact, as two banded matrices. Each kernel K is normalised
symmetrically, D^(-1/2) K D^(-1/2) with D the sums of its rows, as in the authors' later work (ICML 2013);
their first code and CRF-RNN divide by D after filtering, which is no energy's gradient. A pixel is among its
own neighbours, as in both implementations. With Potts compatibility and positive weights the parallel update
then never raises the free energy: the pairwise energy is concave, and the update minimises its tangent (ICML
2013, section 4). So nothing is damped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.parts.permutohedral import PermutohedralLattice

ALL_PAIRS = 2**24
"""Pairs of pixels, of one image, up to which the appearance kernel is a matrix: 64 x 64 pixels and 64 MiB. It
is exact, and faster than the lattice there."""
_IMAGENET_STD = (0.229, 0.224, 0.225)
_TRUNCATION = 4
"""Bandwidths after which the smoothness kernel is zero; it is 0.0003 there."""
_CLASSES_IN_A_ROW = 16
"""Classes from which on torch's softmax takes them by vectors on a CPU, where they lie side by side. With 11
it takes twice the time of one over maps, so that it pays to copy them there and back."""
_BLOCK = 64
"""Rows of a banded matrix that are multiplied at once; the band is narrower."""


@dataclass(frozen=True)
class Bandwidths:
    """Standard deviations of the two kernels."""

    position: float
    """Of the appearance kernel, in pixels of the network's input."""
    colour: float
    """Of the appearance kernel, in levels of 0 to 255. Images come normalised: one unit is taken for
    ImageNet's deviation of the channel, about 58 levels. An image that is normalised by the deviation of its
    own data set is compared in those units instead."""
    smoothness: float
    """Of the smoothness kernel, in pixels."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"bandwidth {name} is {value}; expected more than 0")


class DenseCRF(nn.Module):
    """Mean field in the fully connected CRF over the pixels of an image.

    Args:
        num_classes: K.
        bandwidths: of the kernels.
        appearance_weight: of the appearance kernel, at the start if it is learned; at least 0.
        smoothness_weight: of the smoothness kernel, likewise.
        learned: whether every class has weights of its own and there is a compatibility of every pair of
            classes, all learned and starting from the weights above and Potts (Zheng et al., ICCV 2015,
            section 4); else the weights stand and the compatibility is Potts.

    Raises:
        ValueError: a value outside these ranges.
    """

    def __init__(
        self,
        num_classes: int,
        bandwidths: Bandwidths,
        *,
        appearance_weight: float,
        smoothness_weight: float,
        learned: bool = False,
    ):
        super().__init__()
        for name, value in (("appearance", appearance_weight), ("smoothness", smoothness_weight)):
            if not value >= 0:
                raise ValueError(f"{name}_weight is {value}; expected at least 0")
        self.bandwidths = bandwidths
        # Potts adds a cost for every other class. Up to a term that all classes share, that is a gain for the
        # same one, which the identity says without a product of K by K.
        weights = torch.tensor([appearance_weight, smoothness_weight], dtype=torch.float32)
        self.weights = nn.Parameter(weights[:, None].repeat(1, num_classes)) if learned else weights
        self.compatibility = nn.Parameter(1 - torch.eye(num_classes)) if learned else None

    @torch.compiler.disable(recursive=True)
    def forward(self, scores: Tensor, images: Tensor, iterations: int) -> Tensor:
        """Runs mean field from the softmax of the scores.

        Args:
            scores: (N, K, H, W), the negative unary potentials.
            images: (N, 3, H, W), normalised; no gradient reaches them.
            iterations: how many updates, at least 0.

        Returns:
            (N, K, H, W) float32 or wider, whose softmax is the marginals.

        Raises:
            ValueError: an image of more cells of the kernel than can be numbered.
        """
        # A network that is only counted lies on the meta device, which has no autocast.
        device = "cpu" if scores.is_meta else scores.device.type
        with torch.autocast(device, enabled=False):
            return self._mean_field(scores, images, iterations)

    def _mean_field(self, scores: Tensor, images: Tensor, iterations: int) -> Tensor:
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        height, width = scores.shape[-2:]
        if not iterations:
            return scores
        kernels = (
            AppearanceKernel(images.to(scores.dtype), self.bandwidths),
            SmoothnessKernel(height, width, self.bandwidths.smoothness, scores),
        )
        unary = scores.permute(0, 2, 3, 1).contiguous()
        current = unary
        for _ in range(iterations):
            current = self._update(unary, _marginals(current), kernels)
        return current.permute(0, 3, 1, 2)

    def _update(self, unary: Tensor, marginals: Tensor, kernels: tuple[Kernel, Kernel]) -> Tensor:
        """The unary scores and what neighbours add to them, from marginals (N, H, W, K)."""
        weights = self.weights.to(marginals)
        added = unary if self.compatibility is None else torch.zeros_like(unary[..., :1])
        for kernel, weight in zip(kernels, weights, strict=True):
            added = torch.addcmul(added, kernel.filter(marginals), weight)
        return added if self.compatibility is None else unary - added @ self.compatibility.to(added).T


def _marginals(scores: Tensor) -> Tensor:
    """Softmax over the last dimension of (N, H, W, K)."""
    if scores.shape[-1] < _CLASSES_IN_A_ROW:
        return scores.movedim(-1, 1).softmax(1).movedim(1, -1)
    return scores.softmax(-1)


class Kernel:
    """A Gaussian kernel between the pixels of an image, normalised symmetrically."""

    def filter(self, values: Tensor) -> Tensor:
        """The kernel times values (N, H, W, C)."""
        raise NotImplementedError


class AppearanceKernel(Kernel):
    """In position and colour: points that are near and look alike.

    Args:
        images: (N, 3, H, W), normalised.
        bandwidths: of position and colour.
        all_pairs: how many pairs of pixels of an image a matrix may hold, ``ALL_PAIRS`` if not said; an image
            of more is filtered on the permutohedral lattice.
    """

    def __init__(self, images: Tensor, bandwidths: Bandwidths, all_pairs: int | None = None):
        count, _, height, width = images.shape
        deviation = torch.tensor(_IMAGENET_STD).to(images).view(3, 1, 1)
        colours = images.detach() * (255 * deviation / bandwidths.colour)
        y = torch.arange(height).to(images) / bandwidths.position
        x = torch.arange(width).to(images) / bandwidths.position
        places = torch.stack((x.expand(height, width), y[:, None].expand(height, width)))
        # Position comes last: the lattice is fastest if pixels that follow each other are near there.
        features = torch.cat((colours, places.expand(count, -1, -1, -1)), dim=1).flatten(2).transpose(1, 2)
        exact = (height * width) ** 2 <= (ALL_PAIRS if all_pairs is None else all_pairs)
        kernel = AllPairs(features) if exact else PermutohedralLattice(features)
        self._scale = kernel.filter(features.new_ones(count, height * width, 1)).rsqrt()
        self._kernel = kernel

    def filter(self, values: Tensor) -> Tensor:
        filtered = self._scale * self._kernel.filter(self._scale * values.flatten(1, 2))
        return filtered.view(values.shape)


class AllPairs:
    """The filter of ``PermutohedralLattice``, as a matrix: exact, and quadratic in the number of points.

    Args:
        features: (B, N, d) positions, in bandwidths; what is not finite is taken as the lattice does.
    """

    def __init__(self, features: Tensor):
        features = features.nan_to_num()
        # Not by the binomial formula: squares of single precision hide differences of near points.
        self._matrix = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
        self._matrix.square_().mul_(-0.5).exp_()

    def filter(self, values: Tensor) -> Tensor:
        """K times values (B, N, C)."""
        return self._matrix @ values


class SmoothnessKernel(Kernel):
    """In position alone: near points.

    Args:
        height: of the image.
        width: of the image.
        bandwidth: in pixels.
        like: whose type and device it takes.
    """

    def __init__(self, height: int, width: int, bandwidth: float, like: Tensor):
        self._bands = [_band_blocks(side, bandwidth, like) for side in (height, width)]

    def filter(self, values: Tensor) -> Tensor:
        rows, columns = self._bands
        count, height, width, classes = values.shape
        down = [block @ values[:, a:b].flatten(2) for a, b, block in rows]
        values = torch.cat(down, dim=1).view(count, height, width, classes)
        return torch.cat([block @ values[:, :, a:b] for a, b, block in columns], dim=2)


def _band_blocks(side: int, bandwidth: float, like: Tensor) -> list[tuple[int, int, Tensor]]:
    """A Gaussian's normalised matrix (side, side), as blocks of rows, each with the columns a to b that are
    not zero. The sums of the whole kernel's rows are products of those of its two directions.

    Products of dense blocks are several times faster on a CPU than a depthwise convolution of this size.
    """
    reach = int(_TRUNCATION * bandwidth)
    places = torch.arange(side).to(like)
    blocks = []
    for start in range(0, side, _BLOCK):
        end = min(start + _BLOCK, side)
        a, b = max(start - reach, 0), min(end + reach, side)
        blocks.append((start, end, a, b, _truncated(places[start:end, None] - places[a:b], bandwidth, reach)))
    scale = torch.cat([block.sum(1) for *_, block in blocks]).rsqrt()
    return [(a, b, scale[start:end, None] * block * scale[a:b]) for start, end, a, b, block in blocks]


def _truncated(distances: Tensor, bandwidth: float, reach: int) -> Tensor:
    """A Gaussian of distances that is zero beyond its reach."""
    gaussian = torch.exp(-0.5 * (distances / bandwidth) ** 2)
    return gaussian.masked_fill(distances.abs() > reach, 0)
