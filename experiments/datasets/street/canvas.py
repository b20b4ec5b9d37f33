"""A picture of materials that is painted from far to near.

World coordinates are metres: ``x`` to the right of the camera's path, ``y`` up from the ground, ``z``
ahead. The road may bend; ``x`` follows the bend, so that a thing is placed by its distance from the
camera's lane.

Only +, -, *, /, square roots and rounding are used, which are exact to the bit wherever IEEE 754 holds.
"""

from __future__ import annotations

from array import array
from functools import lru_cache
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.datasets.base import Pixels
from experiments.datasets.street.camera import Colour, Light, View
from experiments.datasets.street.dice import Dice

Floats = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]

SHADE = 1
"""Materials have even numbers; the next odd number is the same material in the shade."""

_LOOKS = 10  # numbers that describe a material
_FAR = 400.0  # metres; the ground's rows next to the horizon are not looked at any farther


class Canvas:
    """Material numbers (H, W), and what the materials look like and are labelled as.

    A later stroke covers an earlier one. Strokes are given in metres and draw no random numbers: the same
    strokes make the same scene at any size.

    Attributes:
        ids: what is painted so far.
        focal: pixels of something one metre large at one metre's distance.
        clumps: smooth noise (H, W) in [-1, 1], for clouds and stains.
        leaves: the same, finer, for foliage.
    """

    def __init__(self, height: int, width: int, view: View, light: Light, dice: Dice):
        self.height, self.width, self.view, self.light = height, width, view, light
        self.ids = np.zeros((height, width), np.int16)
        # The lens of Cityscapes: 2262 pixels at 2048 columns. Other shapes see a part of its 2:1 picture.
        self.focal = 1.1 * max(width, 2 * height)
        self.horizon = view.horizon * height
        self.centre = view.vanishing * width
        self.rows = np.arange(height, dtype=np.float32) + np.float32(0.5)
        self.columns = np.arange(width, dtype=np.float32) + np.float32(0.5)
        self.clumps = _smooth_noise(dice, 12, height, width)
        self.leaves = _smooth_noise(dice, 48, height, width)

        # Rows of label, distance, grain, blotch, colour in the light, colour in the shade.
        self._materials = array("f")

        self.ground_top = min(height, max(0, ceil(self.horizon - 0.5)))
        below = np.maximum(self.rows[self.ground_top :] - np.float32(self.horizon), 1e-6)
        self.ground_z = np.minimum(self.focal * view.eye / below, np.float32(_FAR))
        z = self.ground_z[:, None]
        self.ground_x = (self.columns - np.float32(self.centre)) * (z / self.focal) - view.bend * z * z

    def material(
        self, label: int, colour: Colour, z: float = 0.0, *, grain: float = 0.04, blotch: float = 0.08
    ) -> int:
        """A new material's number.

        Args:
            label: the class index, or ``IGNORE_LABEL``.
            colour: under neutral light.
            z: distance in metres, for the haze.
            grain: relative contrast of its finest texture.
            blotch: relative contrast of its coarser texture.
        """
        red, green, blue = colour
        direct, shade = self.light.direct, self.light.shade
        self._materials.extend(
            (
                label, z, grain, blotch,
                red * direct[0], green * direct[1], blue * direct[2],
                red * shade[0], green * shade[1], blue * shade[2],
            )
        )  # fmt: skip
        return 2 * (len(self._materials) // _LOOKS) - 2

    def sky(self, label: int, zenith: Colour, low: Colour, cloud: Colour, cover: float) -> None:
        """Fills the picture with sky from the top to the horizon, a share of about ``cover`` of it clouds."""
        bands = 16
        first = 2 * (len(self._materials) // _LOOKS)
        for band in range(bands):
            t = (band + 0.5) / bands
            clear = [(1 - t) * a + t * b for a, b in zip(zenith, low, strict=True)]
            clouded = [(a + 2 * b) / 3 for a, b in zip(clear, cloud, strict=True)]
            self._materials.extend((label, 0.0, 0.01, 0.02, *clear, *clouded))
        band_of = np.clip(self.rows * (bands / max(self.horizon, 1.0)), 0, bands - 1).astype(np.int16)
        self.ids[:] = (first + 2 * band_of)[:, None]
        self.ids |= self.clumps + 0.25 * self.leaves > 1 - 2 * cover

    def column(self, x: float, z: float) -> float:
        """Where (x, z) is seen."""
        return self.centre + self.focal * (x / z + self.view.bend * z)

    def row(self, y: float, z: float) -> float:
        """Where the height ``y`` at distance ``z`` is seen."""
        return self.horizon + self.focal * (self.view.eye - y) / z

    def shows(self, size: float, z: float) -> bool:
        """Whether a detail of ``size`` metres is at least a pixel large at distance ``z``."""
        return size * self.focal >= z

    def rect(self, x0: float, x1: float, y0: float, y1: float, z: float, material: int) -> None:
        """A rectangle that faces the camera. A thin one keeps one pixel, as it does on a real sensor."""
        i0, i1 = self._span(self.column(x0, z), self.column(x1, z), self.width)
        j0, j1 = self._span(self.row(y1, z), self.row(y0, z), self.height)
        self.ids[j0:j1, i0:i1] = material

    @staticmethod
    def _span(low: float, high: float, size: int) -> tuple[int, int]:
        first, last = ceil(low - 0.5), ceil(high - 0.5)
        if first == last:
            first = floor((low + high) / 2)
            last = first + 1
        return max(0, first), min(size, max(0, last))

    def taper(
        self,
        x: float,
        z: float,
        y0: float,
        y1: float,
        half0: float,
        half1: float,
        material: int,
        lean: float = 0,
    ) -> None:
        """A trapezium that faces the camera: half as wide as ``half0`` at ``y0`` and ``half1`` at ``y1``.

        Its top lies ``lean`` metres to the right of its foot ``x``.
        """
        widest = max(half0, half1)
        if not self.shows(widest + 2 * abs(lean), z):
            self.rect(x - widest, x + widest, y0, y1, z, material)
            return
        low, high = self.row(y0, z), self.row(y1, z)
        j0, j1 = max(0, ceil(high - 0.5)), min(self.height, max(0, ceil(low - 0.5)))
        left, right = x + min(0.0, lean) - widest, x + max(0.0, lean) + widest
        i0, i1 = self._span(self.column(left, z), self.column(right, z), self.width)
        if j0 >= j1 or i0 >= i1:
            return
        scale = self.focal / z
        up = (low - self.rows[j0:j1, None]) / (low - high)
        offset = self.columns[i0:i1] - self.column(x, z) - up * (lean * scale)
        inside = np.abs(offset) <= np.maximum((half0 + up * (half1 - half0)) * scale, 0.5)
        np.copyto(self.ids[j0:j1, i0:i1], material, where=inside)

    def disc(
        self, x: float, y: float, z: float, rx: float, ry: float, material: int, *, ragged: float = 0.0
    ) -> None:
        """An ellipse that faces the camera; ``ragged`` in [0, 1] frays its edge and shades its underside."""
        if not (ragged or self.shows(max(rx, ry), z)):
            self.rect(x - rx, x + rx, y - ry, y + ry, z, material)
            return
        reach = 1 + ragged / 2
        column, row, scale = self.column(x, z), self.row(y, z), self.focal / z
        i0, i1 = self._span(column - reach * rx * scale, column + reach * rx * scale, self.width)
        j0, j1 = self._span(row - reach * ry * scale, row + reach * ry * scale, self.height)
        if i0 >= i1 or j0 >= j1:
            return
        across = (self.columns[i0:i1] - column) / (rx * scale)
        down = ((self.rows[j0:j1] - row) / (ry * scale))[:, None]
        inside = across * across + down * down
        window = self.ids[j0:j1, i0:i1]
        if not ragged:
            np.copyto(window, material, where=inside < 1)
            return
        leaves = self.leaves[j0:j1, i0:i1]
        inside += ragged * leaves
        np.copyto(window, material, where=inside < 1)
        sun = -0.5 * self.light.sun * across
        np.copyto(window, material + SHADE, where=(inside < 1) & (down + sun + leaves > 0.45))

    def panel(self, x0: float, z0: float, x1: float, z1: float) -> Panel | None:
        """The upright plane over the ground line from (x0, z0) to (x1, z1); ``None`` if it is not seen."""
        panel = Panel(self, x0, z0, x1, z1)
        return panel if panel.first < panel.stop else None

    def lay(self, edges: list[float], materials: list[int]) -> None:
        """Covers the ground with stripes along the road: ``materials[k]`` lies between edges k - 1 and k."""
        stripes = np.searchsorted(np.asarray(edges, np.float32), self.ground_x, side="right")
        self.ids[self.ground_top :] = np.asarray(materials, np.int16)[stripes]

    def strip(
        self, x0: float, x1: float, z0: float, z1: float, material: int | None, *, period: float = 0.0
    ) -> None:
        """Covers a patch of ground with ``material``, or puts it into the shade (``None``).

        With a ``period`` in metres along the road, only the first half of each is covered.
        """
        j0 = max(self.ground_top, ceil(self.row(0, z1) - 0.5))
        j1 = min(self.height, ceil(self.row(0, z0) - 0.5))
        if j0 >= j1:
            return
        x = self.ground_x[j0 - self.ground_top : j1 - self.ground_top]
        inside = (x >= x0) & (x < x1)
        if period:
            beat = self.ground_z[j0 - self.ground_top : j1 - self.ground_top] / period
            inside &= (beat - np.floor(beat) < 0.5)[:, None]
        if material is None:
            self.ids[j0:j1] |= inside
        else:
            np.copyto(self.ids[j0:j1], material, where=inside)

    def foreground(self, material: int, top: float, sag: float) -> None:
        """Covers the bottom from the row ``top`` * H in the middle, ``sag`` * H lower at both sides."""
        across = self.columns * (2 / self.width) - 1
        upper = (top + sag * across * across) * self.height
        first = max(0, ceil(top * self.height - 0.5))
        np.copyto(self.ids[first:], material, where=self.rows[first:, None] >= upper)

    def rim(self, material: int, share: float) -> None:
        """Covers a strip of ``share`` * W columns at the left and at the right."""
        columns = ceil(share * self.width - 0.5)
        self.ids[:, :columns] = material
        self.ids[:, self.width - columns :] = material

    def develop(self, dice: Dice) -> tuple[Pixels, Pixels]:
        """The image (H, W, 3) and the labels (H, W)."""
        materials = np.frombuffer(self._materials, np.float32).reshape(-1, _LOOKS)
        colours = materials[:, 4:].reshape(-1, 3)  # lit and shaded by turns
        label, distance, grain, blotch = materials[:, :4].repeat(2, axis=0).T
        haze = (distance / (distance + self.light.visibility))[:, None]
        colours += haze * (np.array(self.light.haze, np.float32) - colours)

        image = colours.take(self.ids, axis=0)
        noise = _triangular(dice, self.height, self.width, 4)
        texture = 1 + grain.take(self.ids) * noise[..., 3]
        texture += blotch.take(self.ids) * (self.clumps + self.leaves)
        image *= texture[..., None]
        image = _soften(_soften(image).swapaxes(0, 1)).swapaxes(0, 1)
        image += self.light.noise * noise[..., :3]
        labels = label.astype(np.uint8).take(self.ids)
        return np.clip(image + 0.5, 0, 255).astype(np.uint8), labels


class Panel:
    """An upright plane in perspective.

    Places on it are a ``part`` in [0, 1] of its length from the start, and a height in metres.
    """

    def __init__(self, canvas: Canvas, x0: float, z0: float, x1: float, z1: float):
        self.canvas = canvas
        self.length = abs(x1 - x0) + abs(z1 - z0)  # every plane here runs along the road or across it
        (self._x0, self._x1), self._z0, self._z1 = sorted((x0, x1)), z0, z1
        self._u0, self._u1 = canvas.column(x0, z0), canvas.column(x1, z1)
        self.first = max(0, ceil(min(self._u0, self._u1) - 0.5))
        self.stop = min(canvas.width, max(0, ceil(max(self._u0, self._u1) - 0.5)))
        if self.first >= self.stop:
            return
        # 1 / z is linear in the columns of a plane, and so is part / z.
        t = (canvas.columns[self.first : self.stop] - np.float32(self._u0)) / (self._u1 - self._u0)
        inverse = (1 - t) / z0 + t / z1
        self.scale: Floats = canvas.focal * inverse  # pixels a metre, by column
        self.parts: Floats = t / z1 / inverse

    def fill(
        self,
        low: float | Floats,
        high: float | Floats,
        material: int,
        *,
        columns: Mask | None = None,
        cells: tuple[float, float, float, float] | None = None,
    ) -> None:
        """Covers the plane between two heights.

        Args:
            low: metres, one or by column.
            high: the same.
            material: what covers it.
            columns: only these.
            cells: only a grid's cells: its pitch along and up in metres, and the covered share of each.
        """
        canvas = self.canvas
        if (
            not isinstance(high, np.ndarray)
            and not isinstance(low, np.ndarray)
            and not self.shows(high - low)
        ):
            return
        top = canvas.horizon + (canvas.view.eye - high) * self.scale
        bottom = canvas.horizon + (canvas.view.eye - low) * self.scale
        j0 = max(0, ceil(float(top.min()) - 0.5))
        j1 = min(canvas.height, max(0, ceil(float(bottom.max()) - 0.5)))
        if j0 >= j1:
            return
        rows = canvas.rows[j0:j1, None]
        inside = (rows >= top) & (rows < bottom)
        if columns is not None:
            inside &= columns
        if cells is not None:
            pitch, storey, wide, tall = cells
            along = self.parts * (self.length / pitch)
            inside &= np.abs(along - np.floor(along) - 0.5) < wide / 2
            up = (canvas.view.eye - low - (rows - canvas.horizon) / self.scale) / storey
            inside &= np.abs(up - np.floor(up) - 0.5) < tall / 2
        np.copyto(canvas.ids[j0:j1, self.first : self.stop], material, where=inside)

    def shows(self, size: float) -> bool:
        """Whether a detail of ``size`` metres is at least a pixel large anywhere on the plane."""
        return bool(size * max(self.scale[0], self.scale[-1]) >= 1)

    def between(self, start: float, end: float) -> Mask:
        """The columns of a stretch of the plane."""
        return (self.parts >= start) & (self.parts < end)

    def wheel(self, part: float, radius: float, material: int) -> None:
        """A disc that stands on the ground."""
        reach = (self.parts - part) * self.length
        half = np.sqrt(np.maximum(radius * radius - reach * reach, 0))
        self.fill(radius - half, radius + half, material)


@lru_cache(maxsize=16)
def _grid_places(size: int, extent: int, cells: int) -> tuple[NDArray[np.intp], Floats]:
    places = (np.arange(size) + 0.5) * cells / extent
    floor = places.astype(np.intp)
    return floor, (places - floor).astype(np.float32)


def _smooth_noise(dice: Dice, cells: int, height: int, width: int) -> Floats:
    """Noise in [-1, 1], smooth over H / ``cells`` pixels; it looks the same at every size of one shape."""
    extent = max(height, (width + 1) // 2)
    row, down = _grid_places(height, extent, cells)
    column, across = _grid_places(width, extent, cells)
    grid = dice.octets(cells + 2, 2 * cells + 2).astype(np.float32) / 127.5 - 1
    lines = grid[:, column]
    lines += (grid[:, column + 1] - lines) * across
    noise: Floats = lines[row]
    noise += (lines[row + 1] - noise) * down[:, None]
    return noise


def _triangular(dice: Dice, *shape: int) -> Floats:
    """Noise of mean 0 and standard deviation 1 with a bell-like, triangular distribution."""
    sums = dice.octets(*shape).astype(np.float32)
    sums += dice.octets(*shape)
    sums -= 255
    sums *= 1 / 104.5
    return sums


def _soften(image: Floats) -> Floats:
    """Mixes each row with its neighbours, as a lens does at the edges of things."""
    softened = image.copy()
    exchange = 0.25 * (image[1:] - image[:-1])
    softened[:-1] += exchange
    softened[1:] -= exchange
    return softened
