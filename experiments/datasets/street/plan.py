"""What a street is made of: drawn at random before anything is painted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from experiments.datasets.street.camera import Colour, Light, View
from experiments.datasets.street.dice import Dice

Kind = Literal["city", "avenue", "residential", "outskirts"]

LANE = 3.2
"""Width of a lane in metres."""
CROSSING = 9.0
"""Width in metres of a street that crosses."""

_KINDS: dict[Kind, float] = {"city": 0.42, "avenue": 0.24, "residential": 0.22, "outskirts": 0.12}


@dataclass(frozen=True)
class Side:
    """One side of the road. Distances are from the middle of the camera's lane, outwards.

    Attributes:
        sign: -1 left, 1 right.
        road: where the carriageway ends.
        kerb: where the verge ends and the pavement begins.
        line: where the pavement ends.
        front: where the houses stand.
        eaves: usual height of the houses' walls.
        parked: share of the places at the roadside that are taken.
        trees: metres between the trees along the kerb; 0 for none.
    """

    sign: int
    road: float
    kerb: float
    line: float
    front: float
    eaves: float
    parked: float
    trees: float


@dataclass(frozen=True)
class Street:
    """A street's plan: its two sides, left first, and what runs along or across it.

    Attributes:
        kind: what it is lined with.
        sides: left and right.
        crossing: metres to a street that crosses it, if there is one.
        tramway: the lane next to the camera's has rails.
        liveliness: how many people are about, 1 being usual.
    """

    kind: Kind
    sides: tuple[Side, Side]
    crossing: float | None
    tramway: bool
    liveliness: float


def draw_view(dice: Dice) -> View:
    """A camera behind a windscreen."""
    return View(
        horizon=dice.between(0.38, 0.47),
        vanishing=dice.between(0.38, 0.62),
        eye=dice.between(1.25, 1.6),
        bend=dice.between(-0.0012, 0.0012) if dice.chance(0.5) else 0.0,
    )


def draw_light(dice: Dice) -> Light:
    """Overcast, sunny or late; never night."""
    weather = dice.pick_weighted({"overcast": 0.45, "sunny": 0.35, "late": 0.2})
    gain = dice.between(0.8, 1.25)
    tint = dice.between(-0.05, 0.05)
    if weather == "overcast":
        direct, shade, haze = (0.92, 0.94, 0.97), (0.76, 0.78, 0.82), (186.0, 190.0, 196.0)
    elif weather == "sunny":
        direct, shade, haze = (1.16, 1.1, 1.0), (0.52, 0.56, 0.64), (196.0, 206.0, 218.0)
    else:
        direct, shade, haze = (1.0, 0.88, 0.76), (0.42, 0.44, 0.52), (184.0, 164.0, 150.0)

    def adjust(colour: Colour) -> Colour:
        red, green, blue = colour
        return red * gain * (1 + tint), green * gain, blue * gain * (1 - tint)

    return Light(
        sun=0 if weather == "overcast" else dice.pick((-1, 1)),
        ahead=dice.chance(0.5),
        direct=adjust(direct),
        shade=adjust(shade),
        haze=adjust(haze),
        visibility=dice.between(120, 500),
        noise=dice.between(1.5, 6.0),
    )


def draw_street(dice: Dice) -> Street:
    """A street that might be."""
    kind = dice.pick_weighted(_KINDS)
    tramway = dice.chance(0.28 if kind in ("city", "avenue") else 0.0)
    lanes_left = 2 if tramway or dice.chance(0.25) else 1
    sides = []
    for sign in (-1, 1):
        parked = dice.between(0.25, 0.85) if dice.chance(0.6 if kind != "outskirts" else 0.15) else 0.0
        road = 1.7 + (2.2 if parked else dice.between(0.0, 0.6))
        if sign < 0:
            road += LANE * lanes_left
        verge = dice.between(0.8, 2.5) if dice.chance({"city": 0.06, "avenue": 0.4}.get(kind, 0.4)) else 0.0
        pavement = dice.between(2.5, 5.5) if kind in ("city", "avenue") else dice.between(1.6, 3.2)
        yard = {"city": 0.0, "avenue": 2.0, "residential": 4.0, "outskirts": 7.0}[kind] * dice.between(
            0.3, 1.5
        )
        eaves = {"city": 16.0, "avenue": 14.0, "residential": 7.0, "outskirts": 6.0}[kind]
        spacing = 0.0
        if dice.chance({"city": 0.3, "avenue": 0.95, "residential": 0.4, "outskirts": 0.4}[kind]):
            spacing = dice.between(7, 16)
        kerb = road + verge
        front = kerb + pavement + yard
        eaves *= dice.between(0.7, 1.4)
        sides.append(Side(sign, road, kerb, kerb + pavement, front, eaves, parked, spacing))
    return Street(
        kind=kind,
        sides=(sides[0], sides[1]),
        crossing=dice.between(9, 55) if dice.chance(0.4) else None,
        tramway=tramway,
        liveliness=dice.between(0.2, 1.6) * (1.2 if kind == "city" else 0.7),
    )
