"""Where objects stand: level areas of furniture and of other objects, and the furniture itself as plain boxes.

A `Support` is a rectangle or a disc at some height. Those of a room are its surfaces (a table, a shelf's board); the
others are the tops and floors of objects that stand on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..instances import FIRST_OBJECT, surface_instance
from ..objects.catalog import RGB, Body, Spot

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Spans = Callable[[Floats, Floats], tuple[Ints, Ints]]

TOUCH = 0.001  # metres: what overlaps the placed object's height by less does not block it
OPEN = 10.0  # headroom where nothing is above, metres


class Reject(Exception):
    """The view is not good enough; the reason is counted."""


def _turned(points: Floats, center: tuple[float, float, float], yaw: float) -> tuple[Floats, Floats]:
    """World points [..., 2] in the frame of something at `center` that is turned by `yaw`: x and y, each [...]."""
    x, y = points[..., 0] - center[0], points[..., 1] - center[1]
    if not yaw:
        return x, y
    cos, sin = math.cos(yaw), math.sin(yaw)
    return cos * x + sin * y, cos * y - sin * x


@dataclass(frozen=True, slots=True)
class Support:
    """A level area at the height `center[2]` on which objects stand. Metres and radians.

    `owner` is the slot of the object that it belongs to, with `area` "top" or "inside"; None for furniture.
    """

    name: str
    kind: str
    instance: int
    center: tuple[float, float, float]
    yaw: float
    half: tuple[float, float]  # of a rectangle; both are the radius of a disc
    disc: bool = False
    headroom: float = OPEN
    owner: int | None = None
    area: str = "surface"

    @property
    def axes(self) -> Floats:
        cos, sin = math.cos(self.yaw), math.sin(self.yaw)
        return np.array([[cos, sin], [-sin, cos]])

    def local(self, points: Floats) -> Floats:
        """World points [..., 2] in the support's own frame."""
        return np.stack(_turned(points, self.center, self.yaw), -1)

    def world(self, points: Floats) -> Floats:
        result: Floats = points @ self.axes + np.array(self.center[:2])
        return result

    def inset(self, points: Floats) -> Floats:
        """How far points [..., 2] are inside of the border; negative outside."""
        x, y = _turned(points, self.center, self.yaw)
        if self.disc:
            result: Floats = self.half[0] - np.hypot(x, y)
            return result
        return np.minimum(self.half[0] - np.abs(x), self.half[1] - np.abs(y))

    def extent(self, direction: Floats) -> float:
        """Half extent of the rectangle along a unit vector [2]."""
        if self.disc:
            return self.half[0]
        return float(np.abs(self.axes @ direction) @ np.array(self.half))

    def as_area(self) -> dict[str, object]:
        """As views.jsonl describes a place on an object."""
        center = [round(value, 5) for value in self.center]
        if self.disc:
            return {"shape": "disc", "center": center, "radius": round(self.half[0], 5)}
        half = [round(value, 5) for value in self.half]
        return {"shape": "rectangle", "center": center, "half_size": half, "yaw": round(self.yaw, 6)}


@dataclass(frozen=True, slots=True)
class Block:
    """A box or cylinder of furniture, walls or floor. `fixture` names what stands on or over a surface."""

    half: tuple[float, float, float]  # of a cylinder (radius, half height, 0)
    center: tuple[float, float, float]
    rgb: RGB
    yaw: float = 0.0
    texture: str | None = None
    surface: int | None = None  # number of the surface whose top this is
    fixture: str = ""
    shape: str = "box"
    solid: bool = True  # objects collide with it
    glow: bool = False

    @property
    def reach(self) -> float:
        """Radius of a disc that holds its outline."""
        return math.hypot(*self.half[:2])

    def distance(self, points: Floats) -> Floats:
        """From points [n, 2] to a box's outline, 0 inside of it."""
        x, y = _turned(points, self.center, self.yaw)
        result: Floats = np.hypot(np.maximum(np.abs(x) - self.half[0], 0), np.maximum(np.abs(y) - self.half[1], 0))
        return result


@dataclass(frozen=True, slots=True)
class Light:
    """The lamps of a scene. The key light is directional and casts shadows."""

    key_position: tuple[float, ...]
    key: float
    fill_direction: tuple[float, ...]
    fill: float
    ambient: float
    tint: tuple[float, ...]
    shininess: float


@dataclass(frozen=True, slots=True)
class Room:
    """Everything of a scene that is not an object."""

    surfaces: tuple[Support, ...]
    blocks: tuple[Block, ...]
    light: Light
    reach: float = math.inf  # a camera this far from the origin, measured on the ground, is outside of the walls

    @property
    def fixtures(self) -> list[Block]:
        return [block for block in self.blocks if block.fixture]


def object_support(body: Body, slot: int, spot: Spot) -> Support:
    """A place on an object as the support that it is in the world."""
    x, y, z = spot.center
    cos, sin = math.cos(body.yaw), math.sin(body.yaw)
    center = (body.position[0] + cos * x - sin * y, body.position[1] + sin * x + cos * y, body.z + z)
    area = "inside" if spot.interior else "top"
    return Support(
        body.name, body.category, FIRST_OBJECT + slot, center, body.yaw, spot.half, spot.disc, owner=slot, area=area
    )


def renumbered(surfaces: Sequence[Support]) -> tuple[Support, ...]:
    return tuple(replace(surface, instance=surface_instance(number)) for number, surface in enumerate(surfaces))


def supports_of(bodies: Sequence[Body], surfaces: Sequence[Support]) -> list[Support]:
    """The room's surfaces, then the places on and in the objects, in the order of `SceneRenderer.segment`'s areas."""
    places = [object_support(body, slot, spot) for slot, body in enumerate(bodies) for spot in body.spots()]
    return [*surfaces, *places]


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
