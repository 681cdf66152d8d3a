"""What "left of", "behind", "next to" and "between" mean, for objects and for free space.

Everything lives on the ground plane, in the frame of the camera that looks (`GroundFrame`): objects are the
footprints of their oriented boxes, or the enclosing discs where those are smaller. "Left of B" is a cone of `cone`
degrees around the camera's left, with its tip in B's center, and the whole of the object beyond B's edge in that
direction. An object near the border of the cone is neither in nor out: it makes a question ambiguous, and the
question is not asked.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ..config import RelationsConfig
from ..objects.catalog import Body
from ..world.camera import GroundFrame
from ..world.surfaces import Support
from .wording import DIRECTIONS

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


def direction(relation: str, ground: GroundFrame) -> tuple[float, float]:
    """The unit vector of left / right / front / behind as the camera sees it. "In front" is nearer to the camera."""
    sign = 1.0 if relation in ("right", "behind") else -1.0
    x, y = ground.right if relation in ("left", "right") else ground.forward
    return sign * x, sign * y


def directions(azimuths: Floats) -> Floats:
    """[num, 4, 2]: the vectors of DIRECTIONS for cameras at `azimuths` [num]."""
    forward = np.array([GroundFrame.at(azimuth).forward for azimuth in azimuths.tolist()])
    right = np.stack([forward[:, 1], -forward[:, 0]], 1)
    ways = {"left": -right, "right": right, "front": -forward, "behind": forward}
    return np.stack([ways[relation] for relation in DIRECTIONS], 1)


def split(offset: Floats, vector: Floats) -> tuple[Floats, Floats]:
    """Offsets [..., 2] along a unit vector [..., 2] and across it (absolute), each [...]."""
    along = offset[..., 0] * vector[..., 0] + offset[..., 1] * vector[..., 1]
    across = np.abs(offset[..., 0] * vector[..., 1] - offset[..., 1] * vector[..., 0])
    return along, across


def in_cone(along: Floats, across: Floats, reach: Floats | float, half_angle: float) -> Bools:
    """Inside a cone of `half_angle` degrees and at least `reach` along its axis."""
    inside: Bools = (along >= reach) & (across <= along * math.tan(math.radians(half_angle)))
    return inside


def outside_cone(along: Floats, across: Floats, half_angle: float) -> Bools:
    outside: Bools = across > along * math.tan(math.radians(half_angle))
    return outside


def free_region(
    relation: str, points: Floats, radius: float, reference: Body, ground: GroundFrame, config: RelationsConfig,
    distance: float, ambiguity: float = 0.0,
) -> Bools:  # fmt: skip
    """Whether a disc of `radius` at points [n, 2] stands `relation` the reference.

    `distance` is the largest gap to the reference ("next to" has its own). `ambiguity` (degrees) narrows the cone: the
    removed object is placed well inside the relation, the mask is all of it.
    """
    if relation == "next to":
        near: Bools = reference.distance(points) - radius <= config.next_to
        return near
    vector = np.array(direction(relation, ground))
    along, across = split(points - np.array(reference.position), vector)
    reach = float(reference.extent(vector)) + radius
    inside = in_cone(along, across, reach, config.cone - ambiguity)
    inside[inside] = reference.distance(points[inside]) - radius <= distance
    return inside


def between_region(points: Floats, first: Floats, second: Floats, config: RelationsConfig) -> Bools:
    """Whether points [n, 2] lie in the corridor between two reference centers [2]."""
    axis = second - first
    length = float(np.hypot(axis[0], axis[1]))
    along, across = split(points - first, axis / length)
    low, high = config.corridor
    inside: Bools = (along >= low * length) & (along <= high * length) & (across <= config.corridor_half_width)
    return inside


def names_part(relation: str, surface: Support) -> bool:
    """Whether the words say which part is meant: a shelf has a front and a back of its own, seen from anywhere."""
    return not (surface.kind == "shelf" and relation in ("front part", "back part"))


def part_position(relation: str, points: Floats, surface: Support, ground: GroundFrame) -> Floats:
    """How far points [n, 2] are towards the side that a part is named by: 0 in the middle, 1 at the border."""
    side = {"left part": "left", "right part": "right", "front part": "front", "back part": "behind"}[relation]
    vector = np.array(direction(side, ground))
    offset = points - np.array(surface.center[:2])
    result: Floats = split(offset, vector)[0] / surface.extent(vector)
    return result
