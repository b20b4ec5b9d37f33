"""The labels of the 19 Cityscapes classes by name."""

from __future__ import annotations

from experiments.datasets.cityscapes_classes import CLASSES

(
    ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, TRAFFIC_LIGHT, TRAFFIC_SIGN, VEGETATION, TERRAIN, SKY,
    PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE,
) = range(len(CLASSES))  # fmt: skip
