"""Where objects can stand: level areas of furniture and of other objects, and what is in the way there.

A `Support` is a rectangle or a disc at some height. Those of a room are its surfaces (a table, a shelf's board); the
others are the tops and floors of objects that stand on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ....core.images import FIRST_OBJECT
from ..objects import RGB, Bools, Floats, Ints, Vector
from ..objects.catalog import Body
from ..objects.primitives import ground_axes, local_xy, rectangle_distance

Spans = Callable[[Floats, Floats], tuple[Ints, Ints]]

TOUCH = 0.001  # metres: an obstacle that overlaps the placed object's height by less does not block it
OPEN = 10.0  # headroom where nothing is above, metres


class Reject(Exception):
    """The scene or view is not good enough; the reason is counted."""


@dataclass(frozen=True, slots=True)
class Support:
    """A level area at the height `center[2]` on which objects stand. Metres and radians.

    `owner` is the slot of the object that it belongs to, with `area` "top" or "inside"; None for furniture.
    """

    name: str
    kind: str
    instance: int
    center: Vector
    yaw: float
    half: tuple[float, float]  # of a rectangle; both are the radius of a disc
    disc: bool = False
    headroom: float = OPEN
    owner: int | None = None
    area: str = "surface"

    @property
    def axes(self) -> Floats:
        return ground_axes(self.yaw)

    def world(self, points: Floats) -> Floats:
        """Convert points [n, 2] of the support's own frame to world x, y."""
        world: Floats = points @ self.axes + np.array(self.center[:2])
        return world

    def inset(self, points: Floats) -> Floats:
        """Return how far points [..., 2] are inside the border; negative outside."""
        x, y = local_xy(points, self.center, self.yaw)
        if self.disc:
            inset: Floats = self.half[0] - np.hypot(x, y)
            return inset
        return np.minimum(self.half[0] - np.abs(x), self.half[1] - np.abs(y))

    def extent(self, direction: Floats) -> float:
        """Return the half extent along a unit vector [2]."""
        return self.half[0] if self.disc else float(np.abs(self.axes @ direction) @ np.array(self.half))

    def as_area(self) -> dict[str, object]:
        """Describe an area on an object for views.jsonl."""
        center, half = [round(value, 5) for value in self.center], [round(value, 5) for value in self.half]
        if self.disc:
            return {"shape": "disc", "center": center, "radius": half[0]}
        return {"shape": "rectangle", "center": center, "half_size": half, "yaw": round(self.yaw, 6)}


@dataclass(frozen=True, slots=True)
class Block:
    """A box of furniture, walls or floor. `fixture` names what stands on or over a surface."""

    half: Vector
    center: Vector
    rgb: RGB
    yaw: float = 0.0
    texture: str | None = None
    surface: int | None = None  # number of the surface whose top this is
    fixture: str = ""
    solid: bool = True  # objects collide with it
    glow: bool = False

    def distance(self, points: Floats) -> Floats:
        """Return the distance from points [n, 2] to the outline, 0 inside it."""
        return rectangle_distance(points, self.center, self.yaw, self.half)


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
    reach: float = math.inf  # a camera further than this from the origin, on the ground, is outside the walls

    @property
    def fixtures(self) -> list[Block]:
        return [block for block in self.blocks if block.fixture]


def supports_of(bodies: Sequence[Body], surfaces: Sequence[Support]) -> list[Support]:
    """List the room's surfaces, then the places on and in the objects: the order of the renderer's areas."""
    supports = list(surfaces)
    for slot, body in enumerate(bodies):
        for part in body.parts:
            if part.role not in ("top", "interior"):
                continue
            x, y, z = part.offset
            disc = part.shape == "cylinder"
            half = (part.size[0], part.size[0] if disc else part.size[1])
            cos, sin = math.cos(body.yaw), math.sin(body.yaw)
            level = body.z + (z + part.size[1 if disc else 2])
            center = (body.position[0] + cos * x - sin * y, body.position[1] + sin * x + cos * y, level)
            area, instance = "top" if part.role == "top" else "inside", FIRST_OBJECT + slot
            support = Support(body.name, body.category, instance, center, body.yaw, half, disc, OPEN, slot, area)
            supports.append(support)
    return supports


class Obstacles:
    """What is in the way of something that is to stand on a support: the objects and the furniture of a scene."""

    def __init__(self, bodies: Sequence[Body], fixtures: Sequence[Block]) -> None:
        self._bodies, self._fixtures = bodies, fixtures
        self._distance = [body.distance for body in bodies] + [block.distance for block in fixtures]
        # Squares around the obstacles sort most of them out, all at once.
        extents = [(*body.position, body.reach, body.z, body.z + body.height) for body in bodies]
        for block in fixtures:
            (x, y, z), half = block.center, block.half
            extents.append((x, y, math.hypot(*half[:2]), z - half[2], z + half[2]))
        array = np.array(extents).reshape(-1, 5)
        self._centers, (self._reach, self._low, self._high) = array[:, :2], array[:, 2:].T

    def exclude(
        self, free: Bools, points: Floats, support: Support, height: float, room: float, spans: Spans | None = None
    ) -> None:
        """Clear those of `free` [n] at whose points [n, 2] something of this height lacks `room` around it.

        `spans(centers, reach)` returns the stretch [start, stop) of the points in which those near a center are.
        """
        low, high = support.center[2] + TOUCH, support.center[2] + height - TOUCH
        reach = self._reach + room
        near = (self._low < high) & (self._high > low)
        if spans is None and len(points):  # few points: most of the obstacles are far from all of them
            for axis in (0, 1):
                near &= self._centers[:, axis] + reach >= points[:, axis].min()
                near &= self._centers[:, axis] - reach <= points[:, axis].max()
        numbers = [number for number in near.nonzero()[0].tolist() if not self._has_support(number, support)]
        starts, stops = [0] * len(numbers), [len(points)] * len(numbers)
        if spans is not None and numbers:
            starts, stops = (ends.tolist() for ends in spans(self._centers[numbers], reach[numbers]))
        for number, start, stop in zip(numbers, starts, stops, strict=True):
            if start == stop:
                continue
            x, y = self._centers[number].tolist()
            chosen = start + points_in_square(points[start:stop], (x, y), reach[number], free[start:stop])
            if len(chosen):
                free[chosen] = self._distance[number](points[chosen]) >= room

    def _has_support(self, number: int, support: Support) -> bool:
        """Whether the support is a part of this obstacle."""
        if number < len(self._bodies):
            return number == support.owner
        return self._fixtures[number - len(self._bodies)].fixture == support.name


def points_in_square(points: Floats, center: tuple[float, float], reach: float, among: Bools | None = None) -> Ints:
    """Return the numbers of the points [n, 2] in the square of half side `reach` around a center."""
    near = np.abs(points[:, 0] - center[0]) <= reach
    near &= np.abs(points[:, 1] - center[1]) <= reach
    if among is not None:
        near &= among
    return near.nonzero()[0]
