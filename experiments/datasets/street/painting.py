"""Paints a street: sky and ground first, then what stands on it from far to near."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from experiments.datasets.base import IGNORE_LABEL
from experiments.datasets.street import roadside, traffic
from experiments.datasets.street.camera import Colour, vary
from experiments.datasets.street.canvas import Canvas
from experiments.datasets.street.dice import Dice
from experiments.datasets.street.labels import BUILDING, ROAD, SIDEWALK, SKY, TERRAIN, VEGETATION
from experiments.datasets.street.plan import CROSSING, LANE, Kind, Side, Street

Frontage = Literal["house", "trees", "wall", "fence", "hedge", "open"]

_FRONTAGES: dict[Kind, dict[Frontage, float]] = {
    "city": {"house": 0.86, "trees": 0.05, "wall": 0.02, "fence": 0.05, "open": 0.02},
    "avenue": {"house": 0.68, "trees": 0.2, "wall": 0.02, "fence": 0.07, "hedge": 0.03},
    "residential": {"house": 0.6, "trees": 0.18, "wall": 0.04, "fence": 0.09, "hedge": 0.09},
    "outskirts": {"house": 0.18, "trees": 0.5, "wall": 0.09, "fence": 0.1, "hedge": 0.05, "open": 0.08},
}
_ASPHALT: tuple[Colour, ...] = ((92, 92, 94), (78, 80, 84), (108, 104, 100), (98, 98, 104))
_PAVING: tuple[Colour, ...] = (
    (142, 138, 132),
    (122, 120, 118),
    (156, 146, 130),
    (134, 112, 100),
    (108, 108, 112),
)
_TURF: tuple[Colour, ...] = ((96, 108, 56), (84, 98, 52), (120, 116, 70), (112, 94, 68))
_NEAR = 1.0  # metres; nearer ground lies below the picture
_BESIDE = 2.5  # metres; nearer walls lie beside it
_END = 130.0  # metres; beyond is only a skyline


@dataclass(frozen=True)
class Thing:
    """Something to paint, and the distance in metres of its nearest point."""

    distance: float
    paint: Callable[[], None]


def paint_from_far(things: Iterable[Thing]) -> None:
    """Paints the farthest first, so that what is nearer covers it."""
    for thing in sorted(things, key=lambda thing: -thing.distance):
        thing.paint()


def paint_street(canvas: Canvas, dice: Dice, street: Street) -> None:
    """Paints all of it, the camera's own car last."""
    painter = _StreetPainter(canvas, dice, street)
    painter.sky()
    painter.skyline()
    painter.ground()
    painter.markings()
    painter.shadows()
    for side in street.sides:
        painter.frontage(side)
        painter.kerbside(side)
        painter.pavement_life(side)
        painter.parked_cars(side)
    painter.road_life()
    paint_from_far(painter.things)
    painter.own_car()


