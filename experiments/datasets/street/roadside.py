"""What stands beside the road: buildings, walls, fences, greenery, poles, signs and lights."""

from __future__ import annotations

from experiments.datasets.base import IGNORE_LABEL
from experiments.datasets.street.camera import Colour, vary
from experiments.datasets.street.canvas import SHADE, Canvas
from experiments.datasets.street.dice import Dice
from experiments.datasets.street.labels import (
    BUILDING,
    FENCE,
    POLE,
    TRAFFIC_LIGHT,
    TRAFFIC_SIGN,
    VEGETATION,
    WALL,
)

_FACADES: tuple[Colour, ...] = (
    (150, 145, 138), (120, 116, 112), (176, 168, 150), (196, 186, 160), (168, 132, 108), (136, 84, 68),
    (110, 72, 60), (200, 196, 190), (182, 160, 122), (98, 100, 106), (150, 158, 162), (178, 148, 140),
)  # fmt: skip
_ROOFS: tuple[Colour, ...] = ((120, 66, 52), (92, 60, 52), (78, 78, 84), (98, 92, 90))
_MASONRY: tuple[Colour, ...] = (
    (140, 136, 130),
    (118, 112, 106),
    (150, 130, 112),
    (128, 86, 70),
    (170, 166, 158),
)
_FENCES: tuple[Colour, ...] = ((70, 74, 72), (96, 78, 60), (150, 148, 144), (58, 84, 66), (120, 104, 86))
_LEAVES: tuple[Colour, ...] = (
    (64, 84, 40), (52, 74, 42), (78, 92, 46), (92, 98, 52), (58, 70, 50), (104, 96, 52), (110, 84, 48),
)  # fmt: skip
_BARK: Colour = (74, 62, 52)
_METAL: tuple[Colour, ...] = ((96, 98, 100), (128, 130, 130), (64, 66, 68), (88, 96, 88), (150, 150, 148))


def building(
    canvas: Canvas, dice: Dice, x: float, z0: float, z1: float, eaves: float, *, with_end: bool = True
) -> None:
    """A house along the road.

    Args:
        canvas: is painted on.
        dice: decide on its looks.
        x: where its front stands.
        z0: its near end.
        z1: its far end.
        eaves: height of its wall.
        with_end: the end that faces the camera is not hidden by a neighbour.
    """
    colour = vary(dice, dice.pick(_FACADES))
    storey = dice.between(2.9, 3.7)
    pitch = dice.between(2.0, 4.2)
    wide, tall = dice.between(0.35, 0.62), dice.between(0.42, 0.62)
    roof_height = dice.pick((0.4, 1.0, 3.0, 4.2))
    shop = dice.chance(0.4)
    outward = 1 if x > 0 else -1

    wall = canvas.material(BUILDING, colour, z0, blotch=0.06)
    trim = canvas.material(BUILDING, vary(dice, colour, 0.35), z0)
    roof = canvas.material(BUILDING, vary(dice, dice.pick(_ROOFS)), z0, grain=0.07)
    glass = canvas.material(BUILDING, vary(dice, (66, 74, 84), 0.5), z0, blotch=0.25)

    ends = ((x + outward * 12.0, z0, x, z0, int(canvas.light.ahead)),) if with_end else ()
    front = (x, z0, x, z1, int(canvas.light.sun == outward))
    for start_x, start_z, end_x, end_z, shade in (*ends, front):
        panel = canvas.panel(start_x, start_z, end_x, end_z)
        if panel is None:
            continue
        panel.fill(0, eaves, wall + shade)
        panel.fill(eaves, eaves + roof_height, roof + shade)
        if not panel.shows(0.25 * storey):
            continue
        ground = 3.6 if shop else 0.4
        panel.fill(ground, eaves - 0.3, glass + shade, cells=(pitch, storey, wide, tall))
        if shop:
            panel.fill(0.3, 2.9, glass + SHADE, cells=(pitch * 1.5, 2.6, 0.8, 1.0))
            panel.fill(2.9, 3.5, trim + shade)
        panel.fill(eaves - 0.3, eaves, trim + shade)


def wall(canvas: Canvas, dice: Dice, x: float, z0: float, z1: float) -> None:
    """A free-standing wall along the road."""
    colour = vary(dice, dice.pick(_MASONRY))
    height = dice.between(1.3, 3.2)
    shade = int(canvas.light.sun == (1 if x > 0 else -1))
    stone = canvas.material(WALL, colour, z0, grain=0.07, blotch=0.14)
    joint = canvas.material(WALL, vary(dice, colour, 0.3), z0)
    bay = dice.between(2.0, 4.0)
    panel = canvas.panel(x, z0, x, z1)
    if panel is None:
        return
    panel.fill(0, height, stone + shade)
    if panel.shows(0.2):
        panel.fill(0, height, joint + shade, cells=(bay, height, 0.12, 1.0))
        panel.fill(height - 0.15, height, joint + shade)


