"""Where a camera stands, the light that it stands in, and colours.

Only +, -, *, /, square roots and rounding are used, which are exact to the bit wherever IEEE 754 holds.
"""

from __future__ import annotations

from dataclasses import dataclass

from experiments.datasets.street.dice import Dice

Colour = tuple[float, float, float]
"""Red, green and blue in [0, 255]."""


@dataclass(frozen=True)
class View:
    """Where the camera looks, in parts of the picture; so a scene is the same at every size.

    Attributes:
        horizon: the horizon's row / H.
        vanishing: the column / W that the road runs towards.
        eye: height of the camera in metres.
        bend: sideways metres per squared metre ahead.
    """

    horizon: float
    vanishing: float
    eye: float
    bend: float


@dataclass(frozen=True)
class Light:
    """Time of day and weather.

    Attributes:
        sun: -1 left, 1 right, 0 overcast.
        ahead: the sun stands ahead: what faces the camera lies in the shade.
        direct: factors of the three channels in the light.
        shade: factors of the three channels in the shade.
        haze: colour that distance turns to.
        visibility: metres at which half of a colour is haze.
        noise: standard deviation of the sensor's noise, in steps of 255.
    """

    sun: int
    ahead: bool
    direct: Colour
    shade: Colour
    haze: Colour
    visibility: float
    noise: float


def vary(dice: Dice, colour: Colour, contrast: float = 0.18) -> Colour:
    """A colour near ``colour``: brighter or darker, and a little off in hue."""
    gain = dice.between(1 - contrast, 1 + contrast)
    hue = contrast * dice.between(-0.25, 0.25)
    red, green, blue = colour
    return red * gain * (1 + hue), green * gain, blue * gain * (1 - hue)
