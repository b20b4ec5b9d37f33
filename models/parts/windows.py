"""Non-overlapping windows of a token map of any size: what Swin and the Semantic Layer attend within."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class Windows:
    """Which window of a token map, and which place in it, each token goes to.

    The map is padded with zeros at the right and bottom to multiples of a window's side, then shifted
    cyclically towards the top left. All of it is one gather in either direction, with the other one as its
    gradient: padding, rolling and cutting one after the other took twice as long, measured on a CPU with and
    without gradients.

    Args:
        height: of the map, before padding.
        width: likewise.
        side: of a window, in tokens.
        shift: of the padded map, in tokens.
        device: of the maps.
    """

    def __init__(
        self, height: int, width: int, side: int, shift: int = 0, device: torch.device | None = None
    ):
        self.size = height, width
        self.side = side

        def along(size: int) -> tuple[Tensor, Tensor]:  # window, and place within it, along one axis
            padded = size + -size % side
            position = (torch.arange(padded, device=device) - shift) % padded
            return position // side, position % side

        row, row_within = along(height)
        column, column_within = along(width)
        per_row = len(column_within) // side
        place = (row[:, None] * per_row + column) * side**2 + row_within[:, None] * side + column_within
        self._place = place[:height, :width].flatten()
        self._padding = torch.cat((place[height:].flatten(), place[:height, width:].flatten()))
        tokens = torch.arange(height * width, device=device)
        self._token = torch.zeros_like(place).flatten().index_copy(0, self._place, tokens)

    def cut(self, x: Tensor) -> Tensor:
        """Map (N, height, width, C) to its windows (N * windows, side * side, C), row by row."""
        tokens = x.flatten(1, 2)
        return self._moved(tokens, self._token, self._padding, self._place, None).reshape(
            -1, self.side**2, x.shape[-1]
        )

    def join(self, windows: Tensor) -> Tensor:
        """Inverse of ``cut``: the map (N, height, width, C) without its padding."""
        tokens = windows.reshape(-1, len(self._token), windows.shape[-1])
        joined = self._moved(tokens, self._place, None, self._token, self._padding)
        return joined.view(len(joined), *self.size, -1)

    @staticmethod
    def _moved(
        x: Tensor, there: Tensor, zeros: Tensor | None, back: Tensor, zeros_back: Tensor | None
    ) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            moved: Tensor = _Moved.apply(x, there, zeros, back, zeros_back)
            return moved
        return _gather(x, there, zeros)


class _Moved(torch.autograd.Function):
    """A gather of tokens whose gradient is a gather too, as each token has one place at most."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, there: Tensor, zeros: Tensor | None, back: Tensor, zeros_back: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(back, zeros_back)
        return _gather(x, there, zeros)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        back, zeros_back = ctx.saved_tensors
        return _gather(gradient, back, zeros_back), None, None, None, None


def _gather(x: Tensor, index: Tensor, zeros: Tensor | None) -> Tensor:
    """(N, n, C) to (N, len(index), C), with zeros in the named places."""
    gathered = x.index_select(1, index)
    return gathered if zeros is None or not len(zeros) else gathered.index_fill_(1, zeros, 0)
