"""Where objects stand: level areas of furniture and of other objects, and the furniture itself as plain boxes.

A `Support` is a rectangle or a disc at some height. Those of a room are its surfaces (a table, a shelf's board); the
others are the tops and floors of objects that stand on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..instances import FIRST_OBJECT, surface_instance
from ..objects.catalog import RGB, Body, Spot

if TYPE_CHECKING:
    from .layout import Layouts

Floats = NDArray[np.float64]

OPEN = 10.0  # headroom where nothing is above, metres


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


@dataclass(frozen=True, slots=True)
class Plan:
    """How a scene is going to be: from where it can be seen, and how an arrangement is made into objects and a room.

    `furnish` raises `view.Reject` when that fails. `counts`: range of the number of objects that the arrangement has.
    """

    azimuths: tuple[float, float]
    furnish: Callable[[Layouts, np.random.Generator], tuple[list[Body], Room]]
    counts: tuple[int, int] | None = None
    spread: float = 0.0  # how far the first view may turn from the arrangement's azimuth, radians
    tries: int = 3  # pictures tried for a view
    looks: int = 64  # azimuths from which a further view is chosen
    checked: bool = False  # objects are costly to make: an arrangement is looked at for every view before

    def look_from(self, azimuth: float, rng: np.random.Generator) -> Floats:
        """Azimuths for the first view, the arrangement's own first."""
        if not self.spread:
            return np.array([azimuth])
        near = np.clip(azimuth + rng.uniform(-self.spread, self.spread, 16), *self.azimuths)
        return np.array([azimuth, *near])
