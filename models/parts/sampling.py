"""Sampling a map at a grid that predicted offsets have shifted.

GUN's guided upsampling and AlignSeg's feature alignment are the same operation with other
conventions for the grid and for the unit of an offset: both shift a regular grid and sample there.
The grid is made on the features' device, one for the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.parts.layers import upsample

SamplingMode = Literal["bilinear", "nearest"]


def sample_shifted(
    features: Tensor,
    offsets: Tensor,
    *,
    unit: tuple[float, float],
    align_corners: bool,
    span: bool | None = None,
) -> Tensor:
    """Samples ``features`` bilinearly at a regular grid shifted by ``offsets``; outside the map are zeros.

    Args:
        features: (N, C, h, w).
        offsets: (N, 2, H, W), x before y, positive to the right and down.
        unit: size of one unit of offset in x and y, in normalised coordinates (the map spans
            [-1, 1]).
        align_corners: whether -1 and 1 are the centres of the map's outermost pixels (true) or
            their outer edges (false).
        span: whether the unshifted grid runs from -1 to 1 (true) or through the pixel centres of
            an (H, W) image that covers the map (false). Defaults to ``align_corners``, which
            makes zero offsets plain bilinear upsampling of that convention.

    Returns:
        (N, C, H, W) in the type of ``features``.
    """
    height, width = offsets.shape[-2:]
    span = align_corners if span is None else span
    dtype = _coordinate_type(features, offsets)
    offsets = offsets.to(dtype)
    grid = _shifted_grid(offsets, unit, _base(width, span, offsets), _base(height, span, offsets))
    sampled = F.grid_sample(
        features.to(dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners
    )
    return sampled.to(features.dtype)


def guided_upsample(features: Tensor, offsets: Tensor, mode: SamplingMode = "bilinear") -> Tensor:
    """Upsamples a map by sampling it where the offsets say (GUN, the Guided Upsampling Module).

    Output pixel i lies at (x_i, y_i) in the map, by the convention of ``F.interpolate`` with
    ``align_corners=False``, and takes the map's value at (x_i, y_i) plus its offset. Points outside
    the map take the value of the nearest edge. With zero offsets this is plain bilinear upsampling
    (``bilinear``) or ``nearest-exact`` (``nearest``): in float32 to 1e-6 where the factor is a power
    of two, else to some 1e-5, as far as ``F.interpolate`` itself is off. It also shrinks, without
    anti-aliasing.

    An offset that is not finite counts as zero or as the edge, and the result does not show it: a
    model gives its offsets under ``segmenter.OFFSETS``, where ``Segmenter.loss`` looks.

    Args:
        features: (N, C, h, w), such as class scores.
        offsets: (N, 2, H, W) in pixels of the output, x before y, positive to the right and down.
        mode: ``bilinear`` has gradients in both arguments; ``nearest`` has none in the offsets.

    Returns:
        (N, C, H, W) in the type of ``features``.
    """
    (h, w), (height, width) = features.shape[-2:], offsets.shape[-2:]
    # ``grid_sample`` takes coordinates in [-1, 1] and turns them back into pixels. In float32 that
    # round trip costs up to 1e-5 of a pixel, except for maps whose sides are powers of two, where
    # scaling is exact. Repeating the edge, which sampling does beyond it anyway, gets there. A spare
    # row below keeps channels from lying a power of two apart in memory, where caches collide.
    padded_h, padded_w = _power_of_two(h), _power_of_two(w)
    dtype = _coordinate_type(features, offsets)
    # On a CPU the backward pass of ``grid_sample`` reads outside its memory where a coordinate is NaN.
    offsets = offsets.to(dtype).nan_to_num()
    padded = F.pad(features.to(dtype), (0, padded_w - w, 0, padded_h - h + 1), mode="replicate")
    padded = padded[:, :, :padded_h]
    step_x, step_y = w / (width * padded_w), h / (height * padded_h)
    grid = _shifted_grid(
        offsets, (2 * step_x, 2 * step_y), _centres(width, step_x, offsets), _centres(height, step_y, offsets)
    )
    sampled = F.grid_sample(padded, grid, mode=mode, padding_mode="border", align_corners=False)
    return sampled.to(features.dtype)


class GuidedUpsampling(nn.Module):
    """GUN's Guided Upsampling Module, the last step of any encoder-decoder.

    A 1 x 1 convolution turns a guidance feature into the Guidance Offset Table, an offset for every
    pixel of the output, and ``guided_upsample`` samples the decoder's scores there. The convolution
    starts at zero, so that training starts from plain bilinear upsampling (inferred). It predicts in
    pixels of the scores, the unit of the paper's equation, whatever the factor.

    Args:
        guidance_channels: channels of the guidance feature.
        sampling: form of the sampler in evaluation mode. Training always uses ``bilinear``:
            ``nearest`` has no gradient in the offsets.
    """

    def __init__(self, guidance_channels: int, *, sampling: SamplingMode = "bilinear"):
        super().__init__()
        self.sampling = sampling
        self.offsets = nn.Conv2d(guidance_channels, 2, kernel_size=1)
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)  # type: ignore[arg-type]

    def forward(self, scores: Tensor, guidance: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Upsamples scores under guidance.

        Args:
            scores: (N, K, h, w), any number of channels.
            guidance: (N, guidance_channels, h', w'), any size.
            size: (H, W) of the output.

        Returns:
            The scores (N, K, H, W), and the offset table (N, 2, H, W) in pixels of the output, x
            before y, positive to the right and down.
        """
        x, y = self.offsets(guidance).unbind(1)
        scale_y, scale_x = (out / of for out, of in zip(size, scores.shape[-2:], strict=True))
        offsets = upsample(torch.stack((x * scale_x, y * scale_y), dim=1), size)
        return guided_upsample(scores, offsets, "bilinear" if self.training else self.sampling), offsets


def _coordinate_type(*tensors: Tensor) -> torch.dtype:
    """The widest of the types and float32: half precision cannot tell neighbours in a 2048 wide map."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _shifted_grid(offsets: Tensor, unit: tuple[float, float], base_x: Tensor, base_y: Tensor) -> Tensor:
    """Grid (N, H, W, 2) of offsets (N, 2, H, W) from the row ``base_x`` (W) and the column ``base_y`` (H)."""
    size = offsets.shape[-2:]
    base = torch.stack((base_x.expand(size), base_y[:, None].expand(size)))
    # The two units, made where the offsets are and not on the host.
    scale = torch.linspace(*unit, 2, dtype=offsets.dtype, device=offsets.device).view(2, 1, 1)
    # Planes of x and y: interleaving them in memory takes longer than all the rest of the grid.
    return torch.addcmul(base, offsets, scale).permute(0, 2, 3, 1)


def _base(size: int, span: bool, like: Tensor) -> Tensor:
    """Normalised coordinates (size,) of the unshifted grid along one axis."""
    if span:
        return torch.linspace(-1, 1, size, dtype=like.dtype, device=like.device)
    return _centres(size, 1 / size, like)


def _centres(size: int, half: float, like: Tensor) -> Tensor:
    """Normalised centres (size,) of pixels that start at -1 and are twice ``half`` wide."""
    # Rounds as ``F.interpolate`` does; ``linspace`` strays a few times further from it.
    return torch.arange(1, 2 * size, 2, dtype=like.dtype, device=like.device) * half - 1


def _power_of_two(size: int) -> int:
    """The smallest power of two that is at least ``size``."""
    return 1 << (int(size) - 1).bit_length()  # int: under torch.jit.trace a size is a tensor
