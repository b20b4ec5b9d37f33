"""Gaussian filtering in many dimensions on the permutohedral lattice (Adams et al., Eurographics 2010).

Points are splatted onto the vertices of the simplices that they lie in, the vertices are blurred along the
lattice's axes, and the points read the result back. The cost is linear in the number of points, whatever the
bandwidth, and each point has d + 1 vertices instead of a grid's 2^d.

Three things differ from the paper. Keys are packed into one integer and sorted, instead of a hash table, so
that everything is a tensor operation. The vertices one step around those of the points exist too: without
them the blur loses what passes between sparse points, which was most of the error. And the blur is a product
of a matrix with its own transpose, so that the filter is symmetric and positive semidefinite: its gradient
is itself, and mean field on it converges (``dense_crf``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_BLUR_VARIANCE = 1.0
"""Of the blur along an axis, in squared steps: (1, 2, 1) / 4 there and back."""
_SPLAT_VARIANCE = 1 / 6
"""Of splatting and slicing together, in the same unit (Adams et al., section 3.2)."""


class PermutohedralLattice:
    """The filter ``values -> K values`` with K_ij ~ exp(-|f_i - f_j|^2 / 2), up to one factor.

    Args:
        features: (B, N, d) positions of N points in each of B independent sets, in bandwidths. Values that
            are not finite count as zero or as the largest number. No gradient reaches them.

    Raises:
        ValueError: the features span more cells than 63 bits can number.
    """

    def __init__(self, features: Tensor):
        with torch.no_grad():
            self._build(features.detach())

    def filter(self, values: Tensor) -> Tensor:
        """K times values (B, N, C), in a floating type; differentiable in the values, any number of times."""
        filtered: Tensor = _Filter.apply(values, self)
        return filtered

    def _build(self, features: Tensor) -> None:
        features = features.nan_to_num()
        batch, points, dimensions = features.shape
        corners = dimensions + 1
        keys, weights, step = _enclosing_simplices(features.reshape(batch * points, dimensions), batch)
        ordered, order = keys.flatten().sort()
        own, own_row = _distinct(ordered)
        around = [own, *(own + delta for delta in step), *(own - delta for delta in step)]
        vertices, _ = _distinct(torch.cat(around).sort().values)
        # From here on a vertex is a row of a table, in the order of the keys; one more row stays zero, for
        # neighbours that are not there.
        vertices = torch.cat((vertices, vertices.new_full((1,), torch.iinfo(vertices.dtype).max)))
        row = torch.searchsorted(vertices, own)[own_row]
        self._corner_rows = torch.empty_like(row).scatter_(0, order, row).view(-1, corners)
        self._corner_weights = weights
        self._splat_points = order // corners
        self._splat_weights = weights.flatten()[order]
        self._splat_starts = torch.searchsorted(ordered, vertices)
        places = torch.arange(len(vertices), device=vertices.device)
        self._axes = [
            torch.stack((_find(vertices, -delta), places, _find(vertices, delta)), 1) for delta in step
        ]

    def _apply(self, values: Tensor) -> Tensor:
        batch, points, channels = values.shape
        flat = values.reshape(batch * points, channels)
        dtype = values.dtype
        table = F.embedding_bag(
            self._splat_points,
            flat,
            self._splat_starts,
            mode="sum",
            per_sample_weights=self._splat_weights.to(dtype),
        )
        blur = table.new_tensor((0.25, 0.5, 0.25)).expand(len(table), 3).contiguous()
        for neighbours in (*self._axes, *reversed(self._axes)):
            table = F.embedding_bag(neighbours, table, mode="sum", per_sample_weights=blur)
        sliced = F.embedding_bag(
            self._corner_rows, table, mode="sum", per_sample_weights=self._corner_weights.to(dtype)
        )
        return sliced.view(batch, points, channels)


class _Filter(torch.autograd.Function):
    """The filter is symmetric, so its gradient is the filter of the gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lattice: PermutohedralLattice) -> Tensor:
        ctx.lattice = lattice
        return lattice._apply(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.lattice.filter(gradients[0]), None


def _enclosing_simplices(features: Tensor, sets: int) -> tuple[Tensor, Tensor, list[int]]:
    """Where points lie in the lattice.

    Args:
        features: (P, d) in bandwidths; the first P / sets points are the first set, and so on.
        sets: of points that are to share no vertices.

    Returns:
        Keys (P, d + 1) int64 of the vertices around each point, its barycentric coordinates (P, d + 1), and
        what to add to a key to step along each of the d + 1 axes.
    """
    points, dimensions = features.shape
    corners = dimensions + 1
    scale = corners * (_BLUR_VARIANCE + _SPLAT_VARIANCE) ** 0.5
    elevated = features @ (scale * _basis(dimensions).to(features)).T
    # The nearest point all of whose coordinates are multiples of d + 1, then the order of what is left:
    # it says which simplex around that point encloses the features (Adams et al., section 3.1).
    nearest = (elevated / corners).round()
    excess = nearest.sum(1, keepdim=True).long()
    left = elevated - corners * nearest
    rank = torch.zeros_like(nearest, dtype=torch.long)
    for i in range(corners):
        for j in range(i + 1, corners):
            below = left[:, i] < left[:, j]
            rank[:, i] += below
            rank[:, j] += ~below
    rank += excess
    turn = (rank < 0).long() - (rank > dimensions).long()
    rank += corners * turn
    base = nearest.long() + turn
    offset = (elevated - corners * base).div_(corners)
    by_rank = torch.empty_like(offset).scatter_(1, rank, offset)
    weights = torch.cat((by_rank[:, -1:] - by_rank[:, :1] + 1, (by_rank[:, :-1] - by_rank[:, 1:]).flip(1)), 1)

    base = corners * base[:, :dimensions]
    # Room for a corner and a neighbour on either side.
    low, high = base.amin(0) - 2 * corners, base.amax(0) + 2 * corners
    strides = _strides(high - low + 1, sets, points, elevated.device)
    own_set = torch.arange(points, device=base.device) // max(points // sets, 1)
    key = ((base - low) * strides[1:]).sum(1) + own_set * strides[0]
    # The m-th corner adds m to every coordinate, and takes d + 1 off the m of the highest ranks. The last
    # coordinate follows from the others and has no part in the key.
    by_rank_strides = torch.zeros_like(rank).scatter_(1, rank, F.pad(strides[1:], (0, 1)).expand_as(rank))
    taken = F.pad(by_rank_strides[:, 1:].flip(1).cumsum(1), (1, 0))
    total = strides[1:].sum()
    keys = key[:, None] + torch.arange(corners, device=key.device) * total - corners * taken
    steps = [0] * corners if key.is_meta else (total - corners * F.pad(strides[1:], (0, 1))).tolist()
    return keys, weights, steps


def _basis(dimensions: int) -> Tensor:
    """Orthonormal columns (d + 1, d) that span the plane of zero coordinate sum."""
    basis = torch.triu(torch.ones(dimensions + 1, dimensions, dtype=torch.float64))
    counts = torch.arange(1, dimensions + 1, dtype=torch.float64)
    basis[1:].diagonal().copy_(-counts)
    return basis / (counts * (counts + 1)).sqrt()


def _strides(extents: Tensor, sets: int, points: int, device: torch.device) -> Tensor:
    """What one step in the set, and in each coordinate, adds to a key: int64 (1 + d)."""
    if extents.is_meta:
        return torch.zeros(len(extents) + 1, dtype=torch.long, device=device)
    cells, strides = 1, []
    for extent in extents.flip(0).tolist():
        strides.append(cells)
        cells *= int(extent)
    strides.append(cells)
    if cells * sets >= 2**63:
        raise ValueError(
            f"permutohedral lattice: {points} points span {cells * sets:.1e} cells, more than 63 bits can "
            "number; the bandwidths are too small for the features"
        )
    return torch.tensor(strides[::-1], device=device)


def _distinct(ordered: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values of a sorted list, and the place of each entry among them."""
    is_first = torch.ones_like(ordered, dtype=torch.bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    # Without values, as where a network is only counted, all may be distinct.
    return ordered if ordered.is_meta else ordered[is_first], is_first.cumsum(0) - 1


def _find(vertices: Tensor, delta: int) -> Tensor:
    """Rows (M) of the keys ``vertices + delta`` in the sorted vertices (M); the last where there is none."""
    last = len(vertices) - 1
    wanted = vertices[:-1] + delta
    rows = torch.searchsorted(vertices, wanted)
    rows = torch.where(vertices[rows] == wanted, rows, last)
    return F.pad(rows, (0, 1), value=last)