def fence(canvas: Canvas, dice: Dice, x: float, z0: float, z1: float) -> None:
    """Posts, rails and bars; what shows between them counts as fence, as it does in Cityscapes."""
    height = dice.between(1.0, 2.0)
    shade = int(canvas.light.sun == (1 if x > 0 else -1))
    bars = canvas.material(FENCE, vary(dice, dice.pick(_FENCES)), z0)
    behind = canvas.material(FENCE, vary(dice, (84, 88, 66), 0.25), z0, grain=0.1, blotch=0.25)
    pitch = dice.between(0.14, 0.5)
    panel = canvas.panel(x, z0, x, z1)
    if panel is None:
        return
    panel.fill(0, height, behind + shade)
    if panel.shows(pitch / 2):
        panel.fill(0, height, bars + shade, cells=(pitch, height, 0.45, 1.0))
    if panel.shows(0.14):
        panel.fill(0, height, bars + shade, cells=(2.4, height, 0.06, 1.0))
    panel.fill(height - 0.12, height, bars + shade)


def hedge(canvas: Canvas, dice: Dice, x: float, z0: float, z1: float) -> None:
    """Clipped greenery along the road."""
    height = dice.between(1.0, 2.6)
    leaves = canvas.material(VEGETATION, vary(dice, dice.pick(_LEAVES)), z0, grain=0.16, blotch=0.3)
    shade = int(canvas.light.sun == (1 if x > 0 else -1))
    panel = canvas.panel(x, z0, x, z1)
    if panel is None:
        return
    panel.fill(0, height, leaves + shade)
    panel.fill(0, height * 0.35, leaves + SHADE)


