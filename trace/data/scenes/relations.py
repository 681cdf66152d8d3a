"""What "left of", "behind", "next to" and "between" mean, for objects and for free space.

Everything lives on the ground plane, in the frame of the camera that looks (`GroundFrame`): objects are the enclosing
discs of their footprints. "Left of B" is a cone of `cone` degrees around the camera's left, with its tip in B's
center, and the whole of the object beyond B's edge in that direction. An object near the border of the cone is
neither in nor out: it makes a question ambiguous, and the question is not asked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .camera import GroundFrame
from .config import DIRECTIONS, RelationsConfig

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def direction(relation: str, ground: GroundFrame) -> tuple[float, float]:
    """The unit vector of left / right / front / behind as the camera sees it. "In front" is nearer to the camera."""
    sign = 1.0 if relation in ("right", "behind") else -1.0
    x, y = ground.right if relation in ("left", "right") else ground.forward
    return sign * x, sign * y


def directions(azimuths: Floats) -> Floats:
    """[num, 4, 2]: the vectors of DIRECTIONS for cameras at `azimuths` [num]."""
    frames = [GroundFrame.at(float(azimuth)) for azimuth in azimuths]
    return np.array([[direction(relation, frame) for relation in DIRECTIONS] for frame in frames])


def split(offset: Floats, vector: Floats) -> tuple[Floats, Floats]:
    """Offsets [..., 2] along a unit vector [..., 2] and across it (absolute), each [...]."""
    along = (offset * vector).sum(-1)
    across = np.abs(offset[..., 0] * vector[..., 1] - offset[..., 1] * vector[..., 0])
    return along, across


def in_cone(along: Floats, across: Floats, reach: Floats | float, half_angle: float) -> Bools:
    """Inside a cone of `half_angle` degrees and at least `reach` along its axis."""
    inside: Bools = (along >= reach) & (across <= along * math.tan(math.radians(half_angle)))
    return inside


def outside_cone(along: Floats, across: Floats, half_angle: float) -> Bools:
    outside: Bools = across > along * math.tan(math.radians(half_angle))
    return outside


@dataclass(frozen=True, slots=True)
class Placement:
    """An object that was taken away again: the disc of its footprint, metres."""

    position: tuple[float, float]
    radius: float


@dataclass(frozen=True, slots=True)
class Table:
    """The supporting surface: a rectangle around the world's origin, metres."""

    half: tuple[float, float]


def standable(points: Floats, radius: float, centers: Floats, radii: Floats, table: Table, clearance: float) -> Bools:
    """Whether a disc of `radius` at points [n, 2] is on the table, clear of the bodies (centers [m, 2], radii [m])."""
    on_table = (np.abs(points) <= np.array(table.half) - radius).all(-1)
    gaps = np.hypot(*(points[:, None] - centers[None]).transpose(2, 0, 1)) - radii - radius
    free: Bools = on_table & (gaps >= clearance).all(1)
    return free


def free_region(
    relation: str, points: Floats, radius: float, center: Floats, extent: float, ground: GroundFrame,
    config: RelationsConfig, distance: float, ambiguity: float = 0.0,
) -> Bools:  # fmt: skip
    """Whether a disc of `radius` at points [n, 2] stands `relation` the reference disc (center [2], radius `extent`).

    `distance` is the largest gap to the reference ("next to" has its own). `ambiguity` (degrees) narrows the cone: the
    removed object is placed well inside the relation, the mask is all of it.
    """
    offset = points - center
    gap = np.hypot(offset[:, 0], offset[:, 1]) - extent - radius
    if relation == "next to":
        near: Bools = gap <= config.next_to
        return near
    along, across = split(offset, np.array(direction(relation, ground)))
    return in_cone(along, across, extent + radius, config.cone - ambiguity) & (gap <= distance)


def between_region(points: Floats, first: Floats, second: Floats, config: RelationsConfig) -> Bools:
    """Whether points [n, 2] lie in the corridor between two reference centers [2]."""
    axis = second - first
    length = float(np.hypot(axis[0], axis[1]))
    along, across = split(points - first, axis / length)
    low, high = config.corridor
    inside: Bools = (along >= low * length) & (along <= high * length) & (across <= config.corridor_half_width)
    return inside
