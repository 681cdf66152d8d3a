"""What is in the way of something that is to stand on a support: objects and furniture, for many points at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..objects.catalog import Body
from .surfaces import Block, Support

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Spans = Callable[[Floats, Floats], tuple[Ints, Ints]]

TOUCH = 0.001  # metres: what overlaps the placed object's height by less does not block it


class Obstacles:
    """The objects and the furniture of a scene. Everything is first sorted out by squares around it, all at once."""

    def __init__(self, bodies: Sequence[Body], fixtures: Sequence[Block]) -> None:
        self._bodies, self._fixtures = bodies, fixtures
        everything: list[Body | Block] = [*bodies, *fixtures]
        self._distance = [body.distance for body in bodies] + [block.distance for block in fixtures]
        self._centers = np.array([_center(one) for one in everything]).reshape(-1, 2)
        self._reach = np.array([one.reach for one in everything])
        self._low = np.array([_low(one) for one in everything])
        self._high = np.array([_high(one) for one in everything])

    def exclude(
        self, free: Bools, points: Floats, place: Support, height: float, room: float, spans: Spans | None = None
    ) -> None:
        """Clear those of `free` [n] at whose points [n, 2] something of this height does not have `room` around it.

        `spans(centers, reach)` says in which stretch [start, stop) of the points those near the centers are.
        """
        low, high = place.center[2] + TOUCH, place.center[2] + height - TOUCH
        reach = self._reach + room
        near = (self._low < high) & (self._high > low)
        if spans is None and len(points):  # few points: most of the obstacles are far from all of them
            for axis in (0, 1):
                near &= self._centers[:, axis] + reach >= points[:, axis].min()
                near &= self._centers[:, axis] - reach <= points[:, axis].max()
        numbers = [number for number in near.nonzero()[0].tolist() if not self._carries(number, place)]
        starts, stops = [0] * len(numbers), [len(points)] * len(numbers)
        if spans is not None and numbers:
            starts, stops = (found.tolist() for found in spans(self._centers[numbers], reach[numbers]))
        for number, start, stop in zip(numbers, starts, stops, strict=True):
            if start == stop:
                continue
            x, y = self._centers[number].tolist()
            chosen = start + close(points[start:stop], (x, y), reach[number], free[start:stop])
            if len(chosen):
                free[chosen] = self._distance[number](points[chosen]) >= room

    def _carries(self, number: int, place: Support) -> bool:
        """Whether the support is a part of this obstacle."""
        if number < len(self._bodies):
            return number == place.owner
        return self._fixtures[number - len(self._bodies)].fixture == place.name


def close(points: Floats, center: tuple[float, float], reach: float, among: Bools | None = None) -> Ints:
    """Numbers of the points [n, 2] in the square of half side `reach` around a center."""
    near = np.abs(points[:, 0] - center[0]) <= reach
    near &= np.abs(points[:, 1] - center[1]) <= reach
    if among is not None:
        near &= among
    return near.nonzero()[0]


def _center(one: Body | Block) -> tuple[float, float]:
    return one.position if isinstance(one, Body) else one.center[:2]


def _low(one: Body | Block) -> float:
    return one.z if isinstance(one, Body) else one.center[2] - one.half[2]


def _high(one: Body | Block) -> float:
    return one.z + one.height if isinstance(one, Body) else one.center[2] + one.half[2]