class _StreetPainter:
    """Paints what lies flat or far at once, and collects in ``things`` what hides one another."""

    def __init__(self, canvas: Canvas, dice: Dice, street: Street):
        self.canvas, self.dice, self.street = canvas, dice, street
        self.things: list[Thing] = []

    def put(self, paint: Callable[..., None], x: float, z: float, *size: float, **options: bool) -> None:
        """Has ``paint(canvas, dice, x, z, ...)`` called in its turn."""
        call = partial(paint, self.canvas, self.dice, x, z, *size, **options)
        self.things.append(Thing((x * x + z * z) ** 0.5, call))

    def put_vehicle(self, shape: traffic.Shape, x: float, z: float, heading: traffic.Heading) -> None:
        """The same for a vehicle, which is wide: its nearest point is not its middle."""
        half = (shape.width if heading in ("away", "towards") else shape.length) / 2
        nearest = max(0.0, abs(x) - half)
        call = partial(traffic.vehicle, self.canvas, self.dice, shape, x, z, heading)
        self.things.append(Thing((nearest * nearest + z * z) ** 0.5, call))

    def sky(self) -> None:
        """Grey under clouds, else blue with some."""
        dice, haze = self.dice, self.canvas.light.haze
        if self.canvas.light.sun:
            depth = dice.between(0.75, 1.1)
            blue: Colour = (84 * depth, 130 * depth, 190 * depth)
            self.canvas.sky(SKY, blue, haze, (236, 234, 230), dice.between(0.0, 0.5))
        else:
            low, cloud = (228.0, 231.0, 234.0), (170.0, 174.0, 180.0)
            self.canvas.sky(SKY, vary(dice, haze, 0.06), low, cloud, dice.between(0.2, 0.6))

    def skyline(self) -> None:
        """Houses and woods at the end of the street."""
        canvas, dice, z = self.canvas, self.dice, _END + 40
        wooded = {"city": 0.25, "avenue": 0.5, "residential": 0.6, "outskirts": 0.9}[self.street.kind]
        x = -80.0
        while x < 80:
            width = dice.between(10, 28)
            if dice.chance(wooded):
                leaves = canvas.material(VEGETATION, vary(dice, (66, 82, 48)), z, blotch=0.2)
                height = dice.between(7, 16)
                canvas.rect(x, x + width, 0, height * 0.5, z, leaves)
                canvas.disc(x + width / 2, height * 0.5, z, width * 0.6, height * 0.5, leaves, ragged=0.5)
            else:
                block = canvas.material(BUILDING, vary(dice, (136, 130, 124)), z)
                canvas.rect(x, x + width, 0, dice.between(8, 26), z, block)
            x += width

    def ground(self) -> None:
        """Carriageway, kerbs, verges, pavements and what lies before the houses."""
        canvas, dice, street = self.canvas, self.dice, self.street
        asphalt = vary(dice, dice.pick(_ASPHALT), 0.22)
        road = canvas.material(ROAD, asphalt, 12, grain=0.05, blotch=0.05)
        worn = canvas.material(ROAD, vary(dice, asphalt, 0.1), 12, grain=0.05, blotch=0.05)
        mended = canvas.material(ROAD, vary(dice, asphalt, 0.25), 12, grain=0.05)
        edges: list[float] = []
        stripes: list[int] = []
        for side in street.sides:
            pavement = canvas.material(SIDEWALK, vary(dice, dice.pick(_PAVING)), 12, grain=0.07, blotch=0.1)
            kerb = canvas.material(SIDEWALK, vary(dice, (158, 156, 152)), 12)
            turf = canvas.material(TERRAIN, vary(dice, dice.pick(_TURF)), 12, grain=0.12, blotch=0.22)
            yard = pavement if street.kind == "city" else turf
            outwards = [(side.road, kerb), (side.road + 0.18, turf), (side.kerb, pavement), (side.line, yard)]
            if side.sign < 0:
                edges += [-x for x, _ in reversed(outwards)]
                stripes += [material for _, material in reversed(outwards)] + [road]
            else:
                edges += [x for x, _ in outwards]
                stripes += [material for _, material in outwards]
        canvas.lay(edges, stripes)

        for track in (-0.75, 0.75, -LANE - 0.75, -LANE + 0.75):
            canvas.strip(track - 0.3, track + 0.3, _NEAR, _END, worn)
        for _ in range(dice.below(4)):
            x, z = dice.between(-4, 2), dice.between(5, 30)
            canvas.strip(x, x + dice.between(0.5, 2.0), z, z + dice.between(1, 7), mended)
        if street.crossing is not None:
            canvas.strip(-_END, _END, street.crossing, street.crossing + CROSSING, road)

    def markings(self) -> None:
        """Lane marks, zebra crossing, stop line, arrow and rails."""
        canvas, dice, street = self.canvas, self.dice, self.street
        left, right = street.sides
        paint = canvas.material(ROAD, vary(dice, (206, 206, 200), 0.15), 12, grain=0.08, blotch=0.12)
        x = -LANE / 2
        while x > -left.road + 2:
            canvas.strip(x - 0.07, x + 0.07, _NEAR, _END, paint, period=0 if dice.chance(0.3) else 6)
            x -= LANE
        if right.parked and dice.chance(0.5):
            canvas.strip(1.62, 1.74, _NEAR, _END, paint)
        if street.tramway:
            rail = canvas.material(ROAD, (58, 56, 56), 12)
            for x in (-LANE - 0.7, -LANE + 0.7):
                canvas.strip(x - 0.06, x + 0.06, _NEAR, _END, rail)
        if street.crossing is not None:
            near = street.crossing
            if dice.chance(0.6):
                x = -left.road + 0.3
                while x < right.road:
                    canvas.strip(x, x + 0.5, near - 4.0, near - 1.0, paint)
                    x += 1.0
            else:
                canvas.strip(-1.5, 1.6, near - 1.6, near - 1.0, paint)
        if dice.chance(0.4):
            z = dice.between(8, 22)
            canvas.strip(-0.1, 0.1, z, z + 3.0, paint)
            for step in range(5):
                half = 0.45 - 0.09 * step
                canvas.strip(-half, half, z + 3.0 + 0.3 * step, z + 3.3 + 0.3 * step, paint)

    def shadows(self) -> None:
        """What the houses on the sun's side cast on the ground."""
        dice, street = self.dice, self.street
        if not self.canvas.light.sun or street.kind == "outskirts":
            return
        side = street.sides[0 if self.canvas.light.sun < 0 else 1]
        inner = side.sign * (side.front - dice.between(0.1, 0.8) * side.eaves)
        outer = side.sign * (side.front + 30)
        z = _NEAR
        while z < _END:
            length = dice.between(8, 40)
            self.canvas.strip(min(inner, outer), max(inner, outer), z, z + length, None)
            z += length + dice.between(0, 9)

    def frontage(self, side: Side) -> None:
        """Houses, greenery and enclosures along the outer edge of the pavement."""
        dice, crossing = self.dice, self.street.crossing
        weights = _FRONTAGES[self.street.kind]
        z = _BESIDE
        neighbour = 0.0  # height of the house on the camera's side, which hides this one's end
        while z < _END:
            if crossing is not None and crossing - 4 < z < crossing + CROSSING:
                z, neighbour = crossing + CROSSING, 0.0
                continue
            # What stands far away is small: longer stretches keep the number of strokes down.
            end = z + dice.between(9, 20) + 0.2 * z
            if crossing is not None and z < crossing:
                end = min(end, crossing)
            what = dice.pick_weighted(weights)
            if what == "house":
                eaves = side.eaves * dice.between(0.8, 1.25)
                self._house(side, z, end, eaves, with_end=eaves > neighbour)
                neighbour = eaves
            else:
                self._open_ground(side, z, end, what)
                neighbour = 0.0
            z = end

    def _put_along(
        self,
        side: Side,
        end: float,
        before: float,
        paint: Callable[..., None],
        *place: float,
        **options: bool,
    ) -> None:
        """Something along the street's edge: behind all that stands on this side of its far ``end``.

        ``before``: metres by which it stands before the rest of this stretch.
        """
        behind = (side.line * side.line + end * end) ** 0.5
        call = partial(paint, self.canvas, self.dice, *place, **options)
        self.things.append(Thing(behind - before, call))

    def _house(self, side: Side, z: float, end: float, eaves: float, *, with_end: bool) -> None:
        dice, line, front = self.dice, side.sign * side.line, side.sign * side.front
        self._put_along(side, end, 0.0, roadside.building, front, z, end, eaves, with_end=with_end)
        if side.front - side.line < 1.5:
            return
        if dice.chance(0.4):
            self._put_along(side, end, 0.1, roadside.bush, (line + front) / 2, dice.between(z, end))
        if dice.chance(0.6):
            enclosure = dice.pick((roadside.fence, roadside.wall, roadside.hedge))
            self._put_along(side, end, 0.2, enclosure, line, z, end)

    def _open_ground(self, side: Side, z: float, end: float, what: Frontage) -> None:
        dice, line = self.dice, side.sign * side.line
        if what in ("trees", "hedge"):
            self._put_along(side, end, 0.0, roadside.hedge, line + side.sign * 3, z, end)
        elif what in ("wall", "fence"):
            self._put_along(side, end, 0.0, roadside.wall if what == "wall" else roadside.fence, line, z, end)
        for _ in range(3 if what == "trees" else 1):
            tree_x, tree_z = line + side.sign * dice.between(2, 9), dice.between(z, end)
            self._put_along(side, end, z - tree_z, roadside.tree, tree_x, tree_z, dice.between(6, 14))

    def _crossed(self, z: float, length: float = 0.0) -> bool:
        """Whether [z, z + length] meets the crossing street or the way over the road before it."""
        crossing = self.street.crossing
        return crossing is not None and crossing - 5 - length < z < crossing + CROSSING + 1

    def kerbside(self, side: Side) -> None:
        """Trees, poles, signs and boxes along the kerb."""
        dice, street = self.dice, self.street
        x = side.sign * (side.road + 0.5)
        if side.trees:
            z, height = dice.between(5, 5 + side.trees), dice.between(6, 12)
            while z < 90:
                grown = height * dice.between(0.8, 1.2)
                if not self._crossed(z):
                    self.put(roadside.tree, x, z, grown)
                z += side.trees * dice.between(0.8, 1.3) + 0.12 * z
        if dice.chance(0.6):
            spacing = dice.between(18, 32)
            z = dice.between(6, 6 + spacing)
            while z < 110:
                self.put(roadside.lamp_post, x, z)
                z += spacing
        for _ in range(dice.below(4)):
            self.put(roadside.traffic_sign, x, dice.between(8, 50))
        if dice.chance(0.07):
            self.put(roadside.direction_board, side.sign * (side.road + 2.2), dice.between(14, 40))
        if street.crossing is not None and dice.chance(0.7):
            self.put(roadside.traffic_light, x, max(6.0, street.crossing - 1.5))
            self.put(roadside.traffic_light, x, street.crossing + CROSSING + 1)
        if dice.chance(0.2):
            for k in range(6):
                self.put(roadside.bollard, x, 7 + 2.5 * k)
        if dice.chance(0.4):
            self.put(roadside.street_box, side.sign * (side.line - 0.6), dice.between(8, 35))

    def pavement_life(self, side: Side) -> None:
        """People on foot and parked two-wheelers."""
        dice = self.dice
        for _ in range(int(dice.between(0, 6.5) * self.street.liveliness)):
            x, z = side.sign * dice.between(side.kerb + 0.3, side.line - 0.2), dice.between(6, 40)
            for member in range(dice.pick((1, 1, 1, 2, 3))):
                self.put(traffic.person, x + side.sign * 0.6 * member, z)
        if dice.chance(0.45):
            x, z, motor = side.sign * (side.kerb + 0.7), dice.between(7, 26), dice.chance(0.2)
            for k in range(1 + dice.below(4)):
                self.put(
                    traffic.two_wheeler, x, z + 0.8 * k, motor=motor, side_on=dice.chance(0.7), ridden=False
                )

    def parked_cars(self, side: Side) -> None:
        """A row along the kerb, with gaps."""
        dice = self.dice
        x = side.sign * (side.road - 1.05)
        z = dice.between(7, 14)
        heading: traffic.Heading = "away" if side.sign > 0 else "towards"
        while side.parked and z < 70:
            shape = dice.pick(traffic.LORRIES if dice.chance(0.01) else traffic.CARS)
            if dice.chance(side.parked) and not self._crossed(z, shape.length):
                self.put_vehicle(shape, x + dice.between(-0.1, 0.1), z, heading)
            z += shape.length + dice.between(0.6, 1.8)

    def road_life(self) -> None:
        """Traffic in the lanes and across them, riders, and people who cross the road."""
        dice, street = self.dice, self.street
        left, right = street.sides
        self._traffic(0.0, "away", dice.between(12, 42), None)
        x = -LANE
        while x > -left.road + 1:
            tram = traffic.TRAM if street.tramway and x == -LANE and dice.chance(0.55) else None
            self._traffic(x, "towards", dice.between(7, 37) + (8 if tram else 0), tram)
            x -= LANE
        if street.crossing is not None and dice.chance(0.35):
            z = street.crossing + dice.pick((2.0, 5.5))
            self.put_vehicle(self._any_vehicle(), dice.between(-9, 9), z, dice.pick(("left", "right")))
        if dice.chance(0.4 * street.liveliness):
            x, z = dice.between(-left.road + 0.5, right.road - 0.5), dice.between(12, 35)
            if street.crossing is not None:
                z = max(7.0, street.crossing - dice.between(1, 4))
            self.put(traffic.person, x, z)
        for _ in range(2):
            if dice.chance(0.2):
                rightmost = right.road - (2.6 if right.parked else 0.6)
                self.put(
                    traffic.two_wheeler, rightmost if dice.chance(0.6) else -LANE - 0.4, dice.between(8, 30),
                    motor=dice.chance(0.3), side_on=dice.chance(0.3), ridden=True,
                )  # fmt: skip

    def _traffic(self, x: float, heading: traffic.Heading, z: float, first: traffic.Shape | None) -> None:
        dice = self.dice
        if first is not None:
            self.put_vehicle(first, x, z, heading)
            z += first.length + 15
        while z < 100 and dice.chance(0.62):
            shape = self._any_vehicle()
            self.put_vehicle(shape, x + dice.between(-0.3, 0.3), z, heading)
            z += shape.length + dice.between(4, 30)

    def _any_vehicle(self) -> traffic.Shape:
        if self.dice.chance(0.95):
            return self.dice.pick(traffic.CARS)
        return traffic.COACH if self.dice.chance(0.5) else self.dice.pick(traffic.LORRIES)

    def own_car(self) -> None:
        """The bonnet of the car that carries the camera, and the picture's unlabelled rim."""
        canvas, dice = self.canvas, self.dice
        bonnet = canvas.material(IGNORE_LABEL, vary(dice, (40, 42, 46), 0.4), grain=0.01, blotch=0.1)
        canvas.foreground(bonnet, top=dice.between(0.88, 0.95), sag=dice.between(0.02, 0.08))
        canvas.rim(canvas.material(IGNORE_LABEL, (4, 4, 4), grain=0.0, blotch=0.0), 0.007)
