"""Who moves on the road and the pavement: vehicles, two-wheelers, riders and people on foot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from experiments.datasets.street.camera import Colour, vary
from experiments.datasets.street.canvas import Canvas
from experiments.datasets.street.dice import Dice
from experiments.datasets.street.labels import (
    BICYCLE,
    BUS,
    CAR,
    MOTORCYCLE,
    PERSON,
    RIDER,
    ROAD,
    TRAIN,
    TRUCK,
)

Heading = Literal["away", "towards", "left", "right"]

_PAINTS: tuple[Colour, ...] = (
    (34, 36, 40), (58, 60, 66), (104, 106, 110), (150, 152, 154), (200, 202, 204), (226, 226, 224),
    (140, 30, 34), (36, 56, 110), (52, 84, 130), (66, 78, 62), (128, 110, 82), (170, 60, 36),
)  # fmt: skip
_LIVERIES: tuple[Colour, ...] = (
    (196, 40, 36), (230, 222, 200), (222, 170, 40), (210, 212, 214), (60, 110, 84), (52, 84, 150),
    (120, 122, 126),
)  # fmt: skip
_CLOTHES: tuple[Colour, ...] = (
    (32, 34, 42), (48, 54, 78), (84, 84, 86), (120, 42, 44), (196, 192, 184), (70, 88, 66), (156, 120, 84),
    (200, 86, 40), (60, 100, 150), (150, 90, 120),
)  # fmt: skip
_TROUSERS: tuple[Colour, ...] = ((34, 36, 46), (48, 58, 92), (88, 84, 78), (130, 116, 94), (26, 26, 28))
_SKIN: tuple[Colour, ...] = ((206, 160, 132), (176, 128, 98), (120, 82, 60), (88, 60, 46))
_HAIR: tuple[Colour, ...] = ((38, 30, 26), (96, 68, 44), (168, 140, 92), (130, 128, 126))
_RUBBER: Colour = (28, 28, 30)


@dataclass(frozen=True)
class Shape:
    """A vehicle's outline in metres.

    Attributes:
        label: its class.
        width: across.
        length: along.
        outline: (part of the length from the front, height) of the side's upper edge.
        glass: lowest and highest edge of the side windows.
        glazed: parts of the length that are side windows.
        nose: height of the front below the windscreen.
        tail: height of the rear below the rear window; the full height where there is none.
        setback: how far the roof begins behind the front and before the rear.
        wheels: parts of the length where the wheels stand.
        wheel: their radius.
        load: from this part of the length on it has another colour (a lorry's box).
    """

    label: int
    width: float
    length: float
    outline: tuple[tuple[float, float], ...]
    glass: tuple[float, float]
    glazed: tuple[tuple[float, float], ...]
    nose: float
    tail: float
    setback: tuple[float, float]
    wheels: tuple[float, ...]
    wheel: float
    load: float = 1.0

    @property
    def height(self) -> float:
        """Of the roof."""
        return max(height for _, height in self.outline)


_SALOON, _SMALL, _LARGE, _VAN = (
    Shape(
        CAR, 1.8, 4.5,
        ((0, 0.62), (0.03, 0.78), (0.28, 0.92), (0.42, 1.42), (0.72, 1.42), (0.9, 0.98), (1, 0.9)),
        (0.95, 1.34), ((0.35, 0.55), (0.57, 0.8)), 0.8, 0.92, (1.85, 1.2), (0.19, 0.8), 0.32,
    ),
    Shape(
        CAR, 1.75, 3.9, ((0, 0.62), (0.03, 0.78), (0.24, 0.92), (0.4, 1.48), (0.86, 1.46), (1, 0.9)),
        (0.95, 1.38), ((0.33, 0.56), (0.58, 0.88)), 0.82, 0.92, (1.5, 0.5), (0.18, 0.82), 0.31,
    ),
    Shape(
        CAR, 1.9, 4.6, ((0, 0.7), (0.03, 0.95), (0.24, 1.08), (0.36, 1.72), (0.92, 1.7), (1, 1.05)),
        (1.1, 1.6), ((0.31, 0.54), (0.56, 0.9)), 0.98, 1.05, (1.6, 0.35), (0.18, 0.81), 0.37,
    ),
    Shape(
        CAR, 1.95, 5.2, ((0, 0.7), (0.02, 1.0), (0.12, 1.18), (0.25, 2.0), (1, 2.0)),
        (1.15, 1.75), ((0.18, 0.36),), 1.1, 1.1, (1.2, 0.0), (0.16, 0.8), 0.36,
    ),
)  # fmt: skip
CARS = (_SALOON, _SMALL, _LARGE, _SALOON, _SMALL, _LARGE, _VAN)
"""As common as on the road."""
LORRIES = (
    Shape(
        TRUCK, 2.45, 8.5, ((0, 2.7), (0.22, 2.8), (0.24, 2.8), (0.25, 3.6), (1, 3.6)),
        (1.6, 2.4), ((0.04, 0.18),), 1.5, 3.6, (0.0, 0.0), (0.12, 0.7, 0.84), 0.48, 0.25,
    ),
    Shape(
        TRUCK, 2.2, 6.2, ((0, 1.9), (0.04, 2.3), (0.28, 2.4), (0.3, 1.5), (0.32, 3.1), (1, 3.1)),
        (1.4, 2.0), ((0.06, 0.24),), 1.3, 3.1, (0.1, 0.0), (0.16, 0.76), 0.42, 0.32,
    ),
    Shape(
        TRUCK, 2.4, 7.5, ((0, 2.6), (0.24, 2.7), (0.26, 1.2), (0.3, 2.1), (0.96, 2.1), (1, 1.9)),
        (1.5, 2.3), ((0.04, 0.2),), 1.4, 2.1, (0.0, 0.0), (0.14, 0.74, 0.88), 0.48, 0.28,
    ),
)  # fmt: skip
COACH = Shape(
    BUS, 2.5, 12.0, ((0, 2.95), (0.02, 3.1), (0.99, 3.1), (1, 3.0)),
    (1.2, 2.5), ((0.03, 0.22), (0.24, 0.42), (0.44, 0.62), (0.64, 0.82), (0.84, 0.96)),
    1.15, 1.7, (0.0, 0.0), (0.22, 0.72), 0.5,
)  # fmt: skip
TRAM = Shape(
    TRAIN, 2.4, 29.0, ((0, 2.6), (0.02, 3.3), (0.98, 3.3), (1, 2.6)),
    (1.3, 2.6), tuple((0.03 + 0.12 * k, 0.13 + 0.12 * k) for k in range(8)),
    1.3, 1.3, (0.5, 0.5), (0.12, 0.18, 0.47, 0.53, 0.82, 0.88), 0.3,
)  # fmt: skip


def vehicle(canvas: Canvas, dice: Dice, shape: Shape, x: float, z: float, heading: Heading) -> None:
    """A vehicle whose nearest end is ``z`` metres ahead, its middle at ``x``."""
    colour = vary(dice, dice.pick(_PAINTS if shape.label == CAR else _LIVERIES))
    body = canvas.material(shape.label, colour, z, grain=0.02, blotch=0.05)
    load_colour = dice.pick(((222, 222, 218), (150, 152, 150), (120, 96, 70), (64, 90, 140), colour))
    load = canvas.material(shape.label, vary(dice, load_colour), z)
    glass = canvas.material(shape.label, vary(dice, (46, 54, 62), 0.4), z, blotch=0.2)
    dark = canvas.material(shape.label, _RUBBER, z)
    ground = canvas.material(ROAD, (34, 34, 37), z)

    across = heading in ("left", "right")
    half = (shape.length if across else shape.width) / 2
    depth = shape.width if across else shape.length
    canvas.strip(x - half - 0.05, x + half + 0.05, z - 0.3, z + depth, ground)
    if canvas.light.sun:
        fall = -1.6 * canvas.light.sun
        canvas.strip(x + min(fall, 0) - half, x + max(fall, 0) + half, z, z + depth, None)

    front, rear = (x - half, x + half) if heading == "left" else (x + half, x - half)
    outward = 1 if x > 0 else -1
    side_x = x - outward * half
    shade = int(canvas.light.sun == outward)
    if across:
        panel = canvas.panel(front, z, rear, z)
        shade = int(canvas.light.ahead)
    elif side_x * outward <= 0:  # right ahead: only its end is seen
        panel = None
    elif heading == "away":
        panel = canvas.panel(side_x, z + shape.length, side_x, z)
    else:
        panel = canvas.panel(side_x, z, side_x, z + shape.length)

    if panel is not None:
        places, heights = zip(*shape.outline, strict=True)
        upper = np.interp(panel.parts, places, heights).astype(np.float32)
        clearance = shape.wheel * 0.7
        panel.fill(clearance, upper, body + shade)
        if shape.load < 1:
            panel.fill(clearance * 1.6, upper, load + shade, columns=panel.between(shape.load, 1.01))
        windows = np.zeros(panel.parts.shape, bool)
        for start, end in shape.glazed:
            windows |= panel.between(start, end)
        low, high = shape.glass
        if panel.shows(0.2):
            panel.fill(clearance, clearance + 0.12, dark, columns=panel.between(0.02, 0.98))
        panel.fill(
            low, np.minimum(upper - np.float32(0.08), np.float32(high)), glass + shade, columns=windows
        )
        if panel.shows(shape.wheel / 2):
            for part in shape.wheels:
                panel.wheel(part, shape.wheel, dark)
    if not across:
        _end(canvas, shape, x, z, heading == "towards", (body, load, glass, dark))


def _end(
    canvas: Canvas, shape: Shape, x: float, z: float, front: bool, looks: tuple[int, int, int, int]
) -> None:
    """The front or the rear of a vehicle, as it faces the camera."""
    body, load, glass, dark = looks
    shade = int(canvas.light.ahead)
    half = shape.width / 2
    sill = shape.nose if front else shape.tail
    roof = shape.height if front or shape.load == 1 else shape.tail
    if front and shape.load < 1:
        canvas.rect(x - half, x + half, 1.0, roof, z + shape.load * shape.length, load + shade)
        roof = shape.outline[0][1]
    window_z = z + shape.setback[0 if front else 1]
    narrow = 0.8 if shape.label == CAR and roof < 1.9 else 0.97

    for side in (-1, 1):
        inner, outer = sorted((side * (half - 0.24), side * (half - 0.02)))
        canvas.rect(x + inner, x + outer, 0, shape.wheel * 1.2, z, dark)
    if roof > sill:
        canvas.taper(x, window_z, sill * 0.7, roof, half, half * narrow, body + shade)
        top = roof - 0.08 * (roof - sill) - 0.04
        canvas.taper(x, window_z, sill + 0.05, top, half * 0.86, half * (narrow - 0.08), glass + shade)
    skin = load if shape.load < 1 and not front else body
    canvas.rect(x - half, x + half, shape.wheel * 0.7, sill, z, skin + shade)
    canvas.rect(x - half, x + half, shape.wheel * 0.7, shape.wheel * 0.7 + 0.14, z, dark)

    if not canvas.shows(0.1, z):
        return
    colour: Colour = (236, 232, 210) if front else (170, 20, 22)
    lamp = canvas.material(shape.label, colour, z)
    plate = canvas.material(shape.label, (216, 214, 200), z)
    lamp_y = min(0.62, sill * 0.75) if front else min(0.72, sill * 0.8)
    for side in (-1, 1):
        inner, outer = sorted((side * half * 0.62, side * half * 0.94))
        canvas.rect(x + inner, x + outer, lamp_y, lamp_y + 0.15, z, lamp)
    canvas.rect(x - 0.26, x + 0.26, 0.42, 0.53, z, plate)


def _clothes(canvas: Canvas, dice: Dice, label: int, z: float) -> tuple[int, int, int, int]:
    top = canvas.material(label, vary(dice, dice.pick(_CLOTHES), 0.3), z)
    legs = canvas.material(label, vary(dice, dice.pick(_TROUSERS), 0.3), z)
    skin = canvas.material(label, vary(dice, dice.pick(_SKIN)), z)
    hair = canvas.material(label, vary(dice, dice.pick(_HAIR)), z)
    shade = int(canvas.light.ahead)
    return top + shade, legs + shade, skin + shade, hair + shade


def person(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """Someone on foot; one in seven is a child."""
    m = dice.between(0.6, 0.75) if dice.chance(1 / 7) else dice.between(0.93, 1.07)
    top, legs, skin, hair = _clothes(canvas, dice, PERSON, z)
    stride = dice.between(0.03, 0.24) * m
    long_coat = dice.chance(0.25)
    swing = dice.between(-0.12, 0.12) * m

    canvas.taper(x - 0.05 * m, z, 0, 0.9 * m, 0.075 * m, 0.1 * m, legs, lean=0.0)
    canvas.taper(x - stride, z, 0, 0.88 * m, 0.075 * m, 0.1 * m, legs, lean=stride - 0.08 * m)
    canvas.taper(x + stride, z, 0, 0.88 * m, 0.075 * m, 0.1 * m, legs, lean=0.08 * m - stride)
    hem = 0.45 if long_coat else 0.82
    canvas.taper(x, z, hem * m, 1.48 * m, 0.2 * m, 0.22 * m, top)
    for side in (-1, 1):
        canvas.taper(x + side * 0.3 * m + swing, z, 0.78 * m, 1.45 * m, 0.05 * m, 0.06 * m, top, lean=-swing)
    canvas.disc(x, 1.62 * m, z, 0.1 * m, 0.14 * m, skin)
    canvas.disc(x, 1.68 * m, z, 0.105 * m, 0.09 * m, hair)
    if dice.chance(0.25):
        canvas.rect(x + 0.3 * m, x + 0.55 * m, 0.45 * m, 0.8 * m, z, hair)


def two_wheeler(
    canvas: Canvas, dice: Dice, x: float, z: float, *, motor: bool, side_on: bool, ridden: bool
) -> None:
    """A bicycle or a motorcycle, with its rider or parked."""
    label = MOTORCYCLE if motor else BICYCLE
    shade = int(canvas.light.ahead)
    colour = vary(dice, dice.pick(_PAINTS), 0.3)
    frame = canvas.material(label, colour, z) + shade
    tyre = canvas.material(label, _RUBBER, z)
    spokes = canvas.material(label, (96, 95, 94), z, grain=0.15)
    lamp = canvas.material(label, (220, 40, 30) if dice.chance(0.5) else (236, 232, 210), z)
    forwards = 1 if dice.chance(0.5) else -1
    draw = _side_on if side_on else _end_on
    draw(canvas, x, z, forwards, motor, (frame, tyre, spokes, lamp))
    if ridden:
        _rider(canvas, dice, x, z, forwards, motor, side_on)


def _side_on(
    canvas: Canvas, x: float, z: float, forwards: int, motor: bool, looks: tuple[int, int, int, int]
) -> None:
    frame, tyre, spokes, lamp = looks
    radius, base = (0.31, 0.68) if motor else (0.34, 0.53)
    for end in (-1, 1):
        canvas.disc(x + end * base, radius, z, radius, radius, tyre)
        rim = radius * (0.55 if motor else 0.82)
        canvas.disc(x + end * base, radius, z, rim, rim, spokes)
    if motor:
        canvas.disc(x, 0.5, z, 0.55, 0.26, frame)
        canvas.disc(x + forwards * 0.2, 0.78, z, 0.3, 0.18, frame)
        canvas.rect(x - 0.55, x + 0.1, 0.7, 0.84, z, tyre)
        canvas.taper(x + forwards * 0.62, z, 0.4, 1.08, 0.06, 0.05, tyre, lean=-forwards * 0.2)
        canvas.disc(x + forwards * 0.55, 0.88, z, 0.12, 0.12, lamp)
    else:
        canvas.taper(x, z, 0.3, 0.92, 0.035, 0.035, frame, lean=-forwards * 0.2)
        canvas.taper(x, z, 0.3, 0.8, 0.035, 0.035, frame, lean=forwards * 0.38)
        canvas.rect(x - 0.2, x + 0.38, 0.74, 0.81, z, frame)
        canvas.taper(x - forwards * base, z, 0.3, 0.8, 0.03, 0.03, frame, lean=forwards * 0.34)
        canvas.taper(x + forwards * base, z, 0.3, 1.02, 0.03, 0.03, frame, lean=-forwards * 0.15)
        canvas.rect(x - forwards * 0.2 - 0.14, x - forwards * 0.2 + 0.14, 0.9, 0.97, z, tyre)
        canvas.rect(x + forwards * 0.38 - 0.12, x + forwards * 0.38 + 0.12, 0.98, 1.05, z, tyre)


def _end_on(
    canvas: Canvas, x: float, z: float, forwards: int, motor: bool, looks: tuple[int, int, int, int]
) -> None:
    del forwards  # a bicycle's two ends look alike
    frame, tyre, spokes, lamp = looks
    if motor:
        canvas.rect(x - 0.08, x + 0.08, 0, 0.62, z, tyre)
        canvas.disc(x, 0.72, z, 0.24, 0.3, frame)
        canvas.rect(x - 0.4, x + 0.4, 1.0, 1.07, z, tyre)
        canvas.disc(x, 0.8, z, 0.1, 0.1, lamp)
        canvas.rect(x - 0.12, x + 0.12, 0.48, 0.58, z, spokes)
    else:
        canvas.rect(x - 0.035, x + 0.035, 0, 0.68, z, tyre)
        canvas.rect(x - 0.05, x + 0.05, 0.5, 0.98, z, frame)
        canvas.rect(x - 0.3, x + 0.3, 0.97, 1.04, z, tyre)
        canvas.disc(x, 0.62, z, 0.05, 0.05, lamp)


def _rider(canvas: Canvas, dice: Dice, x: float, z: float, forwards: int, motor: bool, side_on: bool) -> None:
    top, legs, skin, hair = _clothes(canvas, dice, RIDER, z)
    helmet = canvas.material(RIDER, vary(dice, dice.pick(_CLOTHES), 0.3), z)
    head = helmet if motor or dice.chance(0.5) else hair
    seat = 0.8 if motor else 0.92
    if side_on:
        hip = x - forwards * (0.15 if motor else 0.2)
        canvas.taper(hip + forwards * 0.28, z, 0.28, seat + 0.05, 0.07, 0.1, legs, lean=-forwards * 0.2)
        canvas.taper(hip, z, seat - 0.08, seat + 0.62, 0.16, 0.17, top, lean=forwards * 0.28)
        canvas.taper(hip + forwards * 0.55, z, 1.02, seat + 0.55, 0.05, 0.06, top, lean=-forwards * 0.25)
        head_x = hip + forwards * 0.36
    else:
        for side in (-1, 1):
            canvas.taper(x + side * 0.16, z, 0.28, seat + 0.08, 0.07, 0.1, legs)
            canvas.taper(x + side * 0.28, z, 1.02, seat + 0.56, 0.06, 0.06, top, lean=-side * 0.04)
        canvas.taper(x, z, seat - 0.05, seat + 0.64, 0.19, 0.22, top)
        head_x = x
    canvas.disc(head_x, seat + 0.8, z, 0.11, 0.14, skin)
    canvas.disc(head_x, seat + 0.86, z, 0.13 if motor else 0.115, 0.12, head)