def bush(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """A shrub."""
    size = dice.between(0.5, 1.6)
    leaves = canvas.material(VEGETATION, vary(dice, dice.pick(_LEAVES)), z, grain=0.16, blotch=0.3)
    canvas.disc(x, size * 0.6, z, size, size * 0.75, leaves, ragged=0.5)


def tree(canvas: Canvas, dice: Dice, x: float, z: float, height: float) -> None:
    """A trunk (which Cityscapes counts as vegetation) and a crown of several clumps."""
    bark = canvas.material(VEGETATION, vary(dice, _BARK), z, grain=0.12)
    leaves = canvas.material(VEGETATION, vary(dice, dice.pick(_LEAVES), 0.25), z, grain=0.18, blotch=0.35)
    spread = height * dice.between(0.22, 0.36)
    foot = height * dice.between(0.22, 0.36)
    canvas.taper(x, z, 0, foot * 1.4, 0.02 * height, 0.014 * height, bark + int(canvas.light.ahead))
    middle = (foot + height) / 2
    canvas.disc(x, middle, z, spread, (height - foot) / 2, leaves, ragged=0.55)
    for _ in range(2):
        off, up = dice.between(-0.7, 0.7) * spread, dice.between(-0.3, 0.3) * (height - foot)
        if canvas.shows(spread / 6, z):
            canvas.disc(x + off, middle + up, z, spread * 0.6, spread * 0.55, leaves, ragged=0.6)


def _post(canvas: Canvas, dice: Dice, x: float, z: float, height: float, thickness: float) -> int:
    metal = canvas.material(POLE, vary(dice, dice.pick(_METAL)), z)
    shaded = metal + int(canvas.light.ahead)
    canvas.rect(x - thickness / 2, x + thickness / 2, 0, height, z, shaded)
    return shaded


def lamp_post(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """A street lamp whose arm reaches over the road."""
    height, reach = dice.between(5.5, 9.0), dice.between(0.6, 2.2)
    metal = _post(canvas, dice, x, z, height, dice.between(0.1, 0.17))
    tip = x - reach if x > 0 else x + reach
    canvas.rect(min(x, tip), max(x, tip), height - 0.08, height, z, metal)
    canvas.rect(tip - 0.35, tip + 0.35, height - 0.16, height + 0.06, z, metal)


def bollard(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """A knee-high post."""
    _post(canvas, dice, x, z, dice.between(0.8, 1.1), 0.14)


def _signal(canvas: Canvas, dice: Dice, x: float, y: float, z: float, size: float) -> None:
    """A traffic light's head, its foot at height ``y``."""
    case = canvas.material(TRAFFIC_LIGHT, vary(dice, (36, 40, 38), 0.4), z)
    wide, tall = 0.36 * size, 1.0 * size
    canvas.rect(x - wide / 2, x + wide / 2, y, y + tall, z, case)
    lamps: tuple[Colour, ...] = ((60, 235, 150), (255, 190, 60), (255, 70, 50))
    lit = dice.below(3)
    for k, colour in enumerate(lamps):
        shine = 1.0 if k == lit else 0.2
        red, green, blue = colour
        lamp = canvas.material(TRAFFIC_LIGHT, (red * shine, green * shine, blue * shine), z)
        canvas.disc(x, y + tall * (0.2 + 0.3 * k), z, 0.11 * size, 0.11 * size, lamp)


def traffic_light(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """A signal on a post, and half of the time another one on an arm over the road."""
    if dice.chance(0.5):
        height, reach = dice.between(5.2, 6.2), dice.between(2.0, 4.0)
        metal = _post(canvas, dice, x, z, height, 0.18)
        tip = x - reach if x > 0 else x + reach
        canvas.rect(min(x, tip), max(x, tip), height - 0.14, height, z, metal)
        _signal(canvas, dice, tip, height - 0.9, z, 1.1)
    else:
        _post(canvas, dice, x, z, 3.4, 0.14)
    _signal(canvas, dice, x, 2.35, z, 1.0)


def traffic_sign(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """One sign or two on a post: round, triangular, square or a diamond."""
    foot = dice.between(1.9, 2.4)
    size = dice.between(0.28, 0.38)
    count = 1 + int(dice.chance(0.3))
    _post(canvas, dice, x, z, foot + count * 2 * size, 0.08)
    for k in range(count):
        y = foot + (2 * k + 1) * size
        shape = dice.pick(("ring", "disc", "triangle", "square", "diamond"))
        red, blue, white, yellow = (
            canvas.material(TRAFFIC_SIGN, vary(dice, colour, 0.12), z, blotch=0.02)
            for colour in ((190, 34, 40), (30, 70, 160), (222, 222, 218), (226, 178, 30))
        )
        if shape == "ring":
            canvas.disc(x, y, z, size, size, red)
            canvas.disc(x, y, z, size * 0.68, size * 0.68, white)
        elif shape == "disc":
            canvas.disc(x, y, z, size, size, blue)
            canvas.rect(x - size * 0.12, x + size * 0.12, y - size * 0.5, y + size * 0.5, z, white)
        elif shape == "triangle":
            canvas.taper(x, z, y - size, y + size * 0.8, size * 1.1, 0.02, red)
            canvas.taper(x, z, y - size * 0.75, y + size * 0.3, size * 0.65, 0.02, white)
        elif shape == "square":
            canvas.rect(x - size, x + size, y - size, y + size, z, blue)
            canvas.taper(x, z, y - size * 0.6, y + size * 0.6, size * 0.5, 0.05, white)
        else:
            canvas.taper(x, z, y - size, y, 0.02, size, yellow)
            canvas.taper(x, z, y, y + size, size, 0.02, yellow)


def direction_board(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """A large board with lines of writing, on two posts."""
    wide, tall, foot = dice.between(2.0, 3.4), dice.between(1.2, 2.0), dice.between(1.6, 2.4)
    for side in (-0.4, 0.4):
        _post(canvas, dice, x + side * wide, z, foot + tall, 0.1)
    ground = dice.pick(((30, 70, 160), (226, 188, 40), (24, 110, 70), (216, 216, 212)))
    board = canvas.material(TRAFFIC_SIGN, vary(dice, ground, 0.12), z, blotch=0.02)
    text = canvas.material(TRAFFIC_SIGN, (20, 20, 20) if sum(ground) > 400 else (225, 225, 225), z)
    canvas.rect(x - wide / 2, x + wide / 2, foot, foot + tall, z, board)
    for line in (0.25, 0.6):
        y = foot + line * tall
        end = x + wide * dice.between(-0.1, 0.42)
        canvas.rect(x - wide * 0.42, end, y, y + 0.16 * tall, z, text)


def street_box(canvas: Canvas, dice: Dice, x: float, z: float) -> None:
    """A bin, a cabinet or a bench: things of no class."""
    colour = vary(dice, dice.pick(((92, 96, 92), (60, 84, 64), (110, 90, 70), (150, 60, 40))))
    box = canvas.material(IGNORE_LABEL, colour, z)
    half, height = dice.between(0.25, 0.8), dice.between(0.6, 1.4)
    canvas.rect(x - half, x + half, 0, height, z, box + int(canvas.light.ahead))
    canvas.rect(x - half, x + half, height * 0.85, height, z, box)
